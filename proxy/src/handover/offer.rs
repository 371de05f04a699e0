//! The old process: what it hands over, and to whom.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use weft_gossip::GossipHandle;

use super::take::Inherited;
use super::wire::{self, FromNew, FromOld, Order, What};
use super::{PROTOCOL, SOCKET, STEP_TIMEOUT};
use crate::discovery::Discovery;
use crate::listener::unix::{self, SocketFile};
use crate::mesh_view::MeshState;

/// The socket by which a process is found that can be taken over. None if it cannot be had: then it is restarted instead.
pub(crate) fn listen(data_dir: &Path, inherited: &mut Inherited) -> Option<(UnixListener, SocketFile)> {
    let path = data_dir.join(SOCKET);
    let listening = match inherited.handover.take() {
        Some(listener) => SocketFile::inherit(&path).map(|file| (listener, file)),
        None => unix::bind(&path, 0o600, 1).and_then(|(file, mut handles)| {
            Ok((handles.pop().ok_or_else(|| io::Error::other("no handle"))?, file))
        }),
    };
    match listening {
        Ok(listening) => Some(listening),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "this proxy cannot be upgraded while it runs");
            None
        }
    }
}

/// What can be handed over.
pub(crate) type Descriptors = Vec<(What, OwnedFd)>;

/// A running proxy, as far as another process may take it over.
pub(crate) struct Offer {
    /// None once it stops. Held by a talk while it lasts; the lock covers taking it in or out.
    descriptors: Mutex<Option<Arc<Descriptors>>>,
    discovery: Discovery,
    outbound: Arc<MeshState>,
    /// The workers' clock.
    epoch: Instant,
    gossip: Option<GossipHandle>,
    draining: Arc<AtomicBool>,
    taken: watch::Sender<bool>,
    orders: mpsc::Sender<(Order, Carried)>,
}

/// Dropped when an order is carried out.
pub(crate) type Carried = oneshot::Sender<()>;

/// Why a talk ended without a change.
#[derive(Debug, thiserror::Error)]
enum GivenUp {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it ended before it served")]
    Ended,
    #[error("it sent {0}, which does not belong there")]
    Unexpected(&'static str),
    #[error("refused: {0}")]
    Refused(String),
}

impl Offer {
    pub fn new(
        descriptors: Descriptors,
        discovery: Discovery,
        (outbound, epoch): (Arc<MeshState>, Instant),
        gossip: Option<GossipHandle>,
        draining: Arc<AtomicBool>,
    ) -> (Arc<Self>, mpsc::Receiver<(Order, Carried)>) {
        let descriptors = Mutex::new(Some(Arc::new(descriptors)));
        let (orders, given) = mpsc::channel(1);
        let taken = watch::Sender::new(false);
        (Arc::new(Self { descriptors, discovery, outbound, epoch, gossip, draining, taken, orders }), given)
    }

    /// Ends it: as long as there is an offer, closed listeners would go on listening.
    pub fn withdraw(&self) {
        self.descriptors.lock().take();
    }

    /// Whether another process has taken over.
    pub fn is_taken(&self) -> bool {
        *self.taken.borrow()
    }

    /// Completes when another process has taken over.
    pub async fn taken(&self) {
        // The sender lives as long as we do.
        let _ = self.taken.subscribe().wait_for(|taken| *taken).await;
    }

    /// Talks to one process after the other, until one has taken over.
    pub async fn run(self: Arc<Self>, listener: UnixListener) {
        let listener = match tokio::net::UnixListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "this proxy cannot be upgraded while it runs"),
        };
        while !self.is_taken() {
            let stream = match listener.accept().await.and_then(|(stream, _)| stream.into_std()) {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::debug!(%error, "handover socket");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (offer, runtime) = (self.clone(), Handle::current());
            let talk = tokio::task::spawn_blocking(move || offer.talk(stream, &runtime)).await;
            match talk {
                Ok(Ok(())) if self.is_taken() => {
                    tracing::info!("another process has taken over; finishing what is in flight");
                }
                Ok(Ok(())) => {}
                Ok(Err(why)) => tracing::warn!(%why, "a process that wanted to take over did not; going on"),
                Err(error) => tracing::error!(%error, "handover"),
            }
        }
    }

