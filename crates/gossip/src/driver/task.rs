//! The task.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use weft_core::limits::GOSSIP_DATAGRAM_BYTES_MAX;

use super::stream::{self, Origin, StreamEvent};
use super::{BoundGossip, Requests, Shared, Turn};
use crate::continuation::Continuation;
use crate::pool::{Output, Pool, StreamId};
use crate::sync::RECORDS_FRAMES_MAX;

/// Datagrams read in one go before timers and streams get their turn.
const BURST: usize = 128;
/// Frames that wait to be sent on one stream: all that a session sends.
const STREAM_QUEUE: usize = RECORDS_FRAMES_MAX + 4;
/// Frames and ends of streams that wait for the task; streams wait when it is full.
const EVENTS_QUEUE: usize = 64;
/// Waiting for the last write of the peers file when leaving.
const SAVE_MAX: Duration = Duration::from_millis(500);
const RESOLVE_MAX: Duration = Duration::from_secs(3);
/// Seeds that are being looked up; a seed is looked up again only after its last one ended.
const RESOLVED_QUEUE: usize = 64;

pub(super) struct Task {
    pool: Pool,
    udp: UdpSocket,
    tcp: TcpListener,
    shared: Arc<Shared>,
    woken: watch::Receiver<()>,
    /// Another process may be going on in our place: nothing is sent, read or written.
    held: bool,
    /// Locked by the one who writes it.
    peers_file: Option<Arc<Mutex<PathBuf>>>,

    /// Senders of the open streams; dropping one closes its stream after what was sent.
    streams: HashMap<StreamId, mpsc::Sender<Bytes>>,
    events: (mpsc::Sender<StreamEvent>, mpsc::Receiver<StreamEvent>),
    resolved: (mpsc::Sender<Resolved>, mpsc::Receiver<Resolved>),
    resolving: std::collections::HashSet<String>,
    /// Streams and look-ups; aborted when the task ends.
    jobs: JoinSet<()>,
    /// Writes of the peers file; the last one is waited for.
    saves: JoinSet<()>,
}

type Resolved = (String, Vec<SocketAddr>);

impl Task {
    pub(super) fn new(
        pool: Pool,
        bound: BoundGossip,
        shared: Arc<Shared>,
        woken: watch::Receiver<()>,
        peers_file: Option<PathBuf>,
        held: bool,
    ) -> Self {
        Self {
            pool,
            udp: bound.udp,
            tcp: bound.tcp,
            shared,
            woken,
            held,
            peers_file: peers_file.map(|path| Arc::new(Mutex::new(path))),
            streams: HashMap::new(),
            events: mpsc::channel(EVENTS_QUEUE),
            resolved: mpsc::channel(RESOLVED_QUEUE),
            resolving: std::collections::HashSet::new(),
            jobs: JoinSet::new(),
            saves: JoinSet::new(),
        }
    }

    pub(super) async fn run(mut self) {
        // One more than allowed, so that a longer datagram is seen to be longer.
        let mut buf = vec![0; GOSSIP_DATAGRAM_BYTES_MAX + 1];
        let mut last_handle_gone = false;
        loop {
            if self.held {
                if self.woken.changed().await.is_err() {
                    return;
                }
                match self.take_turn() {
                    Some(Turn::Resume) => self.held = false,
                    // Its own, while the other one has not begun.
                    Some(Turn::Hold(answer)) => self.hold(answer),
                    Some(Turn::Leave | Turn::LetGo) => return,
                    None => {}
                }
                continue;
            }
            self.do_outputs().await;
            let due = self.pool.poll_timeout();
            tokio::select! {
                woken = self.woken.changed() => {
                    last_handle_gone = woken.is_err();
                }
                received = self.udp.recv_from(&mut buf) => self.received(received, &buf),
                Some(event) = self.events.1.recv() => self.stream_event(event),
                Some((seed, addrs)) = self.resolved.1.recv() => {
                    self.resolving.remove(&seed);
                    self.pool.handle_resolved(Instant::now(), &seed, addrs);
                }
                Ok((socket, _)) = self.tcp.accept() => self.accepted(socket),
                Some(_) = self.jobs.join_next() => {}
                Some(_) = self.saves.join_next() => {}
                () = sleep_until(due) => {}
            }
            self.requests();
            match self.take_turn() {
                Some(Turn::Leave) => return self.leave().await,
                Some(Turn::LetGo) => return,
                Some(Turn::Hold(answer)) => {
                    self.hold(answer);
                    continue;
                }
                _ if last_handle_gone => return self.leave().await,
                Some(Turn::Resume) | None => {}
            }
            self.read_waiting(&mut buf);
            self.pool.handle_timeout(Instant::now());
        }
    }

    fn take_turn(&self) -> Option<Turn> {
        self.shared.requests.lock().turn.take()
    }

    fn hold(&mut self, answer: oneshot::Sender<Continuation>) {
        self.held = true;
        // Streams end: their other halves compare again with whoever goes on.
        self.streams.clear();
        if answer.send(self.pool.continuation()).is_err() {
            // Nobody waits for it any more.
            self.held = false;
        }
    }

