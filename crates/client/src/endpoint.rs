//! One server's address and its connection, and what a failed attempt says about the request.

use std::error::Error as _;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint as Transport};
use tonic::{Code, Status};

use crate::error::Error;

/// How long one connection attempt may take before the next endpoint is tried.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// An idle connection is probed this often, so that a stream over a dead path ends.
pub const PING_INTERVAL: Duration = Duration::from_secs(5);
/// A probe without an answer for this long ends the connection and all calls on it.
pub const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest message taken from a server: a range answer with its values.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// One server. Connects at first use and again after a failure.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    pub(crate) name: String,
    pub(crate) channel: Channel,
}

impl Endpoint {
    /// Accepts `HOST:PORT` and `http://HOST:PORT`.
    pub(crate) fn parse(given: &str) -> Result<Self, Error> {
        let bad = |why: &str| Error::BadEndpoint { endpoint: given.to_owned(), why: why.to_owned() };
        let trimmed = given.trim();
        if trimmed.starts_with("https://") {
            return Err(bad("TLS to servers is not supported"));
        }
        let authority = trimmed.strip_prefix("http://").unwrap_or(trimmed).trim_end_matches('/');
        if authority.contains("://") {
            return Err(bad("unknown scheme"));
        }
        let (host, port) = authority.rsplit_once(':').ok_or_else(|| bad("it has no port"))?;
        if host.is_empty() {
            return Err(bad("it has no host"));
        }
        if !matches!(port.parse::<u16>(), Ok(1..)) {
            return Err(bad("its port is not a number from 1 to 65535"));
        }
        let transport = Transport::from_shared(format!("http://{authority}"))
            .map_err(|_| bad("it is not a valid address"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        Ok(Self { name: authority.to_owned(), channel: transport.connect_lazy() })
    }
}

/// What a failed attempt says about whether the request was carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No connection: the request was never sent.
    NotSent(String),
    /// Sent, and the connection broke or time ran out: nobody knows.
    Interrupted(String),
    /// The server answered that it cannot serve now.
    Unavailable(String),
    /// The server answered no.
    Refused(Code, String),
}

impl Failure {
    pub(crate) fn of(status: &Status) -> Self {
        let mut source = status.source();
        let mut deepest = None;
        while let Some(error) = source {
            if error.is::<tonic::ConnectError>() {
                return Self::NotSent(deepest_message(error));
            }
            deepest = Some(error);
            source = error.source();
        }
        if let Some(error) = deepest {
            return Self::Interrupted(error.to_string());
        }
        let message = status.message().to_owned();
        match status.code() {
            Code::Unavailable => Self::Unavailable(message),
            // The server, or something between us, gave up on a request that it had taken.
            Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Aborted => {
                Self::Interrupted(message)
            }
            code => Self::Refused(code, message),
        }
    }

    pub(crate) fn why(&self) -> &str {
        match self {
            Self::NotSent(why) | Self::Interrupted(why) | Self::Unavailable(why) | Self::Refused(_, why) => {
                why
            }
        }
    }
}

/// "tcp connect error: Connection refused" says less the longer it gets: keep the cause.
fn deepest_message(error: &(dyn std::error::Error + 'static)) -> String {
    let mut deepest = error;
    while let Some(next) = deepest.source() {
        deepest = next;
    }
    let text = deepest.to_string();
    // The system's text ends in its error number, which says nothing more.
    let text = text.split(" (os error").next().unwrap_or(&text).to_owned();
    let mut letters = text.chars();
    letters.next().map_or(text.clone(), |first| first.to_lowercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_endpoint_is_a_host_and_port_with_or_without_scheme() {
        for given in ["127.0.0.1:2379", "http://127.0.0.1:2379", "http://127.0.0.1:2379/", " 127.0.0.1:2379 "]
        {
            assert_eq!(Endpoint::parse(given).unwrap().name, "127.0.0.1:2379");
        }
        assert_eq!(Endpoint::parse("[::1]:2379").unwrap().name, "[::1]:2379");
    }

    #[tokio::test]
    async fn an_unusable_endpoint_is_named_with_what_is_wrong() {
        for (given, why) in [
            ("localhost", "no port"),
            (":2379", "no host"),
            ("localhost:0", "1 to 65535"),
            ("localhost:99999", "1 to 65535"),
            ("https://localhost:1", "TLS"),
            ("ftp://localhost:1", "scheme"),
        ] {
            let text = Endpoint::parse(given).unwrap_err().to_string();
            assert!(text.contains(given) && text.contains(why), "{text}");
        }
    }

    #[test]
    fn an_answer_without_a_source_came_from_the_server() {
        assert_eq!(Failure::of(&Status::unavailable("no quorum")), Failure::Unavailable("no quorum".into()));
        assert_eq!(
            Failure::of(&Status::not_found("lease a not found")),
            Failure::Refused(Code::NotFound, "lease a not found".into())
        );
        assert!(matches!(Failure::of(&Status::deadline_exceeded("late")), Failure::Interrupted(_)));
    }
}
