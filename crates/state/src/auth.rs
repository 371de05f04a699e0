//! Users, roles and what they may do: etcd's Auth as replicated state.
//!
//! ```text
//! user ──has──► roles ──grant──► (key range, read | write | both)        role "root": everything
//! ```
//! A change enters the log like any other command, so all replicas take it at one point (A12). A command that
//! was checked before is checked again when it is applied: it carries who asks as a [`Caller`], and what counts
//! is what that caller may do at this point of the log. A command without a caller is refused as soon as
//! authentication is on, also if it was proposed while it was off.
//!
//! Where etcd refuses a command because *any* change of users or roles came between its check and its apply
//! ("revision of auth store is old"), it is here only refused if that user's own password was changed or the
//! user was deleted: everything else is checked against the present state anyway.
//!
//! - [`change`]: what can change. [`guard`]: what each command needs. [`role`], [`ranges`]: permissions.
//!
//! Passwords are hashed and tokens are made and verified outside: this module only keeps the hashes, and the key
//! that tokens are signed with, so that each server verifies what another one issued.

pub mod change;
pub mod error;
pub(crate) mod guard;
mod ranges;
pub mod role;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use self::{
    change::AuthChange,
    error::AuthError,
    role::{Access, Permission, PermissionKind},
};
use self::{ranges::Ranges, role::Role};
use crate::store::digest::Digest;

/// The user that must exist, with the role of the same name, before authentication can be enabled, and the role
/// that may do everything.
pub const ROOT: &str = "root";

/// Most users.
pub const USERS_MAX: usize = 10_000;

/// Most roles.
pub const ROLES_MAX: usize = 10_000;

/// Most permissions of one role.
pub const PERMISSIONS_MAX: usize = 1_000;

/// Most bytes of all users, roles and permissions together. They are one record of an image, and are copied when
/// they change.
pub const AUTH_BYTES_MAX: usize = 16 << 20;

/// What an entry takes beside the variable parts, roughly.
const ENTRY_BYTES: usize = 16;

/// Longest name of a user or a role, in bytes.
pub const AUTH_NAME_BYTES_MAX: usize = 256;

/// Who asks for a command.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Caller {
    /// Nobody said who they are.
    #[default]
    Anonymous,
    /// A user who showed a valid token.
    User {
        /// The name.
        name: String,
        /// [`AuthState::since`] of the user when the token was checked.
        since: u64,
    },
    /// A server itself, for what it cleans up. Never taken from a request.
    Server,
}

/// Users, roles and whether they count. Empty and off at first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuthState {
    enabled: bool,
    /// Grows with each change; etcd's "auth revision".
    revision: u64,
    /// What tokens are signed with; empty while authentication is off, new each time it is enabled.
    token_key: Bytes,
    users: BTreeMap<String, User>,
    roles: BTreeMap<String, Role>,
}

/// One user.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct User {
    /// None: cannot log in with a password.
    password_hash: Option<String>,
    roles: BTreeSet<String>,
    /// The auth revision at which the password was set.
    since: u64,
    /// What all roles together allow. Follows from `roles`, so it is not stored.
    #[serde(skip)]
    may: Granted,
}

/// Keys that may be read and written.
#[derive(Debug, Clone, Default, PartialEq)]
struct Granted {
    read: Ranges,
    write: Ranges,
}

/// Someone whose name is known to be theirs.
enum Known<'a> {
    Server,
    User(&'a User),
}

impl Default for AuthState {
    fn default() -> Self {
        // etcd counts from 1 as well.
        Self {
            enabled: false,
            revision: 1,
            token_key: Bytes::new(),
            users: BTreeMap::new(),
            roles: BTreeMap::new(),
        }
    }
}

impl AuthState {
    /// Whether callers are checked at all.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Grows with each change of users, roles and permissions.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// What tokens are signed with; none while authentication is off.
    pub fn token_key(&self) -> Option<&[u8]> {
        self.enabled.then_some(&self.token_key[..])
    }

    /// The hash of a user's password: none if there is no such user, `Some(None)` if the user has no password.
    pub fn password_hash(&self, user: &str) -> Option<Option<&str>> {
        self.users.get(user).map(|user| user.password_hash.as_deref())
    }

    /// The auth revision at which the user's password was set; none if there is no such user. A token that was
    /// issued for another one is not valid any more.
    pub fn since(&self, user: &str) -> Option<u64> {
        self.users.get(user).map(|user| user.since)
    }

    /// Names of all users, sorted.
    pub fn users(&self) -> impl ExactSizeIterator<Item = &str> {
        self.users.keys().map(String::as_str)
    }

    /// Names of all roles, sorted.
    pub fn roles(&self) -> impl ExactSizeIterator<Item = &str> {
        self.roles.keys().map(String::as_str)
    }

    /// A user's roles, sorted.
    ///
    /// # Errors
    /// `UserNotFound`.
    pub fn roles_of(&self, user: &str) -> Result<Vec<String>, AuthError> {
        Ok(self.user(user)?.roles.iter().cloned().collect())
    }

    /// A role's permissions, by key.
    ///
    /// # Errors
    /// `RoleNotFound`.
    pub fn permissions_of(&self, role: &str) -> Result<Vec<Permission>, AuthError> {
        self.roles
            .get(role)
            .map(Role::permissions)
            .ok_or_else(|| AuthError::RoleNotFound { role: role.into() })
    }

