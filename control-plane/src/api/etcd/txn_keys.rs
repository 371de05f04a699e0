//! Which keys a transaction touches, to refuse one that would change a key twice: revisions have one event
//! for a key at most. Two puts of a key and a put of a key in a deleted range clash, wherever in the nested
//! transactions they stand; the two branches of one transaction do not, since only one of them runs.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bytes::Bytes;
use weft_state::command::{Txn, TxnOp};
use weft_state::error::StoreError;

/// Refuses with [`StoreError::DuplicateKey`]. Runs in `O(n log n)` comparisons of keys.
pub fn check(txn: &Txn) -> Result<(), StoreError> {
    touched_by_txn(txn).map(drop)
}

#[derive(Default)]
struct Touched {
    puts: BTreeSet<Bytes>,
    deletes: Ranges,
}

fn touched_by_txn(txn: &Txn) -> Result<Touched, StoreError> {
    let mut touched = touched_by_ops(&txn.success)?;
    touched.merge(touched_by_ops(&txn.failure)?);
    Ok(touched)
}

fn touched_by_ops(ops: &[TxnOp]) -> Result<Touched, StoreError> {
    let mut all = Touched::default();
    for op in ops {
        let mut one = Touched::default();
        match op {
            TxnOp::Range(_) => continue,
            TxnOp::Put(put) => {
                one.puts.insert(put.key.clone());
            }
            TxnOp::DeleteRange(delete) => one.deletes.insert(&delete.key, &delete.range_end),
            TxnOp::Txn(txn) => one = touched_by_txn(txn)?,
        }
        if all.clashes_with(&one) {
            return Err(StoreError::DuplicateKey);
        }
        all.merge(one);
    }
    Ok(all)
}

impl Touched {
    fn clashes_with(&self, other: &Touched) -> bool {
        // Ordered sets of very different size are common here (all so far against one more), so look the
        // smaller one's keys up in the larger.
        let (small, large) = if self.puts.len() < other.puts.len() { (self, other) } else { (other, self) };
        small.puts.iter().any(|key| large.puts.contains(key))
            || other.puts.iter().any(|key| self.deletes.contains(key))
            || other.deletes.0.iter().any(|(start, end)| self.puts_within(start, end.as_ref()))
    }

    fn puts_within(&self, start: &Bytes, end: Option<&Bytes>) -> bool {
        let end = end.map_or(Bound::Unbounded, Bound::Excluded);
        self.puts.range::<Bytes, _>((Bound::Included(start), end)).next().is_some()
    }

    fn merge(&mut self, other: Touched) {
        if self.puts.len() < other.puts.len() {
            let smaller = std::mem::replace(&mut self.puts, other.puts);
            self.puts.extend(smaller);
        } else {
            self.puts.extend(other.puts);
        }
        for (start, end) in other.deletes.0 {
            self.deletes.add(start, end);
        }
    }
}

/// Disjoint half-open ranges by start; no end means "to the last key".
#[derive(Default)]
struct Ranges(BTreeMap<Bytes, Option<Bytes>>);

impl Ranges {
    /// etcd's conventions: an empty end is the single key, `"\0"` is everything from the key on.
    fn insert(&mut self, key: &Bytes, range_end: &Bytes) {
        let end = match range_end.as_ref() {
            b"" => Some(Bytes::from([key.as_ref(), b"\0"].concat())),
            b"\0" => None,
            _ if range_end <= key => return,
            _ => Some(range_end.clone()),
        };
        self.add(key.clone(), end);
    }

    fn add(&mut self, mut start: Bytes, mut end: Option<Bytes>) {
        // Swallow what overlaps or touches: the one that starts before, and those that start inside.
        if let Some((before, before_end)) = self.0.range(..=start.clone()).next_back()
            && before_end.as_ref().is_none_or(|e| *e >= start)
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

    fn contains(&self, key: &Bytes) -> bool {
        self.0
            .range::<Bytes, _>(..=key)
            .next_back()
            .is_some_and(|(_, end)| end.as_ref().is_none_or(|end| key < end))
    }
}

#[cfg(test)]
mod tests {
    use weft_state::command::{DeleteRange, Put};

    use super::*;

    fn put(key: &'static str) -> TxnOp {
        TxnOp::Put(Put { key: Bytes::from_static(key.as_bytes()), ..Default::default() })
    }

    fn delete(key: &'static str, end: &'static str) -> TxnOp {
        TxnOp::DeleteRange(DeleteRange {
            key: Bytes::from_static(key.as_bytes()),
            range_end: Bytes::from_static(end.as_bytes()),
            ..Default::default()
        })
    }

    fn nested(success: Vec<TxnOp>, failure: Vec<TxnOp>) -> TxnOp {
        TxnOp::Txn(Txn { success, failure, ..Default::default() })
    }

    fn checked(success: Vec<TxnOp>) -> Result<(), StoreError> {
        check(&Txn { success, ..Default::default() })
    }

    const REFUSED: Result<(), StoreError> = Err(StoreError::DuplicateKey);

    #[test]
    fn two_puts_of_one_key_are_refused() {
        assert_eq!(checked(vec![put("a"), put("b")]), Ok(()));
        assert_eq!(checked(vec![put("a"), put("a")]), REFUSED);
    }

    #[test]
    fn a_put_inside_a_deleted_range_is_refused_in_either_order() {
        assert_eq!(checked(vec![delete("a", "c"), put("b")]), REFUSED);
        assert_eq!(checked(vec![put("b"), delete("a", "c")]), REFUSED);
        assert_eq!(checked(vec![put("b"), delete("b", "")]), REFUSED);
        assert_eq!(checked(vec![put("b"), delete("a", "\0")]), REFUSED);
        assert_eq!(checked(vec![put("c"), delete("a", "c")]), Ok(()));
        assert_eq!(checked(vec![put("b\0"), delete("b", "")]), Ok(()));
    }

    #[test]
    fn overlapping_deletes_and_empty_ranges_are_allowed() {
        assert_eq!(checked(vec![delete("a", "c"), delete("b", "d"), delete("b", "")]), Ok(()));
        assert_eq!(checked(vec![put("b"), delete("c", "a")]), Ok(()));
    }

    #[test]
    fn branches_may_repeat_keys_but_what_surrounds_them_may_not() {
        let both = || nested(vec![put("a")], vec![put("a"), delete("x", "z")]);
        assert_eq!(checked(vec![both()]), Ok(()));
        assert_eq!(checked(vec![both(), put("a")]), REFUSED);
        assert_eq!(checked(vec![put("y"), both()]), REFUSED);
        assert_eq!(checked(vec![both(), both()]), REFUSED);
        assert_eq!(
            check(&Txn { success: vec![put("a")], failure: vec![put("a")], ..Default::default() }),
            Ok(())
        );
    }

    #[test]
    fn merged_ranges_contain_what_their_parts_did() {
        let mut ranges = Ranges::default();
        for (start, end) in [("f", "h"), ("a", "c"), ("b", "d"), ("c", "f"), ("x", "")] {
            ranges.insert(&Bytes::from_static(start.as_bytes()), &Bytes::from_static(end.as_bytes()));
        }
        let inside = |key: &'static str| ranges.contains(&Bytes::from_static(key.as_bytes()));
        for key in ["a", "bz", "c", "e", "g", "x"] {
            assert!(inside(key), "{key}");
        }
        for key in ["A", "h", "w", "x\0", "z"] {
            assert!(!inside(key), "{key}");
        }
        assert_eq!(ranges.0.len(), 2);
    }
}
