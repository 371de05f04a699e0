//! Connections to machines that have vanished without a word, which the kernel finds out.

use std::os::fd::AsFd;

use socket2::{SockRef, TcpKeepalive};

use crate::limits::{TCP_KEEPALIVE_IDLE, TCP_KEEPALIVE_INTERVAL, TCP_USER_TIMEOUT};

/// Lets the kernel end this connection, or those that this listening socket accepts, which inherit it, when the other side is
/// gone. A socket that takes no such option goes on without.
pub(crate) fn probe(socket: &impl AsFd) {
    let socket = SockRef::from(socket);
    let keepalive = TcpKeepalive::new().with_time(TCP_KEEPALIVE_IDLE).with_interval(TCP_KEEPALIVE_INTERVAL);
    let _ = socket.set_tcp_keepalive(&keepalive);
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT));
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use crate::listener::socket;

    use super::*;

    #[tokio::test]
    async fn an_accepted_connection_and_one_to_an_endpoint_are_probed() {
        let (addr, mut listening) = socket::bind("x", "127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let listener = tokio::net::TcpListener::from_std(listening.remove(0)).unwrap();
        let to = crate::upstream::connect::Place { addr, secure: None, announced: None };
        let limit = std::time::Duration::from_secs(5);
        let far =
            crate::upstream::connect::open(&to, crate::tls::secure::Speaks::Http1, limit).await.unwrap();
        let tokio_util::either::Either::Left(far) = far else { panic!("there is no TLS") };
        let (near, _) = listener.accept().await.unwrap();
        for stream in [&near, &far] {
            let socket = SockRef::from(stream);
            assert!(socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), TCP_KEEPALIVE_IDLE);
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), TCP_KEEPALIVE_INTERVAL);
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(TCP_USER_TIMEOUT));
        }
    }
}