    /// Whether the caller is a user whom nothing is refused, or authentication is off.
    ///
    /// # Errors
    /// `NoCaller`, `OldRevision`, `UserNotFound`, `PermissionDenied`.
    pub fn check_admin(&self, caller: &Caller) -> Result<(), AuthError> {
        if !self.enabled {
            return Ok(());
        }
        if let Caller::User { name, .. } = caller
            && !self.users.contains_key(name)
        {
            return Err(AuthError::UserNotFound { user: name.clone() });
        }
        match self.identify(caller)? {
            Known::Server => Ok(()),
            Known::User(user) if user.is_root() => Ok(()),
            Known::User(_) => Err(AuthError::PermissionDenied),
        }
    }

    /// Whether the caller is any user at all, or authentication is off.
    ///
    /// # Errors
    /// `NoCaller`, `OldRevision`, `PermissionDenied` if the user was deleted.
    pub fn check_user(&self, caller: &Caller) -> Result<(), AuthError> {
        if self.enabled { self.identify(caller).map(drop) } else { Ok(()) }
    }

    /// Whether the caller is that user or may do everything.
    ///
    /// # Errors
    /// As [`AuthState::check_admin`].
    pub fn check_self_or_admin(&self, caller: &Caller, user: &str) -> Result<(), AuthError> {
        match caller {
            Caller::User { name, .. } if name == user => self.check_user(caller),
            _ => self.check_admin(caller),
        }
    }

    /// Whether the caller has that role or may do everything.
    ///
    /// # Errors
    /// As [`AuthState::check_admin`].
    pub fn check_has_role_or_admin(&self, caller: &Caller, role: &str) -> Result<(), AuthError> {
        match caller {
            Caller::User { name, .. }
                if self.users.get(name).is_some_and(|user| user.roles.contains(role)) =>
            {
                self.check_user(caller)
            }
            _ => self.check_admin(caller),
        }
    }

    /// Whether the caller may read or write all keys of a range (etcd's conventions). An empty range, which
    /// holds no key, needs what its first key needs.
    ///
    /// # Errors
    /// `NoCaller`, `OldRevision`, `PermissionDenied`.
    pub fn check_range(
        &self,
        caller: &Caller,
        access: Access,
        key: &[u8],
        range_end: &[u8],
    ) -> Result<(), AuthError> {
        if !self.enabled {
            return Ok(());
        }
        match self.identify(caller)? {
            Known::Server => Ok(()),
            Known::User(user) if user.is_root() => Ok(()),
            Known::User(user) if user.may.access(access).cover(key, range_end) => Ok(()),
            Known::User(_) => Err(AuthError::PermissionDenied),
        }
    }

    /// As [`AuthState::check_range`], for all keys under a prefix that ends in `/`.
    ///
    /// # Errors
    /// As [`AuthState::check_range`].
    pub fn check_prefix(&self, caller: &Caller, access: Access, prefix: &str) -> Result<(), AuthError> {
        // The byte after `/`.
        let end = prefix.strip_suffix('/').map(|start| format!("{start}0")).unwrap_or_default();
        self.check_range(caller, access, prefix.as_bytes(), end.as_bytes())
    }

    fn identify(&self, caller: &Caller) -> Result<Known<'_>, AuthError> {
        match caller {
            Caller::Server => Ok(Known::Server),
            Caller::Anonymous => Err(AuthError::NoCaller),
            Caller::User { name, since } => match self.users.get(name) {
                Some(user) if user.since == *since => Ok(Known::User(user)),
                Some(_) => Err(AuthError::OldRevision),
                None => Err(AuthError::PermissionDenied),
            },
        }
    }

    fn user(&self, name: &str) -> Result<&User, AuthError> {
        self.users.get(name).ok_or_else(|| AuthError::UserNotFound { user: name.to_owned() })
    }

    /// Works out anew what the chosen users may do.
    fn refresh(&mut self, chosen: impl Fn(&str, &User) -> bool) {
        for (name, user) in &mut self.users {
            if !chosen(name, user) {
                continue;
            }
            user.may = Granted::default();
            for role in user.roles.iter().filter_map(|role| self.roles.get(role)) {
                role.add_to(&mut user.may);
            }
        }
    }

    /// As it stands in an image.
    pub(crate) fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("a vector takes any record of plain fields")
    }

    /// Undoes [`AuthState::encode`].
    ///
    /// # Errors
    /// Says why not.
    pub(crate) fn decode(encoded: &[u8]) -> Result<Self, String> {
        let mut state: Self =
            postcard::from_bytes(encoded).map_err(|error| format!("unreadable users and roles: {error}"))?;
        state.refresh(|_, _| true);
        Ok(state)
    }

    /// A hash of all of it.
    pub(crate) fn digest(&self) -> u64 {
        Digest::new(DIGEST_DOMAIN).bytes(&self.encode()).finish()
    }

    /// What it takes, as counted against [`AUTH_BYTES_MAX`]. Walks over all of it, which changes of users and
    /// roles are rare enough for.
    fn bytes(&self) -> usize {
        let user = |(name, user): (&String, &User)| {
            let hash = user.password_hash.as_ref().map_or(0, String::len);
            ENTRY_BYTES
                + name.len()
                + hash
                + user.roles.iter().map(|role| ENTRY_BYTES + role.len()).sum::<usize>()
        };
        let role = |(name, role): (&String, &Role)| ENTRY_BYTES + name.len() + role.bytes();
        self.users.iter().map(user).sum::<usize>() + self.roles.iter().map(role).sum::<usize>()
    }
}

impl User {
    fn is_root(&self) -> bool {
        self.roles.contains(ROOT)
    }
}

impl Granted {
    fn access(&self, access: Access) -> &Ranges {
        match access {
            Access::Read => &self.read,
            Access::Write => &self.write,
        }
    }
}

const DIGEST_DOMAIN: u64 = 11;

#[cfg(test)]
mod tests;
