//! A hash of everything that happened, in order: two runs of one seed that differ anywhere have different ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Clones share the hash.
#[derive(Debug, Clone)]
pub(crate) struct Trace(Arc<AtomicU64>);

impl Default for Trace {
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(0xcbf2_9ce4_8422_2325)))
    }
}

impl Trace {
    /// Something happened.
    pub(crate) fn note(&self, what: &[u64]) {
        let mut hash = self.0.load(Relaxed);
        for word in what {
            hash = (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        }
        self.0.store(hash, Relaxed);
    }

    /// So far.
    pub(crate) fn hash(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_counts() {
        let (one, two) = (Trace::default(), Trace::default());
        one.note(&[1, 2]);
        two.note(&[2, 1]);
        assert_ne!(one.hash(), two.hash());
    }
}
