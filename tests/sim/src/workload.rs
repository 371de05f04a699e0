//! What clients do meanwhile, over the public gRPC APIs, and what they write down.
//!
//! - [`kv`]: reads, writes, deletes and transactions on a few keys.
//! - [`watch`]: watchers of these keys. [`compact`]: takes their history away.
//! - [`lease`]: sessions that live and end. [`lock`]: holders of a lock that write under its protection.
//! - [`call`]: one call to one server, and what its failure means.

pub(crate) mod call;
pub(crate) mod compact;
pub(crate) mod kv;
pub(crate) mod lease;
pub(crate) mod lock;
pub(crate) mod watch;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use http::Uri;
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

use super::net::Net;
use super::rng::Rng;
use super::server::{Number, grpc_addr};

/// Where all clients are. Their machine never fails and its clock is the world's.
pub(crate) const CLIENT_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 1));

/// Longest wait for an answer: above a server's own patience, so that it says itself what it knows.
const ANSWER_MAX: Duration = Duration::from_secs(7);

/// What every client has.
#[derive(Clone)]
pub(crate) struct Client {
    channels: Arc<Vec<Channel>>,
    started: Instant,
    /// No more calls are begun.
    stop: Arc<AtomicBool>,
}

impl Client {
    /// Connects to servers as they are needed. Call on the clients' machine.
    pub(crate) fn new(net: &Net, servers: &[Number], stop: Arc<AtomicBool>) -> Self {
        let dialer = net.dialer(CLIENT_IP);
        let channels = servers.iter().map(|server| {
            let (addr, dialer) = (grpc_addr(*server), dialer.clone());
            Endpoint::from_shared(format!("http://{addr}"))
                .expect("a socket address makes a valid URI")
                .connect_timeout(Duration::from_secs(1))
                .http2_keep_alive_interval(Duration::from_secs(2))
                .keep_alive_timeout(Duration::from_secs(2))
                .connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                    let dialling = dialer.dial(addr);
                    async move { dialling.await.map(TokioIo::new) }
                }))
        });
        Self { channels: Arc::new(channels.collect()), started: Instant::now(), stop }
    }

    /// Since the start of the run.
    pub(crate) fn at(&self) -> Duration {
        self.started.elapsed()
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// The same, with this server alone.
    pub(crate) fn only(&self, place: usize) -> Self {
        Self { channels: Arc::new(vec![self.channels[place].clone()]), ..self.clone() }
    }

    /// Any of the servers.
    pub(crate) fn any(&self, rng: &mut Rng) -> Channel {
        rng.pick(&self.channels).clone()
    }
}
