//! Why a caller is refused, or a change of users and roles changed nothing.

use serde::{Deserialize, Serialize};

/// A refusal. Every replica refuses alike.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum AuthError {
    /// Authentication is on, and the request does not say who asks.
    #[error("authentication is on and the request carries no token: log in first")]
    NoCaller,
    /// The user's password was changed after the caller had shown a token.
    #[error("the password was changed since the token was issued: log in again")]
    OldRevision,
    /// The user's roles do not allow it.
    #[error("permission denied")]
    PermissionDenied,
    /// Authentication cannot be enabled without the user `root`.
    #[error("root user does not exist: add a user named root first")]
    RootUserMissing,
    /// Authentication cannot be enabled if nobody may administer it.
    #[error("root user does not have root role: grant the role root to the user root first")]
    RootRoleMissing,
    /// A user without a name.
    #[error("user name is empty")]
    UserNameEmpty,
    /// There is a user of that name.
    #[error("user {user} exists already")]
    UserExists {
        /// The name.
        user: String,
    },
    /// There is no user of that name.
    #[error("user {user} does not exist")]
    UserNotFound {
        /// The name.
        user: String,
    },
    /// A role without a name.
    #[error("role name is empty")]
    RoleNameEmpty,
    /// There is a role of that name.
    #[error("role {role} exists already")]
    RoleExists {
        /// The name.
        role: String,
    },
    /// There is no role of that name.
    #[error("role {role} does not exist")]
    RoleNotFound {
        /// The name.
        role: String,
    },
    /// The user does not have the role that is to be taken away.
    #[error("role {role} is not granted to user {user}")]
    RoleNotGranted {
        /// The user.
        user: String,
        /// The role.
        role: String,
    },
    /// The role does not have the permission that is to be taken away.
    #[error("no permission of exactly this range is granted to role {role}")]
    PermissionNotGranted {
        /// The role.
        role: String,
    },
    /// The user `root` and the role `root` cannot be taken away while authentication is on.
    #[error("the user root and its role root are needed while authentication is on: disable it first")]
    RootNeeded,
    /// A permission over a range that holds no key.
    #[error("permission over an empty range: the key must not be empty and must come before the range end")]
    EmptyRange,
}
