//! Roles: named sets of permissions over key ranges.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{ENTRY_BYTES, Granted, error::AuthError};

/// What is done with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Its value is told.
    Read,
    /// It is put or deleted.
    Write,
}

/// What a permission allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PermissionKind {
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Both.
    ReadWrite,
}

/// What a role allows for one range of keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permission {
    /// Reading, writing or both.
    pub kind: PermissionKind,
    /// First key; 1 byte or more.
    pub key: Bytes,
    /// End of the range, exclusive; etcd's conventions: empty for the one key, `"\0"` for everything from `key` on.
    pub range_end: Bytes,
}

impl Permission {
    /// # Errors
    /// `EmptyRange`.
    pub(super) fn check(&self) -> Result<(), AuthError> {
        let has_keys = self.range_end.is_empty() || self.range_end == b"\0"[..] || self.key < self.range_end;
        if self.key.is_empty() || !has_keys { Err(AuthError::EmptyRange) } else { Ok(()) }
    }
}

/// One role: by range, what is allowed there.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Role {
    permissions: BTreeMap<(Bytes, Bytes), PermissionKind>,
}

impl Role {
    pub(super) fn permissions(&self) -> Vec<Permission> {
        let permission = |((key, range_end), kind): (&(Bytes, Bytes), &PermissionKind)| Permission {
            kind: *kind,
            key: key.clone(),
            range_end: range_end.clone(),
        };
        self.permissions.iter().map(permission).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.permissions.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.permissions.keys().map(|(key, range_end)| ENTRY_BYTES + key.len() + range_end.len()).sum()
    }

    /// A permission of the same range is replaced.
    pub(super) fn grant(&mut self, permission: &Permission) {
        let range = (permission.key.clone(), permission.range_end.clone());
        self.permissions.insert(range, permission.kind);
    }

    pub(super) fn has(&self, key: &Bytes, range_end: &Bytes) -> bool {
        self.permissions.contains_key(&(key.clone(), range_end.clone()))
    }

    pub(super) fn revoke(&mut self, key: &Bytes, range_end: &Bytes) {
        self.permissions.remove(&(key.clone(), range_end.clone()));
    }

    pub(super) fn add_to(&self, granted: &mut Granted) {
        for ((key, range_end), kind) in &self.permissions {
            if matches!(kind, PermissionKind::Read | PermissionKind::ReadWrite) {
                granted.read.insert(key, range_end);
            }
            if matches!(kind, PermissionKind::Write | PermissionKind::ReadWrite) {
                granted.write.insert(key, range_end);
            }
        }
    }
}
