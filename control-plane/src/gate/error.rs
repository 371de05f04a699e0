//! Why a connection between servers was not made, said so that it is clear on whose side to look.

use std::{io, time::Duration};

use super::PEER_NAME;

/// What this server sees of a server that connects to it and is refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refused {
    /// The other end has no token, or one that this server does not accept.
    #[error(
        "its join token is not the one of this server: give both the same one, with --join-token-file or WEFT_JOIN_TOKEN"
    )]
    WrongToken,
    /// It speaks HTTP/2 at once.
    #[error(
        "it asks without a proof of the join token: it is a client, whose port is that of --grpc-port, or a server of \
         another version"
    )]
    NoToken,
    /// It speaks TLS.
    #[error(
        "it speaks TLS, but this server has none on its peer port: give all servers --peer-tls-cert, or none"
    )]
    TlsHere,
    /// It does not speak TLS.
    #[error(
        "it does not speak TLS, but this server's peer port does: give all servers --peer-tls-cert, or none"
    )]
    NoTls,
    /// TLS was not agreed on.
    #[error("TLS: {0}")]
    Tls(String),
    /// A certificate of the right CA, but no server's.
    #[error("its certificate is not one of a server: it must be for the DNS name {PEER_NAME}")]
    NoServer,
    /// Nothing that a server says.
    #[error("what it sends is not from a Weft server")]
    Garbage,
    /// It did not go on.
    #[error("it said nothing for {0:?}")]
    Silent(Duration),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(io::ErrorKind),
}

/// What this server sees of a server that it connects to.
#[derive(Debug, thiserror::Error)]
pub enum Unreached {
    /// No connection.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// It does not accept this server's token.
    #[error(
        "it does not accept this server's join token: give both the same one, with --join-token-file or WEFT_JOIN_TOKEN"
    )]
    TokenRefused,
    /// It cannot prove a token.
    #[error("it does not know the join token itself: another server or program has its address now")]
    Unproven,
    /// Its peer port speaks TLS.
    #[error(
        "its peer port speaks TLS, but this server has no --peer-tls-cert: give it to all servers, or to none"
    )]
    TlsThere,
    /// TLS was not agreed on.
    #[error("TLS to its peer port: {0}")]
    Tls(String),
    /// It has refused the name in this server's certificate.
    #[error("it refuses this server's certificate: it must be for the DNS name {PEER_NAME}")]
    NoServer,
    /// It is something else.
    #[error("what answers there is not the peer port of a Weft server of this version")]
    NotAServer,
    /// It did not go on.
    #[error("it said nothing for {0:?}")]
    Silent(Duration),
    /// It closed, which it also does if too many connect.
    #[error("it closed the connection before it let this server in ({0})")]
    Closed(io::ErrorKind),
    /// The system gives no random bytes.
    #[error("no random bytes")]
    Random,
}

impl Refused {
    /// Whether it says that something is set up wrongly, or that somebody tries; the rest is everyday life.
    pub fn is_worth_a_line(&self) -> bool {
        !matches!(self, Refused::Silent(_) | Refused::Broken(_))
    }
}
