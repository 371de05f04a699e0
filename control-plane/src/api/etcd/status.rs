//! Refusals as gRPC answers. Client libraries recognise errors by code *and exact text* (the Go client
//! maps by text alone), so the texts here are etcd's where etcd has one. What Weft knows beyond that text
//! (the revision, the limit) travels in the `weft-detail` metadata entry.

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use weft_state::auth::AuthError;
use weft_state::error::StoreError;

use crate::api::status::too_late;
use crate::raft::{ChangeRefused, GroupChangeError, LeaseError, ProposeError};

/// Metadata entry with what was seen and allowed, in words.
pub const DETAIL: &str = "weft-detail";

/// `etcdserver: no leader`.
pub const NO_LEADER: &str = "etcdserver: no leader";
/// `etcdserver: server stopped`.
pub const STOPPED: &str = "etcdserver: server stopped";
/// `etcdserver: mvcc: database space exceeded`.
pub const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";
/// Also the reason of a watch that is canceled because history is gone.
pub const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";

/// Why a request is refused before anything is read or proposed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Refused as the state machine would refuse it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A sort order or target that does not exist.
    #[error("sort order {order} by target {target}: orders are 0 to 2, targets 0 to 4")]
    InvalidSort {
        /// Number given.
        order: i32,
        /// Number given.
        target: i32,
    },
    /// An enum value that does not exist.
    #[error("{field} {seen} is unknown: allowed are {allowed}")]
    UnknownValue {
        /// The field.
        field: &'static str,
        /// Number given.
        seen: i32,
        /// Numbers and names that exist.
        allowed: &'static str,
    },
    /// A compare says one property and carries another.
    #[error("compare target {target} comes with a value for {union}")]
    CompareMismatch {
        /// Name of `target`.
        target: &'static str,
        /// Name of the field that is set in `target_union`.
        union: &'static str,
    },
    /// The request is too large.
    #[error("request of {seen} bytes exceeds the limit of {limit} bytes")]
    TooLarge {
        /// Bytes given.
        seen: usize,
        /// Bytes allowed.
        limit: usize,
    },
}

/// The answer to a request that was refused before it ran.
pub fn request(error: &RequestError) -> Status {
    let (code, text) = match error {
        RequestError::Store(error) => return store(error),
        RequestError::InvalidSort { .. } => {
            (Code::InvalidArgument, "etcdserver: invalid sort option".to_owned())
        }
        RequestError::UnknownValue { .. } | RequestError::CompareMismatch { .. } => {
            (Code::InvalidArgument, format!("etcdserver: {error}"))
        }
        RequestError::TooLarge { .. } => {
            (Code::InvalidArgument, "etcdserver: request is too large".to_owned())
        }
    };
    detailed(code, text, error)
}

