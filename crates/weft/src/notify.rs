//! Tells a supervisor that speaks systemd's protocol (`sd_notify`) that this process serves, and that it is the main one:
//! after a hot upgrade it is another than before.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Nobody need listen; trouble is only logged.
pub(crate) fn ready() {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let words = format!("READY=1\nMAINPID={}\n", std::process::id());
    if let Err(error) = send(&socket, words.as_bytes()) {
        tracing::warn!(socket = %socket.display(), %error, "the supervisor was not told that this process serves");
    }
}

fn send(socket: &OsStr, words: &[u8]) -> io::Result<()> {
    let from = UnixDatagram::unbound()?;
    from.send_to_addr(words, &address(socket)?)?;
    Ok(())
}

/// A path, or a name without one, which begins with an at sign.
fn address(socket: &OsStr) -> io::Result<SocketAddr> {
    match socket.as_bytes().strip_prefix(b"@") {
        #[cfg(target_os = "linux")]
        Some(name) => <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name),
        #[cfg(not(target_os = "linux"))]
        Some(_) => Err(io::ErrorKind::Unsupported.into()),
        None => SocketAddr::from_pathname(socket),
    }
}
