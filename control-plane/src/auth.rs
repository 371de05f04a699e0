//! Who asks: passwords, tokens, and the caller of a request.
//!
//! ```text
//! Authenticate ──► password checked (bounded, off the runtime) ──► token, signed with the group's key
//! any request  ──► token in `token` or `authorization` ──► Caller ──► checked here, travels with the command,
//!                                                                     checked again when it is applied
//! ```
//! Users, roles and what they may do are replicated state ([`weft_state::auth`]); so is the key that tokens are signed
//! with. Any server therefore accepts a token that another one issued, without a word between them. A token is void
//! when it expires, when its user's password is changed, when the user is deleted, and when authentication is
//! disabled; roles count as they stand when the token is used.
//!
//! - [`password`], [`token`]: pure. [`logins`]: how many passwords are checked at one time. Who asks for a request is
//!   found out by [`crate::api::caller`].

pub mod logins;
pub mod password;
pub mod token;

pub use logins::Logins;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long a token is valid: a day. Client libraries of some languages log in once and never again; they are
/// restarted more often than that, or log in again when a token is refused. A stolen token is voided by changing the
/// user's password.
pub const TOKEN_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// Seconds since 1970, by this server's wall clock.
#[allow(
    clippy::disallowed_methods,
    reason = "tokens are issued and read by servers that share no other clock"
)]
pub(crate) fn unix_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
