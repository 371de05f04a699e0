//! From a key to its versions: an ordered map that is lean and knows how many keys of a range exist.
//!
//! Sorted leaves of up to [`LEAF_MAX`] keys hang in a tree by the least key that each may hold:
//!
//! ```text
//! ""  ──► [ a, b, c ]        2 live, newest 9
//! "d" ──► [ d, f ]           2 live, newest 4
//! ```
//! A key takes 24 bytes of its leaf, where a tree node for each few keys would be half empty after ascending
//! inserts. What a leaf says of itself makes counting a range a walk over leaves: nobody pays for a million
//! keys to be told their number.

use std::{collections::BTreeMap, ops::Bound};

use crate::{
    command::Revision,
    store::{key::Key, key_index::KeyIndex},
};

/// Keys of a leaf before it is split.
const LEAF_MAX: usize = 128;

/// Keys below which a leaf is joined with the next one, if both are no more than half of a leaf.
const LEAF_MIN: usize = LEAF_MAX / 4;

/// The bounds of a range of keys.
pub(crate) type Bounds<'k> = (Bound<&'k [u8]>, Bound<&'k [u8]>);

/// The map.
///
/// Invariants: the first leaf hangs at the empty key, and no other leaf is empty; a leaf's keys are at or
/// above its place in the tree and below the next one's.
#[derive(Debug, Clone)]
pub(crate) struct KeyMap {
    leaves: BTreeMap<Key, Leaf>,
    len: usize,
}

#[derive(Debug, Clone, Default)]
struct Leaf {
    /// Sorted. The versions are boxed, so that inserting a key moves few bytes.
    entries: Vec<(Key, Box<KeyIndex>)>,
    sums: Sums,
}

/// What a leaf says of its keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sums {
    /// How many of them exist now.
    live: usize,
    /// Bytes of those and of their values.
    live_bytes: u64,
    /// No version is newer; there may be none as new either.
    newest: Revision,
}

impl Sums {
    fn add(&mut self, key: &Key, index: &KeyIndex) {
        if let Some(current) = index.current() {
            self.live += 1;
            self.live_bytes += key.len() as u64 + current.value_bytes();
        }
        self.newest = self.newest.max(index.latest().mod_revision);
    }

    fn of(entries: &[(Key, Box<KeyIndex>)]) -> Self {
        let mut sums = Self::default();
        entries.iter().for_each(|(key, index)| sums.add(key, index));
        sums
    }

    fn take(&mut self, key: &Key, index: &KeyIndex) {
        if let Some(current) = index.current() {
            self.live -= 1;
            self.live_bytes -= key.len() as u64 + current.value_bytes();
        }
    }
}

impl Default for KeyMap {
    fn default() -> Self {
        Self { leaves: BTreeMap::from([(Key::from(&b""[..]), Leaf::default())]), len: 0 }
    }
}

