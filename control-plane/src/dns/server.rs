//! The sockets: one UDP task, one TCP accept task, and a bounded number of TCP connections.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weft_core::metrics::Counter;

use super::records::Found;
use super::wire::{self, Transport};

/// A TCP client that says nothing for this long is closed (RFC 7766 §6.2.3 asks for seconds).
const TCP_IDLE_MAX: Duration = Duration::from_secs(10);

/// Most TCP connections at a time; more are closed at once.
const TCP_CONNECTIONS_MAX: usize = 256;

/// Largest query we read: questions are small, whatever the length prefix claims.
const QUERY_BYTES_MAX: usize = 4_096;

/// Attempts to find a port that is free for both TCP and UDP, when any port will do.
const PORT_ATTEMPTS: usize = 16;

/// Both sockets of the DNS port, bound and not yet served.
#[derive(Debug)]
pub struct BoundDns {
    udp: UdpSocket,
    tcp: TcpListener,
    addr: SocketAddr,
}

/// Answers what is known of a service.
pub type Source = Arc<dyn Fn(&str) -> Found + Send + Sync>;

/// What DNS counts.
#[derive(Debug, Clone, Default)]
pub struct DnsCounters {
    /// Packets received over either transport.
    pub queries: Counter,
    /// Packets dropped without an answer.
    pub dropped: Counter,
    /// Connections closed because there were too many.
    pub shed: Counter,
}

impl BoundDns {
    /// Binds TCP and UDP on one port; with port 0, on any port that both have free.
    ///
    /// # Errors
    /// Those of binding.
    pub async fn bind(addr: SocketAddr) -> io::Result<Self> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let tcp = TcpListener::bind(addr).await?;
            let local = tcp.local_addr()?;
            match UdpSocket::bind(local).await {
                Ok(udp) => return Ok(Self { udp, tcp, addr: local }),
                Err(e)
                    if e.kind() == io::ErrorKind::AddrInUse
                        && addr.port() == 0
                        && attempt < PORT_ATTEMPTS => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// The port that both sockets have.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until `stop`; every task is in `tasks`.
    pub fn serve(self, source: Source, counters: DnsCounters, stop: &CancellationToken, tasks: &TaskTracker) {
        let shared = Arc::new(Shared { source, counters, turn: AtomicUsize::new(fastrand::usize(..)) });
        let udp = serve_udp(self.udp, shared.clone());
        let tcp = serve_tcp(self.tcp, shared, stop.clone(), tasks.clone());
        let stopped = stop.clone();
        tasks.spawn(async move {
            stopped.run_until_cancelled(udp).await;
        });
        let stopped = stop.clone();
        tasks.spawn(async move {
            stopped.run_until_cancelled(tcp).await;
        });
    }
}

struct Shared {
    source: Source,
    counters: DnsCounters,
    /// Starts anywhere, so that servers that restart together do not all answer the same first instance.
    turn: AtomicUsize,
}

impl Shared {
    fn respond(&self, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
        self.counters.queries.inc();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let answer = wire::respond(packet, transport, &|name| (self.source)(name), turn);
        if answer.is_none() {
            self.counters.dropped.inc();
        }
        answer
    }
}

async fn serve_udp(socket: UdpSocket, shared: Arc<Shared>) {
    let mut packet = vec![0; QUERY_BYTES_MAX];
    loop {
        match socket.recv_from(&mut packet).await {
            Ok((len, from)) => {
                if let Some(answer) = shared.respond(&packet[..len], Transport::Udp) {
                    // The client asks again if this is lost.
                    let _ = socket.send_to(&answer, from).await;
                }
            }
            // Errors here belong to some earlier datagram (ICMP); only a loop without pause would harm.
            Err(error) => {
                tracing::debug!(%error, "dns: cannot receive");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken, tasks: TaskTracker) {
    let places = Arc::new(Semaphore::new(TCP_CONNECTIONS_MAX));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "dns: cannot accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            shared.counters.shed.inc();
            continue;
        };
        let (shared, stop) = (shared.clone(), stop.clone());
        tasks.spawn(async move {
            // Ends of connections are the clients' business.
            let _ = stop.run_until_cancelled(serve_connection(stream, &shared)).await;
            drop(place);
        });
    }
}

/// Queries one after the other, each answered before the next is read.
async fn serve_connection(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut packet = Vec::new();
    loop {
        let read = async {
            let len = usize::from(stream.read_u16().await?);
            if len > QUERY_BYTES_MAX {
                return Err(io::Error::from(io::ErrorKind::InvalidData));
            }
            packet.resize(len, 0);
            stream.read_exact(&mut packet).await
        };
        timeout(TCP_IDLE_MAX, read).await??;
        let Some(answer) = shared.respond(&packet, Transport::Tcp) else {
            return Ok(());
        };
        let len = u16::try_from(answer.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        let mut framed = len.to_be_bytes().to_vec();
        framed.extend_from_slice(&answer);
        timeout(TCP_IDLE_MAX, stream.write_all(&framed)).await??;
    }
}

#[cfg(test)]
mod tests;
