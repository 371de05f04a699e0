//! Changes of users, roles and permissions, as etcd's Auth service has them.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    AUTH_BYTES_MAX, AUTH_NAME_BYTES_MAX, AuthError, AuthState, ENTRY_BYTES, Granted, PERMISSIONS_MAX,
    Permission, ROLES_MAX, ROOT, USERS_MAX, User, role::Role,
};
use crate::error::StoreError;

/// One change. All but the first need the role `root` once authentication is on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AuthChange {
    /// From here on callers are checked. Nothing happens if they are already.
    Enable {
        /// Random; what tokens are signed with until authentication is disabled.
        token_key: Bytes,
    },
    /// From here on they are not; all tokens are void. Users and roles stay.
    Disable,
    /// A new user without roles.
    UserAdd {
        /// 1 to [`AUTH_NAME_BYTES_MAX`] bytes.
        user: String,
        /// Hash of the password; none: the user cannot log in with one.
        password_hash: Option<String>,
    },
    /// A user is gone, and all their tokens are void.
    UserDelete {
        /// The name.
        user: String,
    },
    /// A new password; all tokens of the user are void. A user without a password keeps none.
    UserChangePassword {
        /// The name.
        user: String,
        /// Hash of the new password.
        password_hash: String,
    },
    /// A user has one role more. Nothing happens if they have it.
    UserGrantRole {
        /// The user.
        user: String,
        /// The role; `root` need not exist.
        role: String,
    },
    /// A user has one role less.
    UserRevokeRole {
        /// The user.
        user: String,
        /// The role.
        role: String,
    },
    /// A new role without permissions.
    RoleAdd {
        /// 1 to [`AUTH_NAME_BYTES_MAX`] bytes.
        role: String,
    },
    /// A role is gone, also from all users.
    RoleDelete {
        /// The role.
        role: String,
    },
    /// A role allows more, or, if it has a permission of exactly this range, something else there.
    RoleGrantPermission {
        /// The role.
        role: String,
        /// What it allows where.
        permission: Permission,
    },
    /// A role does not have the permission of exactly this range any more.
    RoleRevokePermission {
        /// The role.
        role: String,
        /// First key.
        key: Bytes,
        /// As granted.
        range_end: Bytes,
    },
}

impl AuthChange {
    /// What it adds at most, as [`AuthState::bytes`] counts it.
    fn bytes(&self) -> usize {
        match self {
            Self::UserAdd { user, password_hash } => {
                ENTRY_BYTES + user.len() + password_hash.as_ref().map_or(0, String::len)
            }
            Self::UserChangePassword { password_hash, .. } => password_hash.len(),
            Self::UserGrantRole { role, .. } | Self::RoleAdd { role } => ENTRY_BYTES + role.len(),
            Self::RoleGrantPermission { permission, .. } => {
                ENTRY_BYTES + permission.key.len() + permission.range_end.len()
            }
            _ => 0,
        }
    }
}

impl AuthState {
    /// Carries one change out; refused, it has changed nothing.
    pub(crate) fn change(self: &mut Arc<Self>, change: &AuthChange) -> Result<(), StoreError> {
        // Readers hold the state as it was; it is checked first so that a refusal copies nothing.
        if self.refuse(change)? == Effect::None {
            return Ok(());
        }
        let added = change.bytes();
        if added > 0 && self.bytes() + added > AUTH_BYTES_MAX {
            let what = "the room for users, roles and permissions, in bytes,".to_owned();
            return Err(StoreError::Full { what, limit: AUTH_BYTES_MAX as u64 });
        }
        let state = Arc::make_mut(self);
        if !matches!(change, AuthChange::Enable { .. }) {
            state.revision += 1;
        }
        state.carry_out(change);
        Ok(())
    }