/// The answer to what the state machine refused.
pub fn store(error: &StoreError) -> Status {
    let (code, text) = match error {
        StoreError::EmptyKey => (Code::InvalidArgument, "etcdserver: key is not provided"),
        StoreError::Compacted { .. } => (Code::OutOfRange, COMPACTED),
        StoreError::FutureRevision { .. } => {
            (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision")
        }
        StoreError::KeyNotFound => (Code::InvalidArgument, "etcdserver: key not found"),
        StoreError::ValueProvided => (Code::InvalidArgument, "etcdserver: value is provided"),
        StoreError::LeaseProvided => (Code::InvalidArgument, "etcdserver: lease is provided"),
        StoreError::DuplicateKey => (Code::InvalidArgument, "etcdserver: duplicate key given in txn request"),
        StoreError::TooManyOps { .. } => {
            (Code::InvalidArgument, "etcdserver: too many operations in txn request")
        }
        StoreError::LeaseNotFound { .. } => (Code::NotFound, "etcdserver: requested lease not found"),
        StoreError::LeaseExists { .. } => (Code::FailedPrecondition, "etcdserver: lease already exists"),
        StoreError::LeaseTtlOutOfRange { .. } => (Code::OutOfRange, "etcdserver: too large lease TTL"),
        StoreError::ReservedKey => (
            Code::PermissionDenied,
            "etcdserver: permission denied: keys under weft/ are written by Weft's own APIs only",
        ),
        StoreError::Full { .. } => (Code::ResourceExhausted, "etcdserver: too many requests"),
        StoreError::SpaceExceeded { .. } => {
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded")
        }
        // etcd has no such refusals; the text is ours.
        StoreError::KeyTooLong { .. }
        | StoreError::PermitsOverLimit { .. }
        | StoreError::NameOutOfRange { .. }
        | StoreError::QuotaMarks { .. } => {
            return Status::new(Code::InvalidArgument, format!("etcdserver: {error}"));
        }
        StoreError::MeshConfigChanged { .. } => {
            return Status::new(Code::Aborted, format!("etcdserver: {error}"));
        }
        StoreError::StaleToken { .. } => {
            return Status::new(Code::FailedPrecondition, format!("etcdserver: {error}"));
        }
        StoreError::Auth(error) => return auth(error),
        StoreError::TooLateToKnow { known_from } => return too_late(error, *known_from),
        StoreError::AnswerNotKept { .. } => {
            return Status::new(Code::AlreadyExists, format!("etcdserver: {error}"));
        }
        StoreError::RequestReused { .. } => {
            return Status::new(Code::InvalidArgument, format!("etcdserver: {error}"));
        }
        StoreError::NestedEnvelope => return Status::new(Code::Internal, format!("etcdserver: {error}")),
    };
    detailed(code, text.to_owned(), error)
}

/// The answer to a caller who may not, or to a change of users and roles that could not be made.
pub fn auth(error: &AuthError) -> Status {
    let (code, text) = match error {
        AuthError::NoCaller | AuthError::UserNameEmpty => {
            (Code::InvalidArgument, "etcdserver: user name is empty")
        }
        AuthError::OldRevision => (Code::InvalidArgument, "etcdserver: revision of auth store is old"),
        AuthError::PermissionDenied => (Code::PermissionDenied, "etcdserver: permission denied"),
        AuthError::RootUserMissing => (Code::FailedPrecondition, "etcdserver: root user does not exist"),
        AuthError::RootRoleMissing => {
            (Code::FailedPrecondition, "etcdserver: root user does not have root role")
        }
        AuthError::UserExists { .. } => (Code::FailedPrecondition, "etcdserver: user name already exists"),
        AuthError::UserNotFound { .. } => (Code::FailedPrecondition, "etcdserver: user name not found"),
        AuthError::RoleNameEmpty => (Code::InvalidArgument, "etcdserver: role name is empty"),
        AuthError::RoleExists { .. } => (Code::FailedPrecondition, "etcdserver: role name already exists"),
        AuthError::RoleNotFound { .. } => (Code::FailedPrecondition, "etcdserver: role name not found"),
        AuthError::RoleNotGranted { .. } => {
            (Code::FailedPrecondition, "etcdserver: role is not granted to the user")
        }
        AuthError::PermissionNotGranted { .. } => {
            (Code::FailedPrecondition, "etcdserver: permission is not granted to the role")
        }
        AuthError::RootNeeded | AuthError::EmptyRange => {
            (Code::InvalidArgument, "etcdserver: invalid auth management")
        }
    };
    detailed(code, text.to_owned(), error)
}

/// The answer when the raft group could not carry a request out. "request timed out" says nothing about
/// whether a write happened; etcd's clients know that and do not send a write again on it.
pub fn propose(error: &ProposeError) -> Status {
    let (code, text) = match error {
        ProposeError::NoLeader { .. } | ProposeError::NotTakenIn => (Code::Unavailable, NO_LEADER),
        ProposeError::NoQuorum { .. }
        | ProposeError::OutcomeUnknown { .. }
        | ProposeError::NotAppliedHere { .. } => (Code::Unavailable, "etcdserver: request timed out"),
        ProposeError::Overloaded { .. } => (Code::ResourceExhausted, "etcdserver: too many requests"),
        ProposeError::TooLarge { .. } => (Code::InvalidArgument, "etcdserver: request is too large"),
        // etcd's text when its quota is used up, which clients know.
        ProposeError::DiskFull => (Code::ResourceExhausted, NO_SPACE),
        ProposeError::Stopped => (Code::Unavailable, STOPPED),
    };
    detailed(code, text.to_owned(), error)
}

/// The answer when a lease could not be renewed, other than because it does not exist.
pub fn lease(error: &LeaseError) -> Status {
    match error {
        LeaseError::Store(error) => store(error),
        LeaseError::Unavailable(error) => propose(error),
    }
}

/// A stream that needs a leader, or any request that asked for one, on a server without.
pub fn no_leader() -> Status {
    Status::new(Code::Unavailable, NO_LEADER)
}

/// The server is going away; clients go to another one.
pub fn stopped() -> Status {
    Status::new(Code::Unavailable, STOPPED)
}

/// The refusal of a downgrade's end where none is under way, in etcd's words.
pub fn no_downgrade() -> Status {
    Status::failed_precondition("etcdserver: no inflight downgrade job")
}

/// The refusal of a downgrade, in etcd's words: its versions are not Weft's.
pub fn downgrade_to(version: &str) -> Status {
    let detail =
        format!("weft is not etcd {version:?}: stop the server and run the weft version that you want");
    detailed(Code::InvalidArgument, "etcdserver: invalid downgrade target version".to_owned(), &detail)
}

/// An operation that Weft does not offer on this API, and what to do instead.
pub fn not_offered(what: &str, instead: &str) -> Status {
    Status::new(Code::Unimplemented, format!("etcdserver: {what} is not offered by weft: {instead}"))
}

/// The answer to a change of the group that was not made.
pub fn group_change(error: &GroupChangeError) -> Status {
    let refused = match error {
        GroupChangeError::Unavailable(error) => return propose(error),
        GroupChangeError::Refused(refused) => refused,
    };
    let (code, text) = match refused {
        ChangeRefused::Unknown { .. } => (Code::NotFound, "etcdserver: member not found"),
        ChangeRefused::LastVoter(_) | ChangeRefused::QuorumAtRisk { .. } => (
            Code::FailedPrecondition,
            "etcdserver: re-configuration failed due to not enough started members",
        ),
        ChangeRefused::Behind { .. } => (
            Code::FailedPrecondition,
            "etcdserver: can only promote a learner member which is in sync with leader",
        ),
        ChangeRefused::NotVoter(_) => (Code::FailedPrecondition, "etcdserver: bad leader transferee"),
        ChangeRefused::NoSuccessor | ChangeRefused::Failed(_) => {
            (Code::Unavailable, "etcdserver: unhealthy cluster")
        }
    };
    detailed(code, text.to_owned(), refused)
}

/// Attaches the detail where it fits a header; the text itself is never changed.
fn detailed(code: Code, text: String, detail: &impl std::fmt::Display) -> Status {
    let mut status = Status::new(code, text);
    if let Ok(value) = MetadataValue::try_from(detail.to_string()) {
        status.metadata_mut().insert(DETAIL, value);
    }
    status
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn detail(status: &Status) -> &str {
        status.metadata().get(DETAIL).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The texts that etcd's Go client turns into its typed errors, from `rpctypes/error.go`.
    #[test]
    fn store_refusals_have_etcds_codes_and_texts() {
        let table = [
            (StoreError::EmptyKey, Code::InvalidArgument, "key is not provided"),
            (StoreError::KeyNotFound, Code::InvalidArgument, "key not found"),
            (StoreError::ValueProvided, Code::InvalidArgument, "value is provided"),
            (StoreError::LeaseProvided, Code::InvalidArgument, "lease is provided"),
            (StoreError::DuplicateKey, Code::InvalidArgument, "duplicate key given in txn request"),
            (
                StoreError::TooManyOps { seen: 129, limit: 128 },
                Code::InvalidArgument,
                "too many operations in txn request",
            ),
            (
                StoreError::Compacted { requested: 2, oldest: 5 },
                Code::OutOfRange,
                "mvcc: required revision has been compacted",
            ),
            (
                StoreError::FutureRevision { requested: 9, current: 5 },
                Code::OutOfRange,
                "mvcc: required revision is a future revision",
            ),
            (StoreError::LeaseNotFound { id: 1 }, Code::NotFound, "requested lease not found"),
            (StoreError::LeaseExists { id: 1 }, Code::FailedPrecondition, "lease already exists"),
            (
                StoreError::LeaseTtlOutOfRange { seen: i64::MAX, limit: 9_000_000_000 },
                Code::OutOfRange,
                "too large lease TTL",
            ),
        ];
        for (error, code, text) in table {
            let status = store(&error);
            assert_eq!((status.code(), status.message()), (code, format!("etcdserver: {text}").as_str()));
            assert_eq!(detail(&status), error.to_string());
        }
    }

    /// From the same table.
    #[test]
    fn refusals_of_callers_have_etcds_codes_and_texts() {
        let (user, role) = ("u".to_owned(), "r".to_owned());
        let table = [
            (AuthError::NoCaller, Code::InvalidArgument, "user name is empty"),
            (AuthError::UserNameEmpty, Code::InvalidArgument, "user name is empty"),
            (AuthError::OldRevision, Code::InvalidArgument, "revision of auth store is old"),
            (AuthError::PermissionDenied, Code::PermissionDenied, "permission denied"),
            (AuthError::RootUserMissing, Code::FailedPrecondition, "root user does not exist"),
            (AuthError::RootRoleMissing, Code::FailedPrecondition, "root user does not have root role"),
            (
                AuthError::UserExists { user: user.clone() },
                Code::FailedPrecondition,
                "user name already exists",
            ),
            (AuthError::UserNotFound { user: user.clone() }, Code::FailedPrecondition, "user name not found"),
            (AuthError::RoleNameEmpty, Code::InvalidArgument, "role name is empty"),
            (
                AuthError::RoleExists { role: role.clone() },
                Code::FailedPrecondition,
                "role name already exists",
            ),
            (AuthError::RoleNotFound { role: role.clone() }, Code::FailedPrecondition, "role name not found"),
            (
                AuthError::RoleNotGranted { user, role: role.clone() },
                Code::FailedPrecondition,
                "role is not granted to the user",
            ),
            (
                AuthError::PermissionNotGranted { role },
                Code::FailedPrecondition,
                "permission is not granted to the role",
            ),
            (AuthError::RootNeeded, Code::InvalidArgument, "invalid auth management"),
        ];
        for (error, code, text) in table {
            let status = store(&StoreError::from(error.clone()));
            assert_eq!((status.code(), status.message()), (code, format!("etcdserver: {text}").as_str()));
            assert_eq!(detail(&status), error.to_string());
        }
    }

    #[test]
    fn failures_of_the_group_are_unavailable_and_say_more_in_the_detail() {
        let waited = Duration::from_secs(5);
        let reason = "no majority answered".to_owned();
        let table = [
            (ProposeError::NoLeader { waited }, Code::Unavailable, NO_LEADER),
            (
                ProposeError::OutcomeUnknown { waited, reason },
                Code::Unavailable,
                "etcdserver: request timed out",
            ),
            (ProposeError::Stopped, Code::Unavailable, STOPPED),
            (ProposeError::DiskFull, Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
            (
                ProposeError::TooLarge { seen: 2, limit: 1 },
                Code::InvalidArgument,
                "etcdserver: request is too large",
            ),
            (ProposeError::Overloaded { limit: 1 }, Code::ResourceExhausted, "etcdserver: too many requests"),
        ];
        for (error, code, text) in table {
            let status = propose(&error);
            assert_eq!((status.code(), status.message()), (code, text));
            assert_eq!(detail(&status), error.to_string());
            let through_lease = lease(&LeaseError::Unavailable(error));
            assert_eq!((through_lease.code(), through_lease.message()), (code, text));
        }
    }

    #[test]
    fn what_etcd_has_no_text_for_says_what_was_seen_and_what_is_allowed() {
        let status = store(&StoreError::KeyTooLong { seen: 9000, limit: 8192 });
        assert_eq!(status.message(), "etcdserver: key of 9000 bytes exceeds the limit of 8192 bytes");
        let unknown = RequestError::UnknownValue { field: "compare result", seen: 9, allowed: "0 EQUAL" };
        assert_eq!(
            request(&unknown).message(),
            "etcdserver: compare result 9 is unknown: allowed are 0 EQUAL"
        );
    }
}
