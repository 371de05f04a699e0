//! A first-come-first-served queue that can be left from any place.

use std::collections::BTreeMap;

use crate::command::Revision;

/// Who waits, in order of the revision at which each joined. `K` names a waiter and is in at most once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Queue<K, T> {
    order: BTreeMap<Revision, (K, T)>,
    places: BTreeMap<K, Revision>,
}

impl<K, T> Default for Queue<K, T> {
    fn default() -> Self {
        Self { order: BTreeMap::new(), places: BTreeMap::new() }
    }
}

impl<K: Ord + Copy, T> Queue<K, T> {
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// `joined` is above that of everyone in the queue, except while it is loaded.
    pub(super) fn join(&mut self, joined: Revision, key: K, waiter: T) {
        self.places.insert(key, joined);
        self.order.insert(joined, (key, waiter));
    }

    /// None if the key does not wait.
    pub(super) fn leave(&mut self, key: K) -> Option<(Revision, T)> {
        let joined = self.places.remove(&key)?;
        let (_, waiter) = self.order.remove(&joined)?;
        Some((joined, waiter))
    }

    /// A waiter with its place, to change what is known of it.
    pub(super) fn waiting(&mut self, key: K) -> Option<(Revision, &mut T)> {
        let joined = self.joined(key)?;
        let (_, waiter) = self.order.get_mut(&joined)?;
        Some((joined, waiter))
    }

    pub(super) fn joined(&self, key: K) -> Option<Revision> {
        self.places.get(&key).copied()
    }

    /// How many are before the one that joined at this revision.
    pub(super) fn ahead_of(&self, joined: Revision) -> u64 {
        self.order.range(..joined).count() as u64
    }

    pub(super) fn head(&self) -> Option<(Revision, K, &T)> {
        self.iter().next()
    }

    /// Head first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Revision, K, &T)> {
        self.order.iter().map(|(joined, (key, waiter))| (*joined, *key, waiter))
    }
}
