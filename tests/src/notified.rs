//! The supervisor's end of systemd's protocol, sd_notify(3).

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);

/// Hears what processes say of themselves.
pub struct Notified {
    socket: tokio::net::UnixDatagram,
    name: String,
}

impl Notified {
    /// On a socket with a path, or with a name of the abstract kind, which is that path with an at sign.
    pub fn listen(path: &Path, is_abstract: bool) -> Self {
        let text = path.to_str().expect("a path");
        let (name, at) = match is_abstract {
            true => (format!("@{text}"), SocketAddr::from_abstract_name(text)),
            false => (text.to_owned(), SocketAddr::from_pathname(text)),
        };
        let socket = UnixDatagram::bind_addr(&at.expect("short")).expect("binds");
        socket.set_nonblocking(true).expect("a socket");
        Self { socket: tokio::net::UnixDatagram::from_std(socket).expect("a socket"), name }
    }

    /// What processes are started with.
    pub fn environment(&self) -> [(&'static str, &str); 1] {
        [("NOTIFY_SOCKET", &self.name)]
    }

    /// The next message.
    pub async fn hears(&self) -> String {
        let mut words = [0; 256];
        let heard = tokio::time::timeout(SOON, self.socket.recv(&mut words)).await.expect("it is told");
        String::from_utf8_lossy(&words[..heard.expect("words")]).into_owned()
    }

    /// The next messages are `RELOADING=1`, with the time, and that this process serves.
    pub async fn hears_of_an_upgrade(&self) -> String {
        let begun = self.hears().await;
        let at = begun.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").map(|at| at.trim_end().parse::<u64>());
        assert!(matches!(at, Some(Ok(1..))), "{begun}");
        self.hears().await
    }

    /// Nothing has been said since.
    pub fn heard_all(&self) {
        let mut words = [0; 256];
        let more =
            self.socket.try_recv(&mut words).map(|n| String::from_utf8_lossy(&words[..n]).into_owned());
        assert!(more.is_err(), "{more:?}");
    }
}

/// That the process with this id serves.
pub fn ready(pid: impl std::fmt::Display) -> String {
    format!("READY=1\nMAINPID={pid}\n")
}
