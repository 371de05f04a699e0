//! Listening sockets, one for each worker on the same port.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

use crate::error::StartError;
use crate::tcp::keepalive;

/// Connections that wait in the kernel; the kernel lowers it to its own limit.
pub(crate) const BACKLOG: i32 = 4096;

/// Binds `workers` sockets to one address; port 0 is resolved once. All of them listen on return.
///
/// # Errors
/// If somebody else has the port: `SO_REUSEPORT` alone would share it with another process of the same user.
pub(crate) fn bind(
    what: &str,
    addr: SocketAddr,
    workers: usize,
) -> Result<(SocketAddr, Vec<TcpListener>), StartError> {
    let refused = |source| StartError::Bind { what: what.to_owned(), addr, source };
    if addr.port() != 0 {
        // An exclusive bind fails if anyone listens there.
        drop(TcpListener::bind(addr).map_err(refused)?);
    }
    let first = shared(addr).map_err(refused)?;
    let bound = first.local_addr().map_err(refused)?;
    let mut sockets = vec![first];
    for _ in 1..workers {
        sockets.push(shared(bound).map_err(refused)?);
    }
    Ok((bound, sockets))
}

fn shared(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    keepalive::probe(&socket);
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_one_free_port() {
        let (addr, sockets) = bind("outbound", "127.0.0.1:0".parse().unwrap(), 3).unwrap();
        assert_ne!(addr.port(), 0);
        assert!(sockets.iter().all(|s| s.local_addr().unwrap() == addr));
    }

    #[test]
    fn a_port_in_use_is_one_clear_error_even_if_it_could_be_shared() {
        let (addr, _sockets) = bind("outbound", "127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let error = bind("inbound", addr, 2).unwrap_err().to_string();
        for part in ["inbound", &addr.to_string(), "in use"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
