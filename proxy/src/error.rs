//! Why a proxy does not start.

use std::net::SocketAddr;

use crate::config::ConfigProblems;

/// One clear line for whoever starts it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is no good.
    #[error("invalid configuration: {0}")]
    Config(#[from] ConfigProblems),
    /// A port is taken or not ours.
    #[error("cannot listen on {addr} ({what}): {}", reason(source))]
    Bind {
        /// Which listener.
        what: String,
        /// Where.
        addr: SocketAddr,
        /// From the kernel.
        source: std::io::Error,
    },
    /// A Unix socket.
    #[error("cannot listen on {path} ({what}): {source}")]
    BindUnix {
        /// Which listener.
        what: String,
        /// Its file.
        path: std::path::PathBuf,
        /// From the kernel, or what is there.
        source: std::io::Error,
    },
    /// The data folder.
    #[error(transparent)]
    DataDir(#[from] weft_core::fsio::DataDirError),
    /// The process that was to be taken over.
    #[error(transparent)]
    Handover(#[from] crate::handover::HandoverError),
    /// Certificate or key.
    #[error("{what} TLS: {why}")]
    Tls {
        /// Whose.
        what: &'static str,
        /// Which file, and what is wrong with it.
        why: String,
    },
    /// Files for TLS with the servers.
    #[error("TLS with the servers: {0}")]
    ServerTls(weft_core::tls::TlsError),
    /// The gossip port.
    #[error(transparent)]
    Gossip(#[from] weft_gossip::GossipError),
    /// Its file or its thread.
    #[error("cannot open the access log: {source}")]
    AccessLog {
        /// From the system.
        source: std::io::Error,
    },
    /// The collector's address.
    #[error("cannot send traces: {source}")]
    Trace {
        /// Why not.
        source: tonic::transport::Error,
    },
    /// A worker thread or its runtime cannot be made.
    #[error("cannot start worker {worker}: {source}")]
    Worker {
        /// From 0.
        worker: usize,
        /// From the system.
        source: std::io::Error,
    },
    /// Peers would be told an address that means "any".
    #[error("{what} is bound to {addr}, which peers cannot use: give the address to advertise")]
    NoAdvertise {
        /// Which listener.
        what: &'static str,
        /// Its address.
        addr: SocketAddr,
    },
}

fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => "the port is in use by another process".to_owned(),
        std::io::ErrorKind::PermissionDenied => {
            "permission denied (ports below 1024 need a privilege)".to_owned()
        }
        _ => error.to_string(),
    }
}
