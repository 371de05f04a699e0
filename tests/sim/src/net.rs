//! The network between the machines: connections as TCP has them, over links that delay, lose, stall and cut.
//!
//! What is written arrives later, in order within its connection and in any order between connections. A lost piece
//! is late by a retransmission, and what follows it waits. A cut link, which may be cut one way only, holds what is sent
//! until it is whole again; that a connection is dead then is for the programs to find out. A crashed machine answers
//! connections with a reset, or with nothing at all until it is back.

mod stream;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Waker;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use weft_core::net::{Dial, Dialling, GivenStream, Listener};

use super::rng::Rng;
use super::trace::Trace;
use stream::SimStream;

/// Connections that wait to be accepted.
const BACKLOG: usize = 1024;

/// How long until a lost piece is sent again, in milliseconds.
const RETRANSMISSION_MS: u64 = 200;

/// The network. Clones share it.
#[derive(Clone)]
pub(crate) struct Net {
    state: Arc<Mutex<State>>,
}

/// How a directed link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) cut: bool,
    /// Shortest and longest time on the way, in milliseconds; at least 1.
    pub(crate) delay: (u64, u64),
    /// Pieces lost, of a thousand.
    pub(crate) loss_permille: u64,
}

impl Link {
    pub(crate) const GOOD: Link = Link { cut: false, delay: (1, 2), loss_permille: 0 };
}

struct State {
    now: u64,
    rng: Rng,
    trace: Trace,
    listeners: BTreeMap<SocketAddr, mpsc::Sender<(GivenStream, SocketAddr)>>,
    links: BTreeMap<(IpAddr, IpAddr), Link>,
    pipes: BTreeMap<u64, Pipe>,
    /// By due time, then by order of sending.
    events: BTreeMap<(u64, u64), Event>,
    /// On cut links, in order.
    held: BTreeMap<(IpAddr, IpAddr), Vec<Event>>,
    /// Machines that are off and say nothing, and those that wait for their answer.
    silent: BTreeMap<IpAddr, Vec<oneshot::Sender<io::Result<SimStream>>>>,
    next: u64,
}

/// One direction of a connection.
struct Pipe {
    from: IpAddr,
    to: IpAddr,
    arrived: BytesMut,
    in_flight: usize,
    /// When the last piece arrives: later ones not before it.
    last_at: u64,
    end: Option<End>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    reader_gone: bool,
    writer_gone: bool,
    /// The other side does not want any more.
    refused: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// All was sent.
    Finished,
    /// The other side is gone.
    Reset,
}

enum Event {
    Dial {
        from: IpAddr,
        to: SocketAddr,
        answer: oneshot::Sender<io::Result<SimStream>>,
    },
    Dialled {
        from: IpAddr,
        to: IpAddr,
        answer: oneshot::Sender<io::Result<SimStream>>,
        result: io::Result<SimStream>,
    },
    Data {
        pipe: u64,
        bytes: Bytes,
    },
    End {
        pipe: u64,
        end: End,
    },
    Refuse {
        pipe: u64,
    },
}

/// What happens once the lock is let go: the code behind it may come back here.
enum Effect {
    Wake(Waker),
    Accept { listener: mpsc::Sender<(GivenStream, SocketAddr)>, stream: SimStream, peer: SocketAddr },
    Answer { answer: oneshot::Sender<io::Result<SimStream>>, result: io::Result<SimStream> },
}

