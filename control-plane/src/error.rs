//! Why a server would not start. Each is one line that says what to do.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

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
    DataDir(DataDirError),
    /// Its disk has not one free byte. A start writes a few, so that the next one can tell that it was here.
    #[error(
        "the disk of data folder {folder} is full: free some space on it (a few kilobytes let it start, its log needs more); as a last \
         resort delete {folder}/wal/*.spare, the reserve for deletes on a full disk, which is made again when there is space",
        folder = folder.display()
    )]
    DiskFull {
        /// The folder.
        folder: PathBuf,
    },
    /// The join token cannot be used, or there is none.
    #[error(transparent)]
    JoinToken(#[from] crate::gate::TokenError),
    /// TLS of the clients' ports cannot be used.
    #[error("TLS of the gRPC and HTTP ports: {0}")]
    Tls(#[from] weft_core::tls::TlsError),
    /// TLS of the peer port cannot be used.
    #[error("TLS of the peer port: {0}")]
    PeerTls(#[from] crate::gate::PeerTlsError),
    /// Gossip would not start.
    #[error(transparent)]
    Gossip(#[from] GossipError),
    /// The Raft part would not start.
    #[error(transparent)]
    Raft(#[from] crate::raft::StartError),
}

impl From<DataDirError> for StartError {
    fn from(error: DataDirError) -> Self {
        match error.disk_full() {
            // Named by the folder, not by the file that happened to be written first.
            Some(path) if path.is_dir() => Self::DiskFull { folder: path.to_path_buf() },
            Some(path) => Self::DiskFull { folder: path.parent().unwrap_or(path).to_path_buf() },
            None => Self::DataDir(error),
        }
    }
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
    fn a_full_disk_is_told_with_what_to_free() {
        let folder = tempfile::tempdir().unwrap();
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        for path in [folder.path().to_path_buf(), folder.path().join("incarnation")] {
            let text = StartError::from(DataDirError::Io { path, source: full() }).to_string();
            assert!(
                text.starts_with(&format!("the disk of data folder {} is full", folder.path().display())),
                "{text}"
            );
            assert!(text.contains("free some space") && !text.contains("incarnation"), "{text}");
        }
        let other = io::Error::from(io::ErrorKind::PermissionDenied);
        let text =
            StartError::from(DataDirError::Io { path: folder.path().into(), source: other }).to_string();
        assert!(!text.contains("full"), "{text}");
    }

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
