//! The one mapping from our errors to gRPC statuses (`weft.v1`) and HTTP answers. Total matches: a new
//! error variant does not compile until it has a place here. etcd's own texts and codes are in
//! [`crate::api::etcd`].

use http::StatusCode;
use tonic::{Code, Status};
use weft_state::auth::AuthError;
use weft_state::error::StoreError;

use crate::raft::{LeaseError, ProposeError};

/// A failed proposal or read as a gRPC status.
pub fn propose(error: &ProposeError) -> Status {
    let code = match error {
        ProposeError::NoLeader { .. }
        | ProposeError::NoQuorum { .. }
        | ProposeError::NotTakenIn
        | ProposeError::Stopped => Code::Unavailable,
        // What was asked may have happened. Requests of weft.v1 are safe to repeat.
        ProposeError::OutcomeUnknown { .. } | ProposeError::NotAppliedHere { .. } => Code::DeadlineExceeded,
        ProposeError::Overloaded { .. } | ProposeError::DiskFull => Code::ResourceExhausted,
        ProposeError::TooLarge { .. } => Code::InvalidArgument,
    };
    Status::new(code, error.to_string())
}

/// A refusal by the state machine as a gRPC status.
pub fn store(error: &StoreError) -> Status {
    match error {
        StoreError::LeaseNotFound { id } => session_ended(*id),
        StoreError::EmptyKey
        | StoreError::KeyTooLong { .. }
        | StoreError::ValueProvided
        | StoreError::LeaseProvided
        | StoreError::DuplicateKey
        | StoreError::TooManyOps { .. }
        | StoreError::LeaseTtlOutOfRange { .. }
        | StoreError::ReservedKey
        | StoreError::PermitsOverLimit { .. }
        | StoreError::NameOutOfRange { .. }
        | StoreError::QuotaMarks { .. } => Status::invalid_argument(error.to_string()),
        StoreError::Compacted { .. } | StoreError::FutureRevision { .. } => {
            Status::out_of_range(error.to_string())
        }
        StoreError::KeyNotFound => Status::not_found(error.to_string()),
        StoreError::LeaseExists { .. } => Status::already_exists(error.to_string()),
        StoreError::MeshConfigChanged { .. } => Status::aborted(error.to_string()),
        StoreError::StaleToken { .. } => Status::failed_precondition(error.to_string()),
        StoreError::Full { .. } | StoreError::SpaceExceeded { .. } => {
            Status::resource_exhausted(error.to_string())
        }
        StoreError::Auth(error) => auth(error),
        StoreError::TooLateToKnow { known_from } => too_late(error, *known_from),
        StoreError::AnswerNotKept { .. } => Status::already_exists(error.to_string()),
        StoreError::RequestReused { .. } => Status::invalid_argument(error.to_string()),
        StoreError::NestedEnvelope => Status::internal(error.to_string()),
    }
}

/// A refused caller, or a refused change of users and roles, as a gRPC status.
pub fn auth(error: &AuthError) -> Status {
    let code = match error {
        AuthError::NoCaller | AuthError::OldRevision => Code::Unauthenticated,
        AuthError::PermissionDenied => Code::PermissionDenied,
        AuthError::UserNameEmpty | AuthError::RoleNameEmpty | AuthError::EmptyRange => Code::InvalidArgument,
        AuthError::UserExists { .. } | AuthError::RoleExists { .. } => Code::AlreadyExists,
        AuthError::UserNotFound { .. } | AuthError::RoleNotFound { .. } => Code::NotFound,
        AuthError::RootUserMissing
        | AuthError::RootRoleMissing
        | AuthError::RoleNotGranted { .. }
        | AuthError::PermissionNotGranted { .. }
        | AuthError::RootNeeded => Code::FailedPrecondition,
    };
    Status::new(code, error.to_string())
}

/// Metadata entry from which a client learns what to name in the next request (`weft-after`) so that it is known
/// to be new.
pub const KNOWN_FROM: &str = "weft-known-from";

/// A request of which it is not known any more whether it was carried out, on any API.
pub fn too_late(error: &StoreError, known_from: u64) -> Status {
    let mut status = Status::new(Code::Aborted, error.to_string());
    status.metadata_mut().insert(KNOWN_FROM, known_from.into());
    status
}

/// What a caller hears whose session is no more: it owns nothing, and has to begin anew.
pub fn session_ended(lease: i64) -> Status {
    Status::failed_precondition(format!("session {lease:x} ended, or never was: open a new one"))
}

/// What a caller hears when this server stops.
pub fn stopping() -> Status {
    Status::unavailable("this server is stopping; ask another one, the request is safe to repeat")
}

/// A failed proposal or read as an HTTP status.
pub fn http_propose(error: &ProposeError) -> StatusCode {
    match error {
        ProposeError::NoLeader { .. }
        | ProposeError::NoQuorum { .. }
        | ProposeError::Overloaded { .. }
        | ProposeError::NotTakenIn
        | ProposeError::Stopped => StatusCode::SERVICE_UNAVAILABLE,
        ProposeError::OutcomeUnknown { .. } | ProposeError::NotAppliedHere { .. } => {
            StatusCode::GATEWAY_TIMEOUT
        }
        ProposeError::DiskFull => StatusCode::INSUFFICIENT_STORAGE,
        ProposeError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
    }
}

/// A refusal by the state machine as an HTTP status.
pub fn http_store(error: &StoreError) -> StatusCode {
    match store(error).code() {
        Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::ResourceExhausted => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        _ => StatusCode::CONFLICT,
    }
}

/// A lease that was not renewed as a gRPC status.
pub fn lease(error: &LeaseError) -> Status {
    match error {
        LeaseError::Store(e) => store(e),
        LeaseError::Unavailable(e) => propose(e),
    }
}