impl KeyMap {
    /// Keys, those that do not exist any more included.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<(&Key, &KeyIndex)> {
        let (_, leaf) = self.leaf(key);
        let (key, index) = leaf.entries.get(leaf.find(key).ok()?)?;
        Some((key, index))
    }

    /// Changes the versions of a key; none if there is no such key.
    pub(crate) fn edit<R>(&mut self, key: &[u8], edit: impl FnOnce(&Key, &mut KeyIndex) -> R) -> Option<R> {
        let leaf = self.leaf_mut(key);
        let position = leaf.find(key).ok()?;
        let (key, index) = &mut leaf.entries[position];
        leaf.sums.take(key, index);
        let answer = edit(key, index);
        leaf.sums.add(key, index);
        Some(answer)
    }

    /// Adds a key that is not there.
    pub(crate) fn insert(&mut self, key: Key, index: Box<KeyIndex>) {
        self.make_room(&key);
        let leaf = self.leaf_mut(&key);
        let Err(position) = leaf.find(&key) else { unreachable!("a key is inserted once") };
        leaf.sums.add(&key, &index);
        leaf.entries.insert(position, (key, index));
        self.len += 1;
    }

    /// Takes a key out.
    pub(crate) fn remove(&mut self, key: &[u8]) -> Option<Box<KeyIndex>> {
        let leaf = self.leaf_mut(key);
        let (key, index) = leaf.entries.remove(leaf.find(key).ok()?);
        leaf.sums.take(&key, &index);
        let left = leaf.entries.len();
        if left < leaf.entries.capacity() / 4 {
            leaf.entries.shrink_to(left * 2);
        }
        self.len -= 1;
        if left < LEAF_MIN {
            self.join(&key);
        }
        Some(index)
    }

    /// The keys within bounds, in order.
    pub(crate) fn range<'m, 'b>(
        &'m self,
        bounds: Bounds<'b>,
    ) -> impl DoubleEndedIterator<Item = (&'m Key, &'m KeyIndex)> {
        self.leaves_of(bounds).flat_map(move |leaf| leaf.within(bounds)).map(|(key, index)| (key, &**index))
    }

    /// All keys, in order.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Key, &KeyIndex)> {
        self.range((Bound::Unbounded, Bound::Unbounded))
    }

    /// How many keys within bounds exist at a revision, or now. Leaves that lie whole within them and have
    /// not changed since are not looked into.
    pub(crate) fn count(&self, bounds: Bounds<'_>, at: Option<Revision>) -> usize {
        let exists = |index: &KeyIndex| match at {
            None => index.current().is_some(),
            Some(revision) => index.at(revision).is_some(),
        };
        self.leaves_of(bounds)
            .map(|leaf| {
                let within = leaf.within(bounds);
                if within.len() == leaf.entries.len()
                    && at.is_none_or(|revision| leaf.sums.newest <= revision)
                {
                    leaf.sums.live
                } else {
                    within.iter().filter(|(_, index)| exists(index)).count()
                }
            })
            .sum()
    }

    /// Bytes of the keys within bounds that exist now, and of their values.
    pub(crate) fn live_bytes(&self, bounds: Bounds<'_>) -> u64 {
        let of_leaf = |leaf: &Leaf| {
            let within = leaf.within(bounds);
            if within.len() == leaf.entries.len() { leaf.sums } else { Sums::of(within) }
        };
        self.leaves_of(bounds).map(|leaf| of_leaf(leaf).live_bytes).sum()
    }

    /// From keys in strictly ascending order.
    pub(crate) fn from_sorted(keys: impl IntoIterator<Item = (Key, Box<KeyIndex>)>) -> Self {
        let mut map = Self::default();
        let mut keys = keys.into_iter().peekable();
        while keys.peek().is_some() {
            let mut entries = Vec::with_capacity(LEAF_MAX);
            entries.extend(keys.by_ref().take(LEAF_MAX));
            map.len += entries.len();
            let separator = if map.leaves.len() == 1 && map.len == entries.len() {
                Key::from(&b""[..])
            } else {
                Key::clone(&entries[0].0)
            };
            map.leaves.insert(separator, Leaf::of(entries));
        }
        map
    }

    fn leaf(&self, key: &[u8]) -> (&Key, &Leaf) {
        let at = self.leaves.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back();
        at.expect("the first leaf hangs at the empty key")
    }

    fn leaf_mut(&mut self, key: &[u8]) -> &mut Leaf {
        let at = self.leaves.range_mut::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back();
        at.expect("the first leaf hangs at the empty key").1
    }

    fn leaves_of<'m, 'b>(&'m self, bounds: Bounds<'b>) -> impl DoubleEndedIterator<Item = &'m Leaf> {
        let first = match bounds.0 {
            Bound::Included(key) | Bound::Excluded(key) => &self.leaf(key).0[..],
            Bound::Unbounded => b"",
        };
        self.leaves.range::<[u8], _>((Bound::Included(first), bounds.1)).map(|(_, leaf)| leaf)
    }

    /// Splits the leaf of a key if it is full.
    fn make_room(&mut self, key: &Key) {
        let leaf = self.leaf_mut(key);
        if leaf.entries.len() < LEAF_MAX {
            return;
        }
        let (separator, right) = if leaf.entries.last().is_some_and(|(last, _)| last < key) {
            // Keys that come in order fill their leaves.
            (key.clone(), Leaf::default())
        } else {
            let right = Leaf::of(leaf.entries.split_off(LEAF_MAX / 2));
            leaf.sums = Sums::of(&leaf.entries);
            (right.entries[0].0.clone(), right)
        };
        self.leaves.insert(separator, right);
    }

    /// Joins the leaf of a key with the next one if both are small.
    fn join(&mut self, key: &[u8]) {
        let mut from = self.leaves.range_mut::<[u8], _>((Bound::Excluded(key), Bound::Unbounded));
        let next = from.next().map(|(separator, next)| (separator.clone(), next.entries.len()));
        let leaf = self.leaf_mut(key);
        if let Some((separator, _)) = next.filter(|(_, next)| leaf.entries.len() + next <= LEAF_MAX / 2) {
            let Some(next) = self.leaves.remove(&separator) else { return };
            let leaf = self.leaf_mut(key);
            leaf.entries.extend(next.entries);
            leaf.sums = Sums::of(&leaf.entries);
        } else if leaf.entries.is_empty() {
            let separator = self.leaf(key).0.clone();
            if !separator.is_empty() {
                self.leaves.remove(&separator);
            }
        }
    }
}

impl Leaf {
    fn of(entries: Vec<(Key, Box<KeyIndex>)>) -> Self {
        Self { sums: Sums::of(&entries), entries }
    }

    fn find(&self, key: &[u8]) -> Result<usize, usize> {
        self.entries.binary_search_by(|(present, _)| present[..].cmp(key))
    }

