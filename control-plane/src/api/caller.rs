//! From a request's metadata to who asks, and under which name the request is recognised when it comes again.
//!
//! | entry | what |
//! |---|---|
//! | `token`, or `authorization: Bearer …` | a token from `Authenticate`; ignored while authentication is off |
//! | `weft-client-id` | random, drawn once by the client program; 1 to 16 hex digits |
//! | `weft-seq` | the client's number for this request, counted up from 1; the same when it is sent again |
//! | `weft-after` | optional: a log index known before the request was first sent (see `weft_state::requests`) |
//! | `weft-answered` | optional: requests with a number below this were answered, so that they can be forgotten |

use http::HeaderMap;
use tonic::{Code, Status};
use weft_state::{
    auth::{AuthError, AuthState, Caller},
    command::Command,
    machine::Machine,
    requests::RequestId,
};

use super::etcd;
use crate::auth::{token, unix_secs};
use crate::raft::{Coordinator, ProposeError};

/// Metadata entry: who repeats requests.
pub const CLIENT_ID: &str = "weft-client-id";
/// Metadata entry: which of the client's requests it is.
pub const SEQ: &str = "weft-seq";
/// Metadata entry: what was answered.
pub const ANSWERED: &str = "weft-answered";
/// Metadata entry: a log index from before the request.
pub const AFTER: &str = "weft-after";

/// Who asks for something, and the request's name if it has one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asking {
    /// Who.
    pub caller: Caller,
    /// The name.
    pub request: Option<RequestId>,
}

/// Why a request is refused for who asks, or how.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CallerError {
    /// A token that was never issued, has expired, or was voided.
    #[error("invalid auth token: log in again")]
    InvalidToken,
    /// The caller may not.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// Whether the caller may cannot be known.
    #[error(transparent)]
    Unavailable(#[from] ProposeError),
    /// An entry that is not what it should be.
    #[error("metadata {name} is {seen:?}: expected {expected}")]
    BadEntry {
        /// Which.
        name: &'static str,
        /// What it is.
        seen: String,
        /// What it should be.
        expected: &'static str,
    },
}

impl From<CallerError> for Status {
    fn from(error: CallerError) -> Self {
        match &error {
            // etcd's own text, by which its clients know that they have to log in again.
            CallerError::InvalidToken => Status::new(Code::Unauthenticated, "etcdserver: invalid auth token"),
            CallerError::Auth(error) => etcd::status::auth(error),
            CallerError::Unavailable(error) => etcd::status::propose(error),
            CallerError::BadEntry { .. } => Status::invalid_argument(error.to_string()),
        }
    }
}

impl Asking {
    /// Whose request this is.
    ///
    /// # Errors
    /// `InvalidToken`, `BadEntry`; `Unavailable` if a token is not known here and the group cannot be asked.
    pub async fn of(coordinator: &Coordinator, headers: &HeaderMap) -> Result<Self, CallerError> {
        Ok(Self { caller: caller(coordinator, headers).await?, request: request_id(headers)? })
    }

    /// For a stream whose messages name their requests themselves: whose it is, and under which client's name.
    ///
    /// # Errors
    /// As [`Asking::of`].
    pub async fn of_stream(
        coordinator: &Coordinator,
        headers: &HeaderMap,
    ) -> Result<(Caller, Option<RequestId>), CallerError> {
        let after = entry(headers, AFTER, "a log index, or no such entry", decimal)?.unwrap_or(0);
        let client = entry(headers, CLIENT_ID, "1 to 16 hex digits", hexadecimal)?;
        let first = client.map(|client| RequestId { client, seq: 0, after, answered: 0 });
        Ok((caller(coordinator, headers).await?, first))
    }

    /// The command as it enters the log.
    pub fn enclose(&self, command: Command) -> Command {
        command.enclosed(self.caller.clone(), self.request)
    }

    /// Refuses a command that would be refused when it is applied, before it takes room in the log.
    ///
    /// # Errors
    /// `Auth`, `Unavailable`.
    pub async fn admit(&self, coordinator: &Coordinator, command: &Command) -> Result<(), CallerError> {
        permitted(coordinator, |machine| machine.permits(&self.caller, command)).await
    }

    /// As [`Asking::admit`], for any other question about users and roles.
    ///
    /// # Errors
    /// `Auth`, `Unavailable`.
    pub async fn check(
        &self,
        coordinator: &Coordinator,
        check: impl Fn(&AuthState, &Caller) -> Result<(), AuthError>,
    ) -> Result<(), CallerError> {
        permitted(coordinator, |machine| check(machine.auth(), &self.caller)).await
    }
}