    fn refuse(&self, change: &AuthChange) -> Result<Effect, StoreError> {
        let role_exists = |role: &str| match self.roles.get(role) {
            Some(role) => Ok(role),
            None => Err(AuthError::RoleNotFound { role: role.to_owned() }),
        };
        match change {
            AuthChange::Enable { .. } => {
                if self.enabled {
                    return Ok(Effect::None);
                }
                let root = self.users.get(ROOT).ok_or(AuthError::RootUserMissing)?;
                if !root.is_root() {
                    return Err(AuthError::RootRoleMissing.into());
                }
            }
            AuthChange::Disable => {
                if !self.enabled {
                    return Ok(Effect::None);
                }
            }
            AuthChange::UserAdd { user, .. } => {
                check_name(user, AuthError::UserNameEmpty)?;
                if self.users.contains_key(user) {
                    return Err(AuthError::UserExists { user: user.clone() }.into());
                }
                check_room("the table of users", self.users.len(), USERS_MAX)?;
            }
            AuthChange::UserDelete { user } => {
                if self.enabled && user == ROOT {
                    return Err(AuthError::RootNeeded.into());
                }
                self.user(user)?;
            }
            AuthChange::UserChangePassword { user, .. } => {
                self.user(user)?;
            }
            AuthChange::UserGrantRole { user, role } => {
                let user = self.user(user)?;
                if role != ROOT {
                    role_exists(role)?;
                }
                if user.roles.contains(role) {
                    return Ok(Effect::None);
                }
            }
            AuthChange::UserRevokeRole { user, role } => {
                if self.enabled && user == ROOT && role == ROOT {
                    return Err(AuthError::RootNeeded.into());
                }
                if !self.user(user)?.roles.contains(role) {
                    let (user, role) = (user.clone(), role.clone());
                    return Err(AuthError::RoleNotGranted { user, role }.into());
                }
            }
            AuthChange::RoleAdd { role } => {
                check_name(role, AuthError::RoleNameEmpty)?;
                if self.roles.contains_key(role) {
                    return Err(AuthError::RoleExists { role: role.clone() }.into());
                }
                check_room("the table of roles", self.roles.len(), ROLES_MAX)?;
            }
            AuthChange::RoleDelete { role } => {
                if self.enabled && role == ROOT {
                    return Err(AuthError::RootNeeded.into());
                }
                role_exists(role)?;
            }
            AuthChange::RoleGrantPermission { role, permission } => {
                permission.check()?;
                let found = role_exists(role)?;
                if !found.has(&permission.key, &permission.range_end) {
                    check_room("the role's list of permissions", found.len(), PERMISSIONS_MAX)?;
                }
            }
            AuthChange::RoleRevokePermission { role, key, range_end } => {
                if !role_exists(role)?.has(key, range_end) {
                    return Err(AuthError::PermissionNotGranted { role: role.clone() }.into());
                }
            }
        }
        Ok(Effect::Some)
    }

    /// A change that is not refused.
    fn carry_out(&mut self, change: &AuthChange) {
        let since = self.revision;
        match change {
            AuthChange::Enable { token_key } => {
                self.enabled = true;
                self.token_key = token_key.clone();
            }
            AuthChange::Disable => {
                self.enabled = false;
                self.token_key = Bytes::new();
            }
            AuthChange::UserAdd { user, password_hash } => {
                let added = User {
                    password_hash: password_hash.clone(),
                    roles: BTreeSet::new(),
                    since,
                    may: Granted::default(),
                };
                self.users.insert(user.clone(), added);
            }
            AuthChange::UserDelete { user } => {
                self.users.remove(user);
            }
            AuthChange::UserChangePassword { user, password_hash } => {
                if let Some(user) = self.users.get_mut(user) {
                    user.since = since;
                    if user.password_hash.is_some() {
                        user.password_hash = Some(password_hash.clone());
                    }
                }
            }
            AuthChange::UserGrantRole { user, role } => {
                if let Some(user) = self.users.get_mut(user) {
                    user.roles.insert(role.clone());
                }
                self.refresh(|name, _| name == user);
            }
            AuthChange::UserRevokeRole { user, role } => {
                if let Some(user) = self.users.get_mut(user) {
                    user.roles.remove(role);
                }
                self.refresh(|name, _| name == user);
            }
            AuthChange::RoleAdd { role } => {
                self.roles.insert(role.clone(), Role::default());
                // Users may have had the role root before it had permissions of its own.
                self.refresh(|_, user| user.roles.contains(role));
            }
            AuthChange::RoleDelete { role } => {
                self.roles.remove(role);
                self.refresh(|_, user| user.roles.contains(role));
                for user in self.users.values_mut() {
                    user.roles.remove(role);
                }
            }
            AuthChange::RoleGrantPermission { role, permission } => {
                if let Some(role) = self.roles.get_mut(role) {
                    role.grant(permission);
                }
                self.refresh(|_, user| user.roles.contains(role));
            }
            AuthChange::RoleRevokePermission { role, key, range_end } => {
                if let Some(role) = self.roles.get_mut(role) {
                    role.revoke(key, range_end);
                }
                self.refresh(|_, user| user.roles.contains(role));
            }
        }
    }
}

/// Whether a change that is not refused has one.
#[derive(Debug, PartialEq, Eq)]
enum Effect {
    Some,
    None,
}

fn check_name(name: &str, empty: AuthError) -> Result<(), StoreError> {
    match name.len() {
        0 => Err(empty.into()),
        1..=AUTH_NAME_BYTES_MAX => Ok(()),
        seen => Err(StoreError::NameOutOfRange { seen: seen as u64, limit: AUTH_NAME_BYTES_MAX as u64 }),
    }
}

fn check_room(what: &str, present: usize, limit: usize) -> Result<(), StoreError> {
    if present < limit {
        Ok(())
    } else {
        Err(StoreError::Full { what: what.to_owned(), limit: limit as u64 })
    }
}
