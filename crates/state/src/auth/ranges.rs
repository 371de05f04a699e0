//! A union of key ranges, and whether it covers another range.

use std::collections::BTreeMap;

use bytes::Bytes;

/// Disjoint half-open ranges by start, with a gap between any two; no end means "to the last key". Two ranges
/// that touch are one, so a range that two permissions cover together is covered.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Ranges(BTreeMap<Bytes, Option<Bytes>>);

impl Ranges {
    /// Adds a range by etcd's conventions; nothing if it is empty.
    pub(super) fn insert(&mut self, key: &[u8], range_end: &[u8]) {
        let Some((start, end)) = bounds(key, range_end) else { return };
        self.add(start, end);
    }

    fn add(&mut self, mut start: Bytes, mut end: Option<Bytes>) {
        // Swallow what overlaps or touches: the one that starts before, and those that start inside.
        if let Some((before, before_end)) = self.0.range(..=start.clone()).next_back()
            && before_end.as_ref().is_none_or(|before_end| *before_end >= start)
        {
            start = before.clone();
        }
        while let Some((next, next_end)) = self.0.range(start.clone()..).next() {
            if end.as_ref().is_some_and(|end| next > end) {
                break;
            }
            end = match (end, next_end) {
                (Some(a), Some(b)) => Some(a.max(b.clone())),
                _ => None,
            };
            let next = next.clone();
            self.0.remove(&next);
        }
        self.0.insert(start, end);
    }

    /// Whether every key of the range is in one of these; of an empty range, whether its first key is.
    pub(super) fn cover(&self, key: &[u8], range_end: &[u8]) -> bool {
        let Some((start, end)) = bounds(key, range_end).or_else(|| bounds(key, b"")) else { return false };
        // With gaps between them, only the last one that starts at or before it can cover it.
        let Some((_, covered)) = self.0.range(..=start.clone()).next_back() else { return false };
        match (covered, end) {
            (None, _) => true,
            (Some(covered), Some(end)) => end <= *covered,
            (Some(_), None) => false,
        }
    }
}

/// The range's first key and its end, if it has an end; none if it holds no key.
fn bounds(key: &[u8], range_end: &[u8]) -> Option<(Bytes, Option<Bytes>)> {
    let start = Bytes::copy_from_slice(key);
    match range_end {
        [] => Some((start, Some(Bytes::from([key, b"\0"].concat())))),
        [0] => Some((start, None)),
        _ if range_end <= key => None,
        _ => Some((start, Some(Bytes::copy_from_slice(range_end)))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges(all: &[(&str, &str)]) -> Ranges {
        let mut ranges = Ranges::default();
        all.iter().for_each(|(key, end)| ranges.insert(key.as_bytes(), end.as_bytes()));
        ranges
    }

    #[test]
    fn ranges_that_touch_cover_together_what_neither_covers_alone() {
        let two = ranges(&[("a", "c"), ("c", "e")]);
        assert!(two.cover(b"a", b"e") && two.cover(b"b", b"d"));
        assert!(!two.cover(b"a", b"f") && !two.cover(b"a", b"\0"));
        let gap = ranges(&[("a", "c"), ("c\0", "e")]);
        assert!(!gap.cover(b"b", b"d"), "the key c is missing");
    }

    #[test]
    fn an_open_range_covers_everything_from_its_key_on() {
        let open = ranges(&[("m", "\0")]);
        assert!(open.cover(b"m", b"\0") && open.cover(b"z", b"") && open.cover(b"n", b"zz"));
        assert!(!open.cover(b"a", b"\0") && !open.cover(b"l", b""));
        assert!(ranges(&[("\0", "\0")]).cover(b"\0", b"\0"));
    }

    #[test]
    fn an_empty_range_needs_its_first_key() {
        let one = ranges(&[("b", "c")]);
        assert!(one.cover(b"b", b"a"));
        assert!(!one.cover(b"c", b"a"));
    }

    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(vec![0, 1, 2, 255]), 1..3)
    }

    fn range() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
        (key(), prop_oneof![Just(Vec::new()), Just(vec![0]), key()])
    }

    /// Whether a key is in a range, as the words say it.
    fn contains((start, end): &(Vec<u8>, Vec<u8>), key: &[u8]) -> bool {
        match &end[..] {
            [] => start == key,
            [0] => &start[..] <= key,
            end => &start[..] <= key && key < end,
        }
    }

    /// All keys of up to four bytes over the alphabet: dense enough around every bound that occurs.
    fn keys() -> Vec<Vec<u8>> {
        let mut all = vec![Vec::new()];
        let mut from = 0;
        for _ in 0..4 {
            let to = all.len();
            for at in from..to {
                for byte in [0, 1, 2, 255] {
                    let mut key: Vec<u8> = all[at].clone();
                    key.push(byte);
                    all.push(key);
                }
            }
            from = to;
        }
        all.remove(0);
        all
    }

    proptest! {
        #[test]
        fn a_range_is_covered_if_each_of_its_keys_is_in_some_range(
            granted in prop::collection::vec(range(), 0..6),
            asked in range(),
        ) {
            let mut ranges = Ranges::default();
            granted.iter().for_each(|(key, end)| ranges.insert(key, end));
            let mut inside: Vec<Vec<u8>> = keys().into_iter().filter(|key| contains(&asked, key)).collect();
            if inside.is_empty() {
                inside.push(asked.0.clone());
            }
            let each = inside.iter().all(|key| granted.iter().any(|range| contains(range, key)));
            // An open range goes on beyond the keys of the model: it needs an open range.
            let open = asked.1 == [0] && !granted.iter().any(|(_, end)| *end == [0]);
            prop_assert_eq!(ranges.cover(&asked.0, &asked.1), each && !open);
        }
    }
}
