//! The key-value store as etcd defines it: puts, gets, deletes and transactions, with all revisions that answers tell.
//!
//! A call is a transaction; single operations are transactions without compares. Revisions are those of the whole
//! store, and of a part of a history only some are seen, so the state keeps a lower bound; the write of an operation
//! whose answer was lost has a revision that is unknown until somebody reads it.

mod learn;
mod model;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

pub use learn::{Learnt, learn};
pub use model::{KvModel, Live, Stamp, State};

/// A key.
pub type Key = Arc<str>;
/// A value. Histories in which every written value is unique say most.
pub type Value = Arc<str>;

/// One operation of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Op {
    Get(Key),
    Put(Key, Value),
    Delete(Key),
}

/// What a compare looks at, and what that must equal. Of a missing key all numbers are zero, and no value equals its.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Expect {
    Value(Value),
    Version(i64),
    CreateRevision(i64),
    ModRevision(i64),
}

/// A call: if every compare holds then `then`, else `otherwise`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Call {
    pub compares: Vec<(Key, Expect)>,
    pub then: Vec<Op>,
    pub otherwise: Vec<Op>,
}

impl Call {
    /// Reads a key, linearizably.
    pub fn get(key: impl Into<Key>) -> Self {
        Self::from(Op::Get(key.into()))
    }

    /// Writes a key.
    pub fn put(key: impl Into<Key>, value: impl Into<Value>) -> Self {
        Self::from(Op::Put(key.into(), value.into()))
    }

    /// Deletes a key.
    pub fn delete(key: impl Into<Key>) -> Self {
        Self::from(Op::Delete(key.into()))
    }

    /// Writes a key if it is as it was seen, and reads it if it is not.
    pub fn cas(key: impl Into<Key>, expect: Expect, value: impl Into<Value>) -> Self {
        let key = key.into();
        Self {
            compares: vec![(key.clone(), expect)],
            then: vec![Op::Put(key.clone(), value.into())],
            otherwise: vec![Op::Get(key)],
        }
    }

    /// Whether neither branch writes.
    pub fn is_read(&self) -> bool {
        self.then.iter().chain(&self.otherwise).all(|op| matches!(op, Op::Get(_)))
    }

    /// The operations that run, by whether all compares held.
    pub fn branch(&self, succeeded: bool) -> &[Op] {
        if succeeded { &self.then } else { &self.otherwise }
    }
}

impl From<Op> for Call {
    fn from(op: Op) -> Self {
        Self { then: vec![op], ..Self::default() }
    }
}

/// A key as an answer shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct KeyValue {
    pub value: Value,
    pub create_revision: i64,
    pub mod_revision: i64,
    pub version: i64,
}

/// What an operation of a transaction answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// The key, if it was there.
    Got(Option<KeyValue>),
    /// The put was done.
    Put,
    /// How many keys were deleted.
    Deleted(i64),
}

/// An answer. What is `None` was not seen, and anything would have been right there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// The store's revision after the call.
    pub revision: Option<i64>,
    /// Which branch ran.
    pub succeeded: Option<bool>,
    /// One for each operation of the branch.
    pub seen: Option<Vec<Seen>>,
}

impl Answer {
    /// A whole answer to a call without compares.
    pub fn of(revision: i64, seen: Seen) -> Self {
        Self { revision: Some(revision), succeeded: Some(true), seen: Some(vec![seen]) }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Get(key) => write!(f, "get {key}"),
            Self::Put(key, value) => write!(f, "put {key}={value}"),
            Self::Delete(key) => write!(f, "delete {key}"),
        }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) => write!(f, "={value}"),
            Self::Version(version) => write!(f, ".version={version}"),
            Self::CreateRevision(revision) => write!(f, ".create={revision}"),
            Self::ModRevision(revision) => write!(f, ".mod={revision}"),
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.compares.is_empty() {
            return f.write_str(&list(&self.then));
        }
        let compares: Vec<_> = self.compares.iter().map(|(key, expect)| format!("{key}{expect}")).collect();
        let (then, otherwise) = (list(&self.then), list(&self.otherwise));
        write!(f, "if {} {{ {then} }} else {{ {otherwise} }}", compares.join(" and "))
    }
}

impl fmt::Display for KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { value, create_revision, mod_revision, version } = self;
        write!(f, "{value} (mod {mod_revision}, create {create_revision}, version {version})")
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Got(None) => f.write_str("nothing"),
            Self::Got(Some(kv)) => write!(f, "{kv}"),
            Self::Put => f.write_str("done"),
            Self::Deleted(count) => write!(f, "{count} deleted"),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.succeeded {
            Some(false) => f.write_str("compares failed: ")?,
            Some(true) => {}
            None => f.write_str("either branch: ")?,
        }
        match &self.seen {
            Some(seen) => f.write_str(&list(seen))?,
            None => f.write_str("took effect")?,
        }
        match self.revision {
            Some(revision) => write!(f, " at revision {revision}"),
            None => Ok(()),
        }
    }
}

fn list<T: fmt::Display>(all: &[T]) -> String {
    all.iter().map(T::to_string).collect::<Vec<_>>().join("; ")
}