    /// Does what was asked through handles, but for the task's own turn.
    fn requests(&mut self) {
        let (advertise, seeds, withdraw) = {
            let mut requests = self.shared.requests.lock();
            let Requests { advertise, seeds, withdraw, turn: _ } = &mut *requests;
            (advertise.take(), std::mem::take(seeds), withdraw.take())
        };
        let now = Instant::now();
        for seed in seeds {
            self.pool.add_seed(now, seed.to_string());
        }
        if let Some(instances) = advertise
            && let Err(error) = self.pool.advertise(now, instances)
        {
            tracing::error!("not advertised: {error}");
        }
        if let Some(begun) = withdraw {
            self.pool.withdraw(now);
            self.shared.unheard.send_replace(self.pool.unheard());
            // It may have been given up.
            let _ = begun.send(());
        }
    }

    fn received(&mut self, received: io::Result<(usize, SocketAddr)>, buf: &[u8]) {
        match received {
            Ok((len, from)) => self.pool.handle_datagram(Instant::now(), from, &buf[..len]),
            // The system reports here that an earlier datagram of ours was not delivered.
            Err(error) => tracing::debug!("gossip socket: {error}"),
        }
    }

    fn read_waiting(&mut self, buf: &mut [u8]) {
        for _ in 0..BURST {
            match self.udp.try_recv_from(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                received => self.received(received, buf),
            }
        }
    }

    fn accepted(&mut self, socket: TcpStream) {
        if let Some(id) = self.pool.handle_accept() {
            self.spawn_stream(id, Origin::Accepted(socket));
        }
    }

    fn spawn_stream(&mut self, id: StreamId, origin: Origin) {
        let (sender, outgoing) = mpsc::channel(STREAM_QUEUE);
        self.streams.insert(id, sender);
        self.jobs.spawn(stream::run(id, origin, outgoing, self.events.0.clone()));
    }

    fn stream_event(&mut self, event: StreamEvent) {
        let now = Instant::now();
        match event {
            StreamEvent::Frame(id, bytes) => self.pool.handle_frame(now, id, &bytes),
            StreamEvent::Closed(id) => {
                self.streams.remove(&id);
                self.pool.handle_stream_closed(id);
            }
        }
    }

    async fn do_outputs(&mut self) {
        let mut changed = false;
        while let Some(output) = self.pool.poll_output() {
            match output {
                Output::Datagram { to, bytes } => {
                    // Waits only while the system's send buffer is full, which keeps us from losing our own news.
                    match self.udp.send_to(&bytes, to).await {
                        Ok(_) => self.shared.stats.datagrams_sent.inc(),
                        Err(error) => {
                            self.shared.stats.send_errors.inc();
                            tracing::debug!(%to, "datagram not sent: {error}");
                        }
                    }
                }
                Output::Resolve { seed } => self.resolve(seed),
                Output::Connect { stream, to } => self.spawn_stream(stream, Origin::Connect(to)),
                Output::Frame { stream, bytes } => {
                    let sent = self.streams.get(&stream).map(|sender| sender.try_send(bytes));
                    if let Some(Err(mpsc::error::TrySendError::Full(_))) = sent {
                        // A session never sends more than the queue holds; if it does, the next one goes on.
                        self.streams.remove(&stream);
                    }
                }
                Output::Close { stream } => {
                    self.streams.remove(&stream);
                }
                Output::SavePeers(text) => self.save_peers(text),
                Output::Changed => changed = true,
            }
        }
        if changed {
            self.shared.publish(&self.pool);
        }
        let left = self.pool.unheard();
        self.shared.unheard.send_if_modified(|unheard| std::mem::replace(unheard, left) != left);
    }

    fn resolve(&mut self, seed: String) {
        if !self.resolving.insert(seed.clone()) {
            return;
        }
        let resolved = self.resolved.0.clone();
        self.jobs.spawn(async move {
            let addrs = match tokio::time::timeout(RESOLVE_MAX, tokio::net::lookup_host(&seed)).await {
                Ok(Ok(addrs)) => addrs.collect(),
                Ok(Err(error)) => {
                    tracing::debug!("{seed} not resolved: {error}");
                    Vec::new()
                }
                Err(_) => {
                    tracing::debug!("{seed} not resolved within {RESOLVE_MAX:?}");
                    Vec::new()
                }
            };
            let _ = resolved.send((seed, addrs)).await;
        });
    }

    fn save_peers(&mut self, text: String) {
        if let Some(path) = self.peers_file.clone() {
            self.saves.spawn_blocking(move || {
                let path = path.lock();
                if let Err(error) = weft_core::fsio::write_atomic(&path, text.as_bytes()) {
                    tracing::warn!("known peers not written to {}: {error}", path.display());
                }
            });
        }
    }

    async fn leave(mut self) {
        self.pool.leave(Instant::now());
        self.do_outputs().await;
        let saved = async { while self.saves.join_next().await.is_some() {} };
        if tokio::time::timeout(SAVE_MAX, saved).await.is_err() {
            tracing::warn!("known peers not written within {SAVE_MAX:?}");
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