impl Net {
    pub(crate) fn new(rng: Rng, trace: Trace) -> Self {
        let state = State {
            now: 0,
            rng,
            trace,
            listeners: BTreeMap::new(),
            links: BTreeMap::new(),
            pipes: BTreeMap::new(),
            events: BTreeMap::new(),
            held: BTreeMap::new(),
            silent: BTreeMap::new(),
            next: 0,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Accepts connections to an address.
    pub(crate) fn listen(&self, addr: SocketAddr) -> Listener {
        let (connections, incoming) = mpsc::channel(BACKLOG);
        self.state.lock().listeners.insert(addr, connections);
        Listener::Given { addr, incoming }
    }

    /// Connects as a machine.
    pub(crate) fn dialer(&self, from: IpAddr) -> Arc<dyn Dial> {
        Arc::new(Dialer { net: self.clone(), from })
    }

    /// Changes a directed link; what it held goes on its way if it is whole.
    pub(crate) fn set_link(&self, from: IpAddr, to: IpAddr, link: Link) {
        let mut state = self.state.lock();
        state.links.insert((from, to), link);
        if !link.cut {
            for event in state.held.remove(&(from, to)).unwrap_or_default() {
                state.send(from, to, event);
            }
        }
    }

    /// A machine is off. Call before its programs are dropped, which must not say goodbye.
    pub(crate) fn crash(&self, ip: IpAddr, silent: bool) {
        let mut state = self.state.lock();
        state.listeners.retain(|addr, _| addr.ip() != ip);
        if silent {
            state.silent.entry(ip).or_default();
        }
        let mut ends = Vec::new();
        for (id, pipe) in &mut state.pipes {
            if pipe.to == ip {
                pipe.reader_gone = true;
            }
            if pipe.from == ip && !pipe.writer_gone {
                pipe.writer_gone = true;
                ends.push(*id);
            }
        }
        if !silent {
            ends.into_iter().for_each(|pipe| state.end(pipe, End::Reset));
        }
        state.sweep();
    }

    /// A machine is on again: whoever still talks to its former life is told.
    pub(crate) fn boot(&self, ip: IpAddr) {
        let mut state = self.state.lock();
        let Some(waiting) = state.silent.remove(&ip) else { return };
        for answer in waiting {
            let result = Err(io::ErrorKind::ConnectionRefused.into());
            state.send(ip, ip, Event::Dialled { from: ip, to: ip, answer, result });
        }
        let orphans: Vec<u64> =
            state.pipes.iter().filter(|(_, p)| p.from == ip && p.writer_gone).map(|(id, _)| *id).collect();
        orphans.into_iter().for_each(|pipe| state.end(pipe, End::Reset));
    }

    /// Delivers what is due.
    pub(crate) fn step(&self, now: u64) {
        self.state.lock().now = now;
        loop {
            let effects = {
                let mut state = self.state.lock();
                let Some(entry) = state.events.first_entry().filter(|e| e.key().0 <= now) else { return };
                let event = entry.remove();
                state.arrive(event, self)
            };
            for effect in effects {
                effect.happen();
            }
        }
    }
}

struct Dialer {
    net: Net,
    from: IpAddr,
}

impl Dial for Dialer {
    fn dial(&self, to: SocketAddr) -> Dialling {
        let (answer, answered) = oneshot::channel();
        let mut state = self.net.state.lock();
        state.send(self.from, to.ip(), Event::Dial { from: self.from, to, answer });
        Box::pin(async move {
            match answered.await {
                Ok(result) => result.map(|stream| Box::new(stream) as GivenStream),
                Err(_) => Err(io::ErrorKind::ConnectionReset.into()),
            }
        })
    }
}

impl Effect {
    fn happen(self) {
        match self {
            Effect::Wake(waker) => waker.wake(),
            // A full backlog or a stopped program drops the connection.
            Effect::Accept { listener, stream, peer } => _ = listener.try_send((Box::new(stream), peer)),
            Effect::Answer { answer, result } => _ = answer.send(result),
        }
    }
}

impl State {
    fn link(&self, from: IpAddr, to: IpAddr) -> Link {
        self.links.get(&(from, to)).copied().unwrap_or(Link::GOOD)
    }

    /// Puts something on its way.
    fn send(&mut self, from: IpAddr, to: IpAddr, event: Event) {
        let link = self.link(from, to);
        let mut at = self.now + self.rng.between(link.delay.0, link.delay.1 + 1).max(1);
        if self.rng.chance(link.loss_permille) {
            at += RETRANSMISSION_MS;
        }
        if let Event::Data { pipe, .. } | Event::End { pipe, .. } = &event
            && let Some(pipe) = self.pipes.get_mut(pipe)
        {
            at = at.max(pipe.last_at);
            pipe.last_at = at;
        }
        self.next += 1;
        self.events.insert((at, self.next), event);
    }

    fn end(&mut self, pipe: u64, end: End) {
        if let Some(Pipe { from, to, .. }) = self.pipes.get(&pipe) {
            self.send(*from, *to, Event::End { pipe, end });
        }
    }

    /// Both ends of this direction are gone.
    fn sweep(&mut self) {
        self.pipes.retain(|_, pipe| !(pipe.reader_gone && pipe.writer_gone));
    }

    fn way(&self, event: &Event) -> Option<(IpAddr, IpAddr)> {
        match event {
            Event::Dial { from, to, .. } => Some((*from, to.ip())),
            Event::Dialled { from, to, .. } => Some((*from, *to)),
            Event::Data { pipe, .. } | Event::End { pipe, .. } => {
                self.pipes.get(pipe).map(|p| (p.from, p.to))
            }
            Event::Refuse { pipe } => self.pipes.get(pipe).map(|p| (p.to, p.from)),
        }
    }

    fn arrive(&mut self, event: Event, net: &Net) -> Vec<Effect> {
        let Some((from, to)) = self.way(&event) else { return Vec::new() };
        if self.link(from, to).cut {
            self.held.entry((from, to)).or_default().push(event);
            return Vec::new();
        }
        match event {
            Event::Dial { from, to, answer } => self.dialled(from, to, answer, net),
            Event::Dialled { answer, result, .. } => vec![Effect::Answer { answer, result }],
            Event::Data { pipe: id, bytes } => {
                self.trace.note(&[1, self.now, id, bytes.len() as u64, u64::from(crc32fast::hash(&bytes))]);
                let Some(pipe) = self.pipes.get_mut(&id) else { return Vec::new() };
                pipe.in_flight -= bytes.len();
                if pipe.reader_gone {
                    if !self.silent.contains_key(&to) {
                        self.send(to, from, Event::Refuse { pipe: id });
                    }
                    return Vec::new();
                }
                pipe.arrived.extend_from_slice(&bytes);
                pipe.reader.take().map(Effect::Wake).into_iter().collect()
            }
            Event::End { pipe: id, end } => {
                self.trace.note(&[2, self.now, id]);
                let Some(pipe) = self.pipes.get_mut(&id) else { return Vec::new() };
                pipe.end = pipe.end.max_by_reset(end);
                let reader = pipe.reader.take();
                // A reset ends both directions.
                let back = (end == End::Reset).then(|| self.pipes.get_mut(&(id ^ 1))).flatten();
                let writer = back.and_then(|back| {
                    back.refused = true;
                    back.writer.take()
                });
                reader.into_iter().chain(writer).map(Effect::Wake).collect()
            }
            Event::Refuse { pipe: id } => {
                let Some(pipe) = self.pipes.get_mut(&id) else { return Vec::new() };
                pipe.refused = true;
                pipe.writer.take().map(Effect::Wake).into_iter().collect()
            }
        }
    }

    fn dialled(
        &mut self,
        from: IpAddr,
        to: SocketAddr,
        answer: oneshot::Sender<io::Result<SimStream>>,
        net: &Net,
    ) -> Vec<Effect> {
        if let Some(waiting) = self.silent.get_mut(&to.ip()) {
            waiting.push(answer);
            return Vec::new();
        }
        let back = to.ip();
        let Some(listener) = self.listeners.get(&to).cloned() else {
            let result = Err(io::ErrorKind::ConnectionRefused.into());
            self.send(back, from, Event::Dialled { from: back, to: from, answer, result });
            return Vec::new();
        };
        self.next += 1;
        let id = 2 * self.next;
        self.pipes.insert(id, Pipe::new(from, back));
        self.pipes.insert(id + 1, Pipe::new(back, from));
        let near = SimStream::new(net.clone(), id + 1, id);
        let far = SimStream::new(net.clone(), id, id + 1);
        self.send(back, from, Event::Dialled { from: back, to: from, answer, result: Ok(near) });
        vec![Effect::Accept { listener, stream: far, peer: SocketAddr::new(from, 40_000) }]
    }
}

impl Pipe {
    fn new(from: IpAddr, to: IpAddr) -> Self {
        Self {
            from,
            to,
            arrived: BytesMut::new(),
            in_flight: 0,
            last_at: 0,
            end: None,
            reader: None,
            writer: None,
            reader_gone: false,
            writer_gone: false,
            refused: false,
        }
    }
}

/// Ends of a pipe: a reset overrides what was finished.
trait MaxByReset {
    fn max_by_reset(self, other: End) -> Self;
}

impl MaxByReset for Option<End> {
    fn max_by_reset(self, other: End) -> Self {
        if self == Some(End::Reset) { self } else { Some(other) }
    }
}
