//! The new process: what it gets from the one whose place it takes.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use weft_gossip::Continuation;

use super::wire::{self, FromNew, FromOld, Order, What};
use super::{HandoverError, PROTOCOL, SOCKET, STEP_TIMEOUT};
use crate::cluster::learnt::Learnt;
use crate::discovery::Discovery;

/// Between two looks at whether all services are known.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A process that is being taken over.
pub(crate) struct Taken {
    stream: UnixStream,
}

/// Its sockets, and its lock. What is not taken stays here.
#[derive(Default)]
pub(crate) struct Inherited {
    pub lock: Option<File>,
    pub handover: Option<UnixListener>,
    admin: Option<TcpListener>,
    gossip_udp: Option<UdpSocket>,
    gossip_tcp: Option<TcpListener>,
    listeners: Vec<(String, String, OwnedFd)>,
}

/// What it knew.
pub(crate) struct State {
    /// Its place in the gossip pool.
    pub continuation: Option<Continuation>,
    wanted: Vec<String>,
    held: Vec<String>,
    /// Of endpoints.
    pub learnt: Vec<Learnt>,
}

/// Begins to take over the process that has this data folder. `None` if there is none.
///
/// # Errors
/// If there is one, and it cannot be taken over.
pub(crate) async fn begin(data_dir: &Path) -> Result<Option<(Taken, Inherited)>, HandoverError> {
    let path = data_dir.join(SOCKET);
    blocking(move || {
        let mut stream = match UnixStream::connect(&path) {
            Ok(stream) => stream,
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        stream.set_read_timeout(Some(STEP_TIMEOUT))?;
        stream.set_write_timeout(Some(STEP_TIMEOUT))?;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let hello = FromNew::Hello { protocol: PROTOCOL, version, pid: std::process::id() };
        wire::send(&mut stream, &hello, &[])?;
        match ask(&mut stream)? {
            (FromOld::Offer { version, pid, descriptors }, _) => {
                tracing::info!(version, pid, "taking over the running process");
                let all = wire::receive_descriptors(&stream, descriptors.len())?;
                let inherited = Inherited::new(descriptors.into_iter().zip(all));
                Ok(Some((Taken { stream }, inherited)))
            }
            _ => Err(out_of_order()),
        }
    })
    .await
}

/// Tells the proxy that has this data folder what to do, and waits until that is done, for `limit` at most.
///
/// # Errors
/// If there is none, or it does not answer.
pub async fn order(data_dir: &Path, order: Order, limit: Duration) -> Result<(), HandoverError> {
    let path = data_dir.join(SOCKET);
    blocking(move || {
        let mut stream = UnixStream::connect(&path)?;
        stream.set_write_timeout(Some(STEP_TIMEOUT))?;
        stream.set_read_timeout(Some(limit))?;
        wire::send(&mut stream, &FromNew::Order(order), &[])?;
        match ask(&mut stream)? {
            (FromOld::Done, _) => Ok(()),
            _ => Err(out_of_order()),
        }
    })
    .await
}

impl Taken {
    /// All that may fail is done. From here on the other process is silent, until it is told that we serve or that we are
    /// gone.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn prepared(&self) -> Result<State, HandoverError> {
        let mut stream = self.stream.try_clone()?;
        blocking(move || {
            wire::send(&mut stream, &FromNew::Prepared, &[])?;
            let (FromOld::State { wanted, held, learnt }, gossip) = ask(&mut stream)? else {
                return Err(out_of_order());
            };
            let continuation = match gossip.as_slice() {
                [] => None,
                bytes => Some(Continuation::decode(bytes).map_err(io::Error::other)?),
            };
            Ok(State { continuation, wanted, held, learnt })
        })
        .await
    }

    /// We serve, and the other process need not any more.
    ///
    /// # Errors
    /// If it does not agree: then it goes on, and we must not.
    pub async fn serving(self) -> Result<(), HandoverError> {
        let Self { mut stream } = self;
        blocking(move || {
            wire::send(&mut stream, &FromNew::Serving, &[])?;
            match wire::receive(&mut stream)? {
                // Gone without a word: there is nobody but us.
                Some((FromOld::Over, _)) | None => Ok(()),
                Some((FromOld::Refused { reason }, _)) => Err(HandoverError::Refused(reason)),
                Some(_) => Err(out_of_order()),
            }
        })
        .await
    }
}

