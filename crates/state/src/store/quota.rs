//! How many bytes may exist under a prefix.
//!
//! What counts are keys that exist now, with their values: history is bounded elsewhere, so that a quota is
//! free again as soon as keys are deleted, without a ritual (P01). A command is refused if it would bring a
//! quota above its hard mark, or further above it; what makes less of it always passes, and so do deletes, the
//! end of leases, compactions and Weft's own keys. The soft mark refuses nothing: it is there to be seen.

use std::{collections::BTreeMap, ops::Bound};

use bytes::Bytes;

use crate::{
    command::Quota,
    error::StoreError,
    store::{KEY_BYTES_MAX, RESERVED_PREFIX, digest::Digest},
};

/// Most quotas. Each change of a key looks at those whose prefixes it has.
pub const QUOTAS_MAX: usize = 1_000;

/// A quota as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaView {
    /// What keys begin with; empty is all keys but Weft's own.
    pub prefix: Bytes,
    /// The marks.
    pub quota: Quota,
    /// Bytes of the keys that exist and of their values.
    pub used_bytes: u64,
}

/// All quotas.
#[derive(Debug, Clone, Default)]
pub(crate) struct Quotas {
    by_prefix: BTreeMap<Bytes, Entry>,
    /// What was used before the command under way, for each quota that it changed.
    before: Vec<(Bytes, u64)>,
}

#[derive(Debug, Clone)]
struct Entry {
    quota: Quota,
    used_bytes: u64,
    /// The longest other prefix that this one begins with.
    parent: Option<Bytes>,
}

/// Refuses what no quota can be.
pub(crate) fn check(prefix: &[u8], quota: Option<Quota>) -> Result<(), StoreError> {
    if prefix.starts_with(RESERVED_PREFIX) {
        return Err(StoreError::ReservedKey);
    }
    if prefix.len() > KEY_BYTES_MAX {
        return Err(StoreError::KeyTooLong { seen: prefix.len() as u64, limit: KEY_BYTES_MAX as u64 });
    }
    match quota {
        Some(Quota { soft_bytes, hard_bytes }) if soft_bytes > hard_bytes || hard_bytes == 0 => {
            Err(StoreError::QuotaMarks { soft_bytes, hard_bytes })
        }
        _ => Ok(()),
    }
}

impl Quotas {
    /// Sets a quota; `used_bytes` is what is there now.
    pub(crate) fn set(&mut self, prefix: Bytes, quota: Quota, used_bytes: u64) -> Result<(), StoreError> {
        let entry = Entry { quota, used_bytes, parent: None };
        if self.by_prefix.len() >= QUOTAS_MAX && !self.by_prefix.contains_key(&prefix) {
            return Err(StoreError::Full {
                what: "the table of quotas".to_owned(),
                limit: QUOTAS_MAX as u64,
            });
        }
        self.by_prefix.insert(prefix, entry);
        self.find_parents();
        Ok(())
    }

    /// Takes a quota away; nothing happens if there is none.
    pub(crate) fn unset(&mut self, prefix: &[u8]) {
        self.by_prefix.remove(prefix);
        self.find_parents();
    }

    /// Sorted by prefix.
    pub(crate) fn iter(&self) -> impl Iterator<Item = QuotaView> {
        self.by_prefix.iter().map(|(prefix, entry)| QuotaView {
            prefix: prefix.clone(),
            quota: entry.quota,
            used_bytes: entry.used_bytes,
        })
    }

    /// A command begins.
    pub(crate) fn begin(&mut self) {
        self.before.clear();
    }

    /// A key has `now` bytes with its value instead of `before`; 0 is that it does not exist.
    pub(crate) fn changed(&mut self, key: &[u8], before: u64, now: u64) {
        if self.by_prefix.is_empty() || before == now || key.starts_with(RESERVED_PREFIX) {
            return;
        }
        // Whatever sorts between a prefix of the key and the key begins with that prefix too: all prefixes of
        // the key are among the nearest one and its parents.
        let below = (Bound::Unbounded, Bound::Included(key));
        let nearest = self.by_prefix.range::<[u8], _>(below).next_back();
        let mut at = nearest.map(|(prefix, _)| prefix.clone());
        while let Some(prefix) = at {
            let Some(entry) = self.by_prefix.get_mut(&prefix) else { return };
            at = entry.parent.clone();
            if key.starts_with(&prefix) {
                if !self.before.iter().any(|(known, _)| *known == prefix) {
                    self.before.push((prefix, entry.used_bytes));
                }
                entry.used_bytes = entry.used_bytes - before + now;
            }
        }
    }

    /// Refuses the command under way if it brought a quota above its hard mark, or further above it.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        for (prefix, before) in &self.before {
            let Some(entry) = self.by_prefix.get(prefix) else { continue };
            if entry.used_bytes > entry.quota.hard_bytes && entry.used_bytes > *before {
                return Err(StoreError::SpaceExceeded {
                    prefix: String::from_utf8_lossy(prefix).into_owned(),
                    used_bytes: *before,
                    needed_bytes: entry.used_bytes - before,
                    limit: entry.quota.hard_bytes,
                });
            }
        }
        Ok(())
    }

    pub(crate) fn digest(&self) -> u64 {
        let of = |(prefix, entry): (&Bytes, &Entry)| {
            let Quota { soft_bytes, hard_bytes } = entry.quota;
            Digest::new(QUOTA).bytes(prefix).word(soft_bytes).word(hard_bytes).finish()
        };
        self.by_prefix.iter().map(of).fold(0, u64::wrapping_add)
    }

    fn find_parents(&mut self) {
        let mut open: Vec<Bytes> = Vec::new();
        for (prefix, entry) in &mut self.by_prefix {
            while open.last().is_some_and(|last| !prefix.starts_with(last)) {
                open.pop();
            }
            entry.parent = open.last().cloned();
            open.push(prefix.clone());
        }
    }
}

/// Domain of a quota's hash.
const QUOTA: u64 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_counts_for_every_prefix_that_it_has_and_for_no_other() {
        let mut quotas = Quotas::default();
        let quota = Quota { soft_bytes: 1, hard_bytes: 1_000 };
        for prefix in ["", "a", "ab", "abc", "abd", "b", "aa/"] {
            quotas.set(prefix.into(), quota, 0).unwrap();
        }
        for (key, counts_for) in [
            ("abcd", vec!["", "a", "ab", "abc"]),
            ("abb", vec!["", "a", "ab"]),
            ("aa", vec!["", "a"]),
            ("aa/x", vec!["", "a", "aa/"]),
            ("b", vec!["", "b"]),
            ("c", vec![""]),
            ("weft/lock", vec![]),
        ] {
            quotas.changed(key.as_bytes(), 0, 10);
            let used: Vec<_> =
                quotas.iter().filter(|view| view.used_bytes > 0).map(|view| view.prefix).collect();
            assert_eq!(used, counts_for, "{key}");
            quotas.changed(key.as_bytes(), 10, 0);
        }
    }
}