    fn within(&self, (start, end): Bounds<'_>) -> &[(Key, Box<KeyIndex>)] {
        let entries = &self.entries[..];
        let before = |key: &[u8]| match start {
            Bound::Unbounded => false,
            Bound::Included(start) => key < start,
            Bound::Excluded(start) => key <= start,
        };
        let up_to = |key: &[u8]| match end {
            Bound::Unbounded => true,
            Bound::Included(end) => key <= end,
            Bound::Excluded(end) => key < end,
        };
        // Most leaves of a long range are within it whole.
        let first = match entries.first() {
            Some((key, _)) if before(key) => entries.partition_point(|(key, _)| before(key)),
            _ => 0,
        };
        let last = match entries.last() {
            Some((key, _)) if !up_to(key) => entries.partition_point(|(key, _)| up_to(key)),
            _ => entries.len(),
        };
        &entries[first..last.max(first)]
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::store::key_index::Version;

    fn key(number: u16) -> Key {
        Key::from(&number.to_be_bytes()[..])
    }

    fn version(revision: Revision) -> Version {
        Version::live(b"", &Bytes::new(), 0, (revision, 1), revision)
    }

    impl KeyMap {
        fn check(&self) {
            let mut len = 0;
            let mut places = self.leaves.iter().peekable();
            assert!(self.leaves.contains_key(&b""[..]));
            while let Some((place, leaf)) = places.next() {
                assert!(leaf.entries.len() <= LEAF_MAX);
                assert!(!leaf.entries.is_empty() || place.is_empty());
                assert!(leaf.entries.is_sorted_by(|(a, _), (b, _)| a < b));
                assert!(leaf.entries.first().is_none_or(|(first, _)| first >= place));
                let next = places.peek().map(|(next, _)| *next);
                assert!(leaf.entries.last().is_none_or(|(last, _)| next.is_none_or(|next| last < next)));
                let sums = Sums::of(&leaf.entries);
                assert_eq!((leaf.sums.live, leaf.sums.live_bytes), (sums.live, sums.live_bytes));
                assert!(sums.newest <= leaf.sums.newest);
                len += leaf.entries.len();
            }
            assert_eq!(len, self.len);
        }
    }

    #[test]
    fn keys_that_come_in_order_fill_their_leaves() {
        let mut map = KeyMap::default();
        for number in 0..10 * LEAF_MAX as u16 {
            map.insert(key(number), Box::new(KeyIndex::new(version(1))));
        }
        map.check();
        assert_eq!(map.leaves.len(), 10);
    }

    #[test]
    fn leaves_go_with_their_keys() {
        let mut map = KeyMap::default();
        for number in 0..5_000_u32 {
            map.insert(key((number * 7919 % 5_000) as u16), Box::new(KeyIndex::new(version(1))));
        }
        map.check();
        for number in 0..5_000_u32 {
            assert!(map.remove(&key((number * 31 % 5_000) as u16)).is_some());
        }
        map.check();
        assert_eq!((map.len(), map.leaves.len()), (0, 1));
    }

    proptest! {
        #[test]
        fn map_equals_a_sorted_vector(
            steps in prop::collection::vec((0..4u8, 0..600u16, 0..600u16), 1..1_500),
            sorted in any::<bool>(),
        ) {
            let mut map = KeyMap::default();
            let mut model: BTreeMap<Key, KeyIndex> = BTreeMap::new();
            for (revision, (what, number, other)) in steps.iter().enumerate() {
                let (key, revision) = (key(*number), revision as Revision + 1);
                match what {
                    0 | 1 if !model.contains_key(&key) => {
                        model.insert(key.clone(), KeyIndex::new(version(revision)));
                        map.insert(key, Box::new(KeyIndex::new(version(revision))));
                    }
                    0 | 1 => {
                        let made =
                            if *what == 0 { version(revision) } else { Version::tombstone(revision) };
                        model.get_mut(&key).unwrap().push(made.clone());
                        prop_assert!(map.edit(&key, |_, index| index.push(made)).is_some());
                    }
                    2 => {
                        prop_assert_eq!(map.remove(&key).is_some(), model.remove(&key).is_some());
                    }
                    _ => {
                        let end = super::tests::key(number.saturating_add(*other));
                        let bounds: Bounds<'_> = (Bound::Included(&key), Bound::Excluded(&end));
                        let found: Vec<_> = map.range(bounds).map(|(key, _)| key).collect();
                        let expected: Vec<_> = model.range::<[u8], _>(bounds).map(|(key, _)| key).collect();
                        prop_assert_eq!(&found, &expected);
                        let mut back: Vec<_> = map.range(bounds).rev().map(|(key, _)| key).collect();
                        back.reverse();
                        prop_assert_eq!(back, found);
                        for at in [None, Some(revision / 2), Some(revision)] {
                            let exists = |index: &KeyIndex| match at {
                                None => index.current().is_some(),
                                Some(at) => index.at(at).is_some(),
                            };
                            let expected = model.range::<[u8], _>(bounds).filter(|(_, i)| exists(i)).count();
                            prop_assert_eq!(map.count(bounds, at), expected);
                        }
                    }
                }
            }
            if sorted {
                let entries = map.iter().map(|(key, index)| (key.clone(), Box::new(index.clone())));
                map = KeyMap::from_sorted(entries.collect::<Vec<_>>());
            }
            map.check();
            prop_assert!(map.iter().map(|(key, _)| key).eq(model.keys()));
            for (key, index) in &model {
                prop_assert_eq!(map.get(key).unwrap().1.latest(), index.latest());
            }
        }
    }
}
