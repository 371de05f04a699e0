//! The MVCC key-value store.

pub mod image;
