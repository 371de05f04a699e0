//! A value as the store holds it.

use bytes::Bytes;

/// A value in 16 bytes and one allocation. Small ones are copied for each reader, which costs about as much
/// as counting references, and so take nothing beside their bytes; larger ones are shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    /// At most [`SMALL_BYTES_MAX`].
    Small(Box<[u8]>),
    Large(Box<Bytes>),
}

/// Bytes of a value up to which it is copied.
const SMALL_BYTES_MAX: usize = 1024;

impl Value {
    /// Takes no memory.
    pub(crate) fn empty() -> Self {
        Self::Small(Box::default())
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Small(value) => value,
            Self::Large(value) => value,
        }
    }

    pub(crate) fn to_bytes(&self) -> Bytes {
        match self {
            Self::Small(value) => Bytes::copy_from_slice(value),
            Self::Large(value) => Bytes::clone(value),
        }
    }
}

impl From<&Bytes> for Value {
    fn from(value: &Bytes) -> Self {
        if value.len() <= SMALL_BYTES_MAX {
            Self::Small(value[..].into())
        } else {
            Self::Large(Box::new(value.clone()))
        }
    }
}

impl From<&[u8]> for Value {
    fn from(value: &[u8]) -> Self {
        if value.len() <= SMALL_BYTES_MAX {
            Self::Small(value.into())
        } else {
            Self::Large(Box::new(Bytes::copy_from_slice(value)))
        }
    }
}
