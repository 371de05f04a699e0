//! Why a server would not start. Each is one line that says what to do.

use std::io;
use std::net::SocketAddr;

use weft_core::fsio::DataDirError;
use weft_gossip::driver::GossipError;

use crate::config::ConfigError;

/// Why a server would not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A port cannot be listened on.
    #[error("{flag}: cannot listen on {addr}: {}", why(source))]
    Port {
        /// The flag that chooses it.
        flag: &'static str,
        /// Address and port.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The data folder cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// Gossip would not start.
    #[error(transparent)]
    Gossip(#[from] GossipError),
    /// The Raft part would not start.
    #[error(transparent)]
    Raft(#[from] crate::raft::StartError),
}

fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "address already in use; stop the process that has it, or choose another port (0 for any free one)"
                .to_owned()
        }
        io::ErrorKind::AddrNotAvailable => "no address of this machine; change --bind".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "permission denied; ports below 1024 need a privilege, choose a higher one".to_owned()
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_one_line_naming_flag_and_address() {
        let text = StartError::Port {
            flag: "--http-port",
            addr: "127.0.0.1:8500".parse().unwrap(),
            source: io::Error::from(io::ErrorKind::AddrInUse),
        }
        .to_string();
        assert!(text.starts_with("--http-port: cannot listen on 127.0.0.1:8500: address already in use"));
        assert!(!text.contains('\n'));
    }
}