    fn talk(&self, mut stream: UnixStream, runtime: &Handle) -> Result<(), GivenUp> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(STEP_TIMEOUT))?;
        stream.set_write_timeout(Some(STEP_TIMEOUT))?;
        // Elsewhere the permissions of the socket's file have to do.
        #[cfg(target_os = "linux")]
        {
            let peer = rustix::net::sockopt::socket_peercred(&stream).map_err(io::Error::from)?;
            if peer.uid != rustix::process::geteuid() && !peer.uid.is_root() {
                return refuse(
                    &mut stream,
                    format!("user {} is not the one that runs it", peer.uid.as_raw()),
                );
            }
        }
        match wire::receive(&mut stream)? {
            Some((FromNew::Hello { protocol: PROTOCOL, version, pid }, _)) => {
                tracing::info!(version, pid, "a process takes over");
            }
            Some((FromNew::Hello { protocol, version, .. }, _)) => {
                let own = env!("CARGO_PKG_VERSION");
                return refuse(
                    &mut stream,
                    format!(
                        "weft {version} hands over by protocol {protocol}, this weft {own} by {PROTOCOL}; restart it instead"
                    ),
                );
            }
            Some((FromNew::Order(order), _)) => return self.pass_on(&mut stream, order),
            Some(_) => return Err(GivenUp::Unexpected("something before hello")),
            None => return Err(GivenUp::Ended),
        }
        let Some(descriptors) = self.descriptors.lock().clone() else {
            return refuse(&mut stream, "it is stopping".to_owned());
        };
        let labels = descriptors.iter().map(|(what, _)| what.clone()).collect();
        let offer = FromOld::Offer {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            descriptors: labels,
        };
        wire::send(&mut stream, &offer, &[])?;
        let all: Vec<_> = descriptors.iter().map(|(_, descriptor)| descriptor.as_fd()).collect();
        wire::send_descriptors(&stream, &all)?;
        expect(&mut stream, &FromNew::Prepared)?;
        if self.is_stopping() {
            return refuse(&mut stream, "it is stopping".to_owned());
        }

        let silent = Silent { offer: self, over: false };
        let (wanted, held, continuation) = runtime.block_on(async {
            let (wanted, held) = self.discovery.hand_over().await;
            let continuation = match &self.gossip {
                Some(gossip) => gossip.hold().await,
                None => None,
            };
            (wanted, held, continuation)
        });
        let continuation = continuation.map(|c| c.encode()).unwrap_or_default();
        let learnt = self.outbound.learnt(Instant::now(), self.epoch);
        wire::send(&mut stream, &FromOld::State { wanted, held, learnt }, &continuation)?;
        if let Err(why) = expect(&mut stream, &FromNew::Serving) {
            // One that is late must not begin: we go on.
            let _ = wire::send(&mut stream, &FromOld::Refused { reason: why.to_string() }, &[]);
            return Err(why);
        }
        if self.is_stopping() {
            return refuse(&mut stream, "it is stopping".to_owned());
        }
        wire::send(&mut stream, &FromOld::Over, &[])?;
        silent.over();
        self.taken.send_replace(true);
        Ok(())
    }

    /// To whoever runs the proxy.
    fn pass_on(&self, stream: &mut UnixStream, order: Order) -> Result<(), GivenUp> {
        tracing::info!(?order, "the supervisor");
        let (carried, out) = oneshot::channel();
        if self.orders.blocking_send((order, carried)).is_err() {
            return refuse(stream, "it is stopping".to_owned());
        }
        // An error says that it was dropped, which is what is waited for.
        let _ = out.blocking_recv();
        Ok(wire::send(stream, &FromOld::Done, &[])?)
    }

    fn is_stopping(&self) -> bool {
        self.draining.load(Ordering::Acquire) || self.descriptors.lock().is_none()
    }
}

fn expect(stream: &mut UnixStream, expected: &FromNew) -> Result<(), GivenUp> {
    match wire::receive::<FromNew>(stream)? {
        Some((message, _)) if message == *expected => Ok(()),
        Some(_) => Err(GivenUp::Unexpected("a message out of order")),
        None => Err(GivenUp::Ended),
    }
}

fn refuse(stream: &mut UnixStream, reason: String) -> Result<(), GivenUp> {
    wire::send(stream, &FromOld::Refused { reason: reason.clone() }, &[])?;
    Err(GivenUp::Refused(reason))
}

/// We say and write nothing, since another process may be going on in our place. Dropped before that is certain, we go on.
struct Silent<'a> {
    offer: &'a Offer,
    over: bool,
}

impl Silent<'_> {
    fn over(mut self) {
        self.over = true;
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        self.offer.discovery.take_back();
        if let Some(gossip) = &self.offer.gossip {
            gossip.resume();
        }
    }
}
