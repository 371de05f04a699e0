//! Which watchers an event concerns, without asking each of them.
//!
//! Watchers of equal ranges form a group. Groups of single keys and of prefixes, which is what nearly all
//! watchers watch, are found by looking the event's key and its prefixes up; the other ranges are walked.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{store::KeyRange, watch::WatchRange};

/// Watchers, as slots of the hub, by what they watch.
#[derive(Debug, Default)]
pub(super) struct Interest {
    keys: BTreeMap<Bytes, Vec<u32>>,
    prefixes: BTreeMap<Bytes, Vec<u32>>,
    /// How many groups in `prefixes` have this length: only these lengths of a key are looked up.
    prefix_lengths: BTreeMap<usize, usize>,
    ranges: BTreeMap<WatchRange, Vec<u32>>,
}

/// The shape of a range, as it is indexed.
enum Shape {
    Key,
    Prefix(Bytes),
    Range,
}

impl Interest {
    /// Answers the slot's position in its group, which the hub keeps for [`Interest::remove`].
    pub(super) fn add(&mut self, range: &WatchRange, slot: u32) -> usize {
        let group = match shape(range) {
            Shape::Key => self.keys.entry(range.key.clone()).or_default(),
            Shape::Prefix(prefix) => {
                let length = prefix.len();
                let group = self.prefixes.entry(prefix).or_default();
                if group.is_empty() {
                    *self.prefix_lengths.entry(length).or_default() += 1;
                }
                group
            }
            Shape::Range => self.ranges.entry(range.clone()).or_default(),
        };
        group.push(slot);
        group.len() - 1
    }

    /// Answers the slot that now has the removed one's position, if it is another one.
    pub(super) fn remove(&mut self, range: &WatchRange, position: usize) -> Option<u32> {
        match shape(range) {
            Shape::Key => remove(&mut self.keys, &range.key, position).moved,
            Shape::Prefix(prefix) => {
                let removed = remove(&mut self.prefixes, &prefix, position);
                if removed.last
                    && let Some(groups) = self.prefix_lengths.get_mut(&prefix.len())
                {
                    *groups -= 1;
                    if *groups == 0 {
                        self.prefix_lengths.remove(&prefix.len());
                    }
                }
                removed.moved
            }
            Shape::Range => remove(&mut self.ranges, range, position).moved,
        }
    }

    /// Calls `concerned` for each slot whose range contains the key; once, as a slot is in one group.
    pub(super) fn for_each(&self, key: &[u8], mut concerned: impl FnMut(u32)) {
        let by_prefix = self
            .prefix_lengths
            .keys()
            .map_while(|length| key.get(..*length))
            .filter_map(|prefix| self.prefixes.get(prefix));
        let by_range = self.ranges.iter().filter(|(range, _)| range.as_key_range().contains(key));
        let groups = self.keys.get(key).into_iter().chain(by_prefix).chain(by_range.map(|(_, group)| group));
        for slot in groups.flatten() {
            concerned(*slot);
        }
    }
}

struct Removed {
    moved: Option<u32>,
    /// The group is gone.
    last: bool,
}

fn remove<K: Ord>(groups: &mut BTreeMap<K, Vec<u32>>, key: &K, position: usize) -> Removed {
    let group = groups.get_mut(key).expect("a watcher is in the group of its range until it is removed");
    group.swap_remove(position);
    let removed = Removed { moved: group.get(position).copied(), last: group.is_empty() };
    if removed.last {
        groups.remove(key);
    }
    removed
}

fn shape(range: &WatchRange) -> Shape {
    match range.as_key_range() {
        KeyRange::Single(_) => Shape::Key,
        // Keys have at least one byte, so both mean everything.
        KeyRange::From([] | [0]) => Shape::Prefix(Bytes::new()),
        KeyRange::Between(key, end) if is_prefix_end(key, end) => Shape::Prefix(range.key.clone()),
        KeyRange::From(_) | KeyRange::Between(..) => Shape::Range,
    }
}

/// Whether `[key, end)` is all keys that start with `key`: `end` is `key` with its last byte raised,
/// trailing 0xff bytes cut off before.
fn is_prefix_end(key: &[u8], end: &[u8]) -> bool {
    let raised = key.iter().rposition(|byte| *byte != u8::MAX);
    raised
        .is_some_and(|last| end.len() == last + 1 && end[..last] == key[..last] && end[last] == key[last] + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Few letters and short, with 0xff, so that prefixes and ranges meet often.
    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(vec![b'a', b'b', 0xff]), 1..4)
    }

    fn range() -> impl Strategy<Value = WatchRange> {
        let end = |key: &Vec<u8>| {
            let last = key.iter().rposition(|byte| *byte != 0xff);
            last.map_or(vec![0], |last| [&key[..last], &[key[last] + 1]].concat())
        };
        prop_oneof![
            key().prop_map(|key| (key, vec![])),
            key().prop_map(move |key| (key.clone(), end(&key))),
            key().prop_map(|key| (key, vec![0])),
            Just((vec![0], vec![0])),
            (key(), key()),
        ]
        .prop_map(|(key, range_end)| WatchRange { key: key.into(), range_end: range_end.into() })
    }

    proptest! {
        #[test]
        fn finds_exactly_the_slots_whose_range_contains_the_key(
            ranges in prop::collection::vec((range(), any::<bool>()), 1..20),
            keys in prop::collection::vec(key(), 1..20),
        ) {
            let mut interest = Interest::default();
            let mut positions = Vec::new();
            for (slot, (range, _)) in (0u32..).zip(&ranges) {
                positions.push(interest.add(range, slot));
            }
            for (slot, (range, stays)) in ranges.iter().enumerate() {
                if !stays
                    && let Some(moved) = interest.remove(range, positions[slot])
                {
                    positions[moved as usize] = positions[slot];
                }
            }
            for key in keys {
                let mut found = Vec::new();
                interest.for_each(&key, |slot| found.push(slot));
                found.sort_unstable();
                let expected: Vec<u32> = (0u32..)
                    .zip(&ranges)
                    .filter(|(_, (range, stays))| *stays && range.as_key_range().contains(&key))
                    .map(|(slot, _)| slot)
                    .collect();
                prop_assert_eq!(found, expected);
            }
            for (slot, (range, stays)) in ranges.iter().enumerate() {
                if *stays && let Some(moved) = interest.remove(range, positions[slot]) {
                    positions[moved as usize] = positions[slot];
                }
            }
            prop_assert!(interest.keys.is_empty() && interest.prefixes.is_empty());
            prop_assert!(interest.prefix_lengths.is_empty() && interest.ranges.is_empty());
        }
    }
}
