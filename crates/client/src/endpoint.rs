//! One server's address and its connection, and what a failed attempt says about the request.

use std::error::Error as _;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint as Transport};
use tonic::{Code, Status};

use crate::error::Error;
use crate::secure::Secure;

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
    /// Accepts `HOST:PORT`, `http://HOST:PORT` and `https://HOST:PORT`.
    pub(crate) fn parse(given: &str, secure: &Secure) -> Result<Self, Error> {
        let bad = |why: &str| Error::BadEndpoint { endpoint: given.to_owned(), why: why.to_owned() };
        let trimmed = given.trim();
        let (tls, rest) = match (trimmed.strip_prefix("https://"), trimmed.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(_)) if secure.is_asked_for() => {
                return Err(bad("it says http, but a CA or certificate for TLS is given"));
            }
            (None, Some(rest)) => (false, rest),
            (None, None) => (secure.is_asked_for(), trimmed),
        };
        let authority = rest.trim_end_matches('/');
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
        let channel =
            if tls { secure.channel(&transport, host, authority)? } else { transport.connect_lazy() };
        Ok(Self { name: authority.to_owned(), channel })
    }
}

/// Texts with which a server says that it cannot serve and has done nothing (etcd's texts, on which
/// clients rely).
const NOTHING_WRITTEN: [&str; 2] = ["etcdserver: no leader", "etcdserver: server stopped"];
/// Metadata entry in which a Weft server says more than etcd's texts can.
const DETAIL: &str = "weft-detail";

/// Metadata entry in which a server says from which log index on it remembers requests.
const KNOWN_FROM: &str = "weft-known-from";
/// How a server says that it carried a request out and did not keep the answer.
const DONE_BEFORE: &str = "was carried out already";

/// What a failed attempt says about whether the request was carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No connection: the request was never sent.
    NotSent(String),
    /// Sent, and the connection broke or time ran out: nobody knows.
    Interrupted(String),
    /// The server answered that it cannot serve now, and that nothing was changed.
    Unavailable(String),
    /// The server answered that it gave up; a change may still happen.
    GaveUp(String),
    /// The server answered no.
    Refused(Code, String),
    /// The server does not remember whether it carried this out. It does for what is first sent from this log
    /// index on.
    TooLate(u64, String),
    /// The server carried it out earlier, and did not keep its answer.
    DoneBefore(String),
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
        let message = words(status);
        let known_from =
            status.metadata().get(KNOWN_FROM).and_then(|index| index.to_str().ok()?.parse().ok());
        if let Some(known_from) = known_from {
            return Self::TooLate(known_from, message);
        }
        match status.code() {
            Code::AlreadyExists if message.contains(DONE_BEFORE) => Self::DoneBefore(message),
            Code::Unavailable if NOTHING_WRITTEN.contains(&status.message()) => Self::Unavailable(message),
            Code::Unavailable => Self::GaveUp(message),
            // The server, or something between us, gave up on a request that it had taken.
            Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Aborted => {
                Self::Interrupted(message)
            }
            code => Self::Refused(code, message),
        }
    }

    pub(crate) fn why(&self) -> &str {
        match self {
            Self::NotSent(why)
            | Self::Interrupted(why)
            | Self::Unavailable(why)
            | Self::GaveUp(why)
            | Self::DoneBefore(why)
            | Self::TooLate(_, why)
            | Self::Refused(_, why) => why,
        }
    }
}

/// What the server says, in the most telling words it has.
fn words(status: &Status) -> String {
    let detail = status.metadata().get(DETAIL).and_then(|detail| detail.to_str().ok());
    let text = detail.unwrap_or_else(|| status.message());
    if text.is_empty() { status.code().description().to_owned() } else { text.to_owned() }
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
        let none = Secure::new(None).unwrap();
        for given in ["127.0.0.1:2379", "http://127.0.0.1:2379", "http://127.0.0.1:2379/", " 127.0.0.1:2379 "]
        {
            assert_eq!(Endpoint::parse(given, &none).unwrap().name, "127.0.0.1:2379");
        }
        assert_eq!(Endpoint::parse("[::1]:2379", &none).unwrap().name, "[::1]:2379");
    }

    #[tokio::test]
    async fn an_unusable_endpoint_is_named_with_what_is_wrong() {
        let none = Secure::new(None).unwrap();
        for (given, why) in [
            ("localhost", "no port"),
            (":2379", "no host"),
            ("localhost:0", "1 to 65535"),
            ("localhost:99999", "1 to 65535"),
            ("ftp://localhost:1", "scheme"),
        ] {
            let text = Endpoint::parse(given, &none).unwrap_err().to_string();
            assert!(text.contains(given) && text.contains(why), "{text}");
        }
    }

    #[test]
    fn an_answer_without_a_source_came_from_the_server() {
        assert_eq!(
            Failure::of(&Status::unavailable("etcdserver: no leader")),
            Failure::Unavailable("etcdserver: no leader".into())
        );
        assert_eq!(Failure::of(&Status::unavailable("timed out")), Failure::GaveUp("timed out".into()));
        assert_eq!(
            Failure::of(&Status::not_found("lease a not found")),
            Failure::Refused(Code::NotFound, "lease a not found".into())
        );
        assert!(matches!(Failure::of(&Status::deadline_exceeded("late")), Failure::Interrupted(_)));
    }

    #[test]
    fn a_servers_detail_is_told_in_place_of_its_terse_text() {
        let mut status = Status::unavailable("etcdserver: no leader");
        let detail = "no leader: waited 3s; nothing was written, try again";
        status.metadata_mut().insert(DETAIL, detail.parse().unwrap());
        assert_eq!(Failure::of(&status), Failure::Unavailable(detail.into()));
    }
}
