//! Why a request has no answer: one variant for each thing that a caller does differently.

use std::fmt;

use tonic::Code;

use crate::session::Lost;

/// One endpoint that was tried, and what happened there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// As given to `connect`.
    pub endpoint: String,
    /// What happened, in words.
    pub why: String,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.endpoint, self.why)
    }
}

/// Why a request was not carried out, or may not have been.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// `connect` was given nothing.
    #[error("no endpoints given; expected one or more HOST:PORT of a server's gRPC port")]
    NoEndpoints,
    /// An endpoint that is not an address.
    #[error(
        "endpoint {endpoint:?} is not usable: {why}; expected HOST:PORT, http://HOST:PORT or https://HOST:PORT"
    )]
    BadEndpoint {
        /// As given.
        endpoint: String,
        /// What is wrong with it.
        why: String,
    },
    /// A certificate, key or CA for TLS with the servers is unusable.
    #[error("TLS with the servers: {why}")]
    Tls {
        /// Names the file.
        why: String,
    },
    /// Nobody took the request: nothing was changed, and it is safe to repeat.
    #[error("no server could be reached: {}; check that one runs there (`weft server` or `weft dev`) and that the endpoints name its gRPC port", list(.attempts))]
    Unreachable {
        /// The last failure of each endpoint.
        attempts: Vec<Attempt>,
    },
    /// Servers were reached and say that they cannot serve now, for example without a quorum. Whether
    /// a write was done is unknown only if the message says so.
    #[error("the control plane is unavailable: {}; try again, and see `weft status` for which servers are missing", list(.attempts))]
    Unavailable {
        /// The last answer of each endpoint.
        attempts: Vec<Attempt>,
    },
    /// The request was sent, and nobody can say whether it was or will be carried out.
    #[error(
        "{operation} was not acknowledged by {endpoint}: {}; it may or may not have been done, so read before you repeat it; if this goes on, the servers may have lost their quorum: see `weft status`",
        reason(.why)
    )]
    OutcomeUnknown {
        /// What was asked.
        operation: &'static str,
        /// Who was asked.
        endpoint: String,
        /// What happened.
        why: String,
    },
    /// The request was carried out, and its answer is lost: it was too large to be kept for a repetition.
    #[error("{message} (answered by {endpoint})")]
    AnswerLost {
        /// Who answered.
        endpoint: String,
        /// Its words, with the revision.
        message: String,
    },
    /// A server answered that it will not do it. Nothing was changed; repeating it does not help.
    #[error("{message} (answered by {endpoint})")]
    Refused {
        /// Who answered.
        endpoint: String,
        /// The class of the refusal.
        code: Code,
        /// Its words.
        message: String,
    },
    /// The history that a watch or a read needs is gone.
    #[error(
        "revision {requested} has been compacted; the oldest that can be read is {oldest}: read the keys again and watch from the revision of that answer"
    )]
    Compacted {
        /// Asked for.
        requested: i64,
        /// Oldest readable.
        oldest: i64,
    },
    /// The session that the request belongs to has ended.
    #[error("session lost: {0}")]
    SessionLost(Lost),
    /// A parameter that no server would take.
    #[error("{0}")]
    BadRequest(String),
    /// A server answered something that this client does not understand.
    #[error("unexpected answer from {endpoint}: {what}; are client and server of compatible versions?")]
    Protocol {
        /// Who answered.
        endpoint: String,
        /// What was odd.
        what: String,
    },
}

impl Error {
    /// The refusal's class, if a server refused.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// What happened, without the advice: for messages about something larger.
    pub fn brief(&self) -> String {
        match self {
            Self::Unreachable { attempts } | Self::Unavailable { attempts } => list(attempts),
            other => other.to_string(),
        }
    }

    /// A server says that the named thing does not exist.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(Code::NotFound)
    }
}

/// What a server says of an unknown outcome, without what this text says itself.
fn reason(why: &str) -> &str {
    let why = why.strip_prefix("unknown outcome: ").unwrap_or(why);
    why.strip_suffix("; read before you repeat it").unwrap_or(why)
}

fn list(attempts: &[Attempt]) -> String {
    attempts.iter().map(Attempt::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_outcome_is_said_once() {
        let error = Error::OutcomeUnknown {
            operation: "put",
            endpoint: "127.0.0.1:2379".to_owned(),
            why: "unknown outcome: no majority of the servers has stored it yet; waited 5.0 s; read before you repeat it"
                .to_owned(),
        };
        assert_eq!(
            error.to_string(),
            "put was not acknowledged by 127.0.0.1:2379: no majority of the servers has stored it yet; \
             waited 5.0 s; it may or may not have been done, so read before you repeat it; \
             if this goes on, the servers may have lost their quorum: see `weft status`"
        );
    }
}