impl State {
    /// Waits until discovery holds what the other process held.
    ///
    /// # Errors
    /// If it does not in time.
    pub async fn taken_up_by(&self, discovery: &Discovery) -> Result<(), HandoverError> {
        for service in &self.wanted {
            discovery.want(service);
        }
        let snapshots = discovery.snapshots();
        let until = tokio::time::Instant::now() + STEP_TIMEOUT / 2;
        loop {
            let missing: Vec<String> = {
                let snapshot = snapshots.borrow();
                let known: HashSet<&str> = snapshot.clusters.keys().map(String::as_str).collect();
                self.held.iter().filter(|name| !known.contains(name.as_str())).cloned().collect()
            };
            if missing.is_empty() {
                return Ok(());
            }
            if tokio::time::Instant::now() >= until {
                return Err(HandoverError::Incomplete(missing));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

impl Inherited {
    fn new(all: impl Iterator<Item = (What, OwnedFd)>) -> Self {
        let mut new = Self::default();
        for (what, descriptor) in all {
            match what {
                What::Lock => new.lock = Some(descriptor.into()),
                What::Handover => new.handover = Some(descriptor.into()),
                What::Admin => new.admin = Some(descriptor.into()),
                What::GossipUdp => new.gossip_udp = Some(descriptor.into()),
                What::GossipTcp => new.gossip_tcp = Some(descriptor.into()),
                What::Listener { name, at } => new.listeners.push((name, at, descriptor)),
            }
        }
        new
    }

    /// The admin listener, if it is at this address.
    pub fn admin(&mut self, addr: SocketAddr) -> Option<TcpListener> {
        self.admin.take_if(|socket| socket.local_addr().is_ok_and(|at| is_at(at, addr)))
    }

    /// The sockets of gossip, if they are at this address.
    pub fn gossip(&mut self, addr: SocketAddr) -> Option<(UdpSocket, TcpListener)> {
        let fits =
            self.gossip_udp.as_ref().is_some_and(|udp| udp.local_addr().is_ok_and(|at| is_at(at, addr)));
        if fits { self.gossip_udp.take().zip(self.gossip_tcp.take()) } else { None }
    }

    /// All handles on the listener at this address; with port 0, on the one of this name.
    pub fn tcp(&mut self, name: &str, addr: SocketAddr) -> Option<(SocketAddr, Vec<TcpListener>)> {
        let fits = |(of, at, _): &(String, String, OwnedFd)| {
            let at = at.parse::<SocketAddr>().ok()?;
            (is_at(at, addr) && (addr.port() != 0 || of == name)).then_some(at)
        };
        let at = self.listeners.iter().find_map(fits)?;
        let sockets = self.at(&at.to_string()).into_iter().map(TcpListener::from).collect();
        Some((at, sockets))
    }

    /// All handles on the listener with this file.
    pub fn unix(&mut self, path: &Path) -> Option<Vec<UnixListener>> {
        let all = self.at(&path.display().to_string());
        if all.is_empty() { None } else { Some(all.into_iter().map(UnixListener::from).collect()) }
    }

    fn at(&mut self, place: &str) -> Vec<OwnedFd> {
        let all = std::mem::take(&mut self.listeners);
        let (these, others) = all.into_iter().partition(|(_, at, _)| at == place);
        self.listeners = others;
        let these: Vec<(String, String, OwnedFd)> = these;
        these.into_iter().map(|(_, _, descriptor)| descriptor).collect()
    }

    /// Files of listeners that this process has no use for.
    pub fn remove_left_files(&self) {
        let paths = self.listeners.iter().map(|(_, at, _)| Path::new(at));
        for path in paths.filter(|path| path.is_absolute()) {
            if let Err(error) = std::fs::remove_file(path) {
                tracing::debug!(path = %path.display(), %error, "socket file");
            }
        }
    }
}

fn is_at(at: SocketAddr, wanted: SocketAddr) -> bool {
    at.ip() == wanted.ip() && (wanted.port() == 0 || at.port() == wanted.port())
}

/// The next message, unless it is a refusal.
fn ask(stream: &mut UnixStream) -> Result<(FromOld, Vec<u8>), HandoverError> {
    match wire::receive(stream)? {
        Some((FromOld::Refused { reason }, _)) => Err(HandoverError::Refused(reason)),
        Some(answer) => Ok(answer),
        None => Err(HandoverError::Refused("it closed the connection".to_owned())),
    }
}

fn out_of_order() -> HandoverError {
    io::Error::other("it answered out of order").into()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HandoverError> + Send + 'static,
) -> Result<T, HandoverError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error).into()))
}
