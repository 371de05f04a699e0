//! A key as the store holds it.

use std::{borrow::Borrow, ops::Deref, sync::Arc};

use bytes::Bytes;

/// A key, shared by the index, the changes and the leases: 16 bytes in each, where [`Bytes`] takes 32 and a
/// second allocation. Callers get a copy, as keys are short.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(Arc<[u8]>);

impl Key {
    pub(crate) fn to_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }
}

impl From<&[u8]> for Key {
    fn from(key: &[u8]) -> Self {
        Self(key.into())
    }
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}