/// Asks the state as this server has it; if that says no, asks again once it is sure to be current: what was granted
/// through another server a moment ago counts here too. Costs nothing while authentication is off.
///
/// # Errors
/// `Auth`, `Unavailable`.
pub async fn permitted(
    coordinator: &Coordinator,
    check: impl Fn(&Machine) -> Result<(), AuthError>,
) -> Result<(), CallerError> {
    if !coordinator.auth().is_enabled() || coordinator.read(&check).is_ok() {
        return Ok(());
    }
    coordinator.read_barrier().await?;
    Ok(coordinator.read(&check)?)
}

async fn caller(coordinator: &Coordinator, headers: &HeaderMap) -> Result<Caller, CallerError> {
    // The names that gRPC clients and the JSON gateway use.
    let Some(shown) = headers.get("token").or_else(|| headers.get("authorization")) else {
        return Ok(Caller::Anonymous);
    };
    let shown = shown.to_str().unwrap_or_default();
    let shown = shown.strip_prefix("Bearer ").unwrap_or(shown);
    if let Some(caller) = known(&coordinator.auth(), shown) {
        return Ok(caller);
    }
    // The user, or the key that it was signed with, may be news here.
    coordinator.read_barrier().await?;
    known(&coordinator.auth(), shown).ok_or(CallerError::InvalidToken)
}

/// Whose token this is; nobody's while authentication is off; none if it is not valid.
fn known(auth: &AuthState, shown: &str) -> Option<Caller> {
    let Some(key) = auth.token_key() else { return Some(Caller::Anonymous) };
    let claims = token::verify(key, shown, unix_secs())?;
    (auth.since(&claims.user) == Some(claims.since))
        .then_some(Caller::User { name: claims.user, since: claims.since })
}

fn request_id(headers: &HeaderMap) -> Result<Option<RequestId>, CallerError> {
    let client = entry(headers, CLIENT_ID, "1 to 16 hex digits", hexadecimal)?;
    let seq =
        entry(headers, SEQ, "a number from 1 to 2^64 - 1", |text| decimal(text).filter(|seq| *seq > 0))?;
    let after = entry(headers, AFTER, "a log index, or no such entry", decimal)?.unwrap_or(0);
    let answered = entry(headers, ANSWERED, "a number, or no such entry", decimal)?.unwrap_or(0);
    match (client, seq) {
        (Some(client), Some(seq)) => Ok(Some(RequestId { client, seq, after, answered })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(missing(SEQ, CLIENT_ID)),
        (None, Some(_)) => Err(missing(CLIENT_ID, SEQ)),
    }
}

fn entry(
    headers: &HeaderMap,
    name: &'static str,
    expected: &'static str,
    parse: fn(&str) -> Option<u64>,
) -> Result<Option<u64>, CallerError> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let text = value.to_str().unwrap_or("not text");
    let bad = || CallerError::BadEntry { name, seen: text.to_owned(), expected };
    parse(text).map(Some).ok_or_else(bad)
}

fn decimal(text: &str) -> Option<u64> {
    text.parse().ok()
}

fn hexadecimal(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u64::from_str_radix(text, 16).ok().filter(|_| digits)
}

fn missing(name: &'static str, beside: &'static str) -> CallerError {
    let expected =
        if beside == SEQ { "the client's id beside weft-seq" } else { "a number beside weft-client-id" };
    CallerError::BadEntry { name, seen: String::new(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(entries: &[(&'static str, &'static str)]) -> HeaderMap {
        entries
            .iter()
            .map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")))
            .collect()
    }

    #[test]
    fn a_request_has_a_name_if_it_says_client_and_number() {
        assert_eq!(request_id(&headers(&[])), Ok(None));
        let named = [(CLIENT_ID, "ff"), (SEQ, "7")];
        assert_eq!(
            request_id(&headers(&named)),
            Ok(Some(RequestId { client: 255, seq: 7, after: 0, answered: 0 }))
        );
        let after = [(CLIENT_ID, "FF"), (SEQ, "7"), (AFTER, "9")];
        assert_eq!(
            request_id(&headers(&after)),
            Ok(Some(RequestId { client: 255, seq: 7, after: 9, answered: 0 }))
        );
    }

    #[test]
    fn half_a_name_and_numbers_that_are_none_are_refused_by_name() {
        for (entries, name) in [
            (&[(CLIENT_ID, "1")][..], SEQ),
            (&[(SEQ, "1")], CLIENT_ID),
            (&[(CLIENT_ID, "+1"), (SEQ, "1")], CLIENT_ID),
            (&[(CLIENT_ID, "11112222333344445"), (SEQ, "1")], CLIENT_ID),
            (&[(CLIENT_ID, "1"), (SEQ, "0")], SEQ),
            (&[(CLIENT_ID, "1"), (SEQ, "1"), (AFTER, "-1")], AFTER),
        ] {
            let refused = request_id(&headers(entries));
            assert!(
                matches!(&refused, Err(CallerError::BadEntry { name: seen, .. }) if *seen == name),
                "{refused:?}"
            );
        }
    }
}
