//! Tells a supervisor that speaks systemd's protocol (sd_notify(3)) what becomes of this process, and that it is the main one:
//! after a hot upgrade of `weft proxy` it is another than before.
//!
//! Nobody need listen; trouble is only logged.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use rustix::time::{ClockId, clock_gettime};

/// Where the supervisor listens.
pub(crate) const SOCKET: &str = "NOTIFY_SOCKET";

/// It serves, be it after a start, after an upgrade or after one that came to nothing.
pub(crate) fn ready() {
    tell(&format!("READY=1\nMAINPID={}\n", std::process::id()));
}

/// An upgrade has begun. [`ready`] follows in any case.
pub(crate) fn reloading() {
    // For Type=notify-reload, which tells by it whether the word is older than the request.
    let now = clock_gettime(ClockId::Monotonic);
    let microseconds = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
    tell(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}\n"));
}

/// It drains, and ends. Not for a process that was taken over from: what is supervised goes on.
pub(crate) fn stopping() {
    tell("STOPPING=1\n");
}

fn tell(words: &str) {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    if let Err(error) = send(&socket, words.as_bytes()) {
        let word = words.lines().next();
        tracing::warn!(socket = %socket.display(), word, %error, "the supervisor was not told");
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
