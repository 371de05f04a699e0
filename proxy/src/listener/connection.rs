//! What a connection's task, its guard and the worker's sweeper know of it together; all on one thread.
//!
//! Timeouts cost no timer per connection or request: reads and writes note the worker's tick, and a sweep every
//! [`TICK`] looks for connections that stood still too long.

use std::cell::{Cell, OnceCell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use http::{HeaderValue, response};
use weft_core::tls::spiffe::SpiffeId;

use super::clock::Clock;
use super::http1::head;
use super::refusal::Refusal;
use super::scanner::Position;
use crate::config::ClientTimeouts;
use crate::limits::{self, H2_PING_TIMEOUT, H2_RESETS_MIN, INTERIM_BYTES_MAX};
use crate::proxy_protocol::Client;
use crate::tcp::far_end::FarEnd;
use crate::telemetry::metrics::Direction;
use crate::tls::door::Peer;

/// Between two sweeps.
pub(crate) const TICK: Duration = Duration::from_millis(500);

/// Who looks after something else in the first place has this much more time for it.
const STALL_TICKS_AFTER: u64 = 2;

/// How long clients and endpoints may take; other times in tests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    pub head: Duration,
    pub idle: Duration,
    pub stall: Duration,
    pub request: Duration,
    /// Of a tunnel in which nothing moves.
    pub tunnel: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        ClientTimeouts::default().into()
    }
}

impl From<ClientTimeouts> for Timeouts {
    fn from(ClientTimeouts { head, idle, stall }: ClientTimeouts) -> Self {
        let (request, tunnel) = (limits::REQUEST_TIMEOUT, limits::TUNNEL_IDLE_TIMEOUT);
        Self { head, idle, stall, request, tunnel }
    }
}

/// What the request path says to the client of one request beside its answer, whatever the client speaks.
pub(crate) trait Downstream {
    /// An interim answer (1xx, RFC 9110 §15.2), unless the request has another one.
    fn inform(&self, head: response::Parts);

    /// The request has its answer. With a far end, what carries it leads there from now on.
    fn answered(&self, far_end: Option<Box<FarEnd>>);
}

/// One downstream connection.
pub(crate) struct Connection {
    pub peer: SocketAddr,
    /// Whom it had connected to.
    local: Cell<SocketAddr>,
    /// Of all of its worker.
    number: u64,
    /// The same as a field's value, once it was asked for.
    peer_value: OnceCell<HeaderValue>,
    /// It arrived by TLS.
    tls: Cell<bool>,
    /// Who is at its other end, where that was asked.
    shown: OnceCell<Box<Peer>>,
    clock: Rc<Clock>,
    refusal: Cell<Option<Refusal>>,
    position: Cell<Position>,
    /// Tick of the last byte read or written.
    moved: Cell<u64>,
    /// Tick of the first byte of the head that is arriving.
    head_since: Cell<u64>,
    closing: Cell<bool>,
    cut: Cell<bool>,
    /// By this fault of its client.
    fault: Cell<Option<&'static str>>,
    /// Its refusal was answered, and is counted there.
    refusal_told: Cell<bool>,
    head_late: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    http2: Cell<bool>,
    /// Tick since which the client has taken nothing of what waits for it.
    blocked: Cell<Option<u64>>,
    in_flight: Cell<u32>,
    /// Tick at which a request last began or ended.
    used: Cell<u64>,
    requests: Cell<u32>,
    /// Those that the client took back at once.
    abandoned: Cell<u32>,
    /// HTTP/1 requests that have an answer.
    answers: Cell<u32>,
    /// Interim answers that are to be written before the one that is waited for.
    interim: RefCell<Vec<u8>>,
    /// The last answer ended HTTP here; what is on the other side, until it is fetched.
    switched: Cell<bool>,
    far_end: RefCell<Option<Box<FarEnd>>>,
    /// How long nothing may move, once it carries bytes that are none of ours.
    tunnel: Cell<Option<Duration>>,
}

impl Connection {
    /// Why it is refused, if it is.
    pub fn refusal(&self) -> Option<Refusal> {
        self.refusal.get()
    }

    /// The same for whoever answers it.
    pub fn tell_refusal(&self) -> Option<Refusal> {
        self.refusal_told.set(true);
        self.refusal.get()
    }

    /// As what it is to be counted, if it ended badly by its client's fault and nobody has been told: a refusal behind the
    /// head of the answer, or why it was cut.
    pub fn untold(&self) -> Option<&'static str> {
        let refusal = self.refusal.get().filter(|_| !self.refusal_told.get());
        refusal.map(Refusal::label).or(self.fault.get())
    }

    pub fn refuse(&self, refusal: Refusal) {
        self.refusal.set(Some(refusal));
        self.refusal_told.set(false);
    }

    /// The present time, for the field of that name.
    pub fn date(&self) -> [u8; 29] {
        self.clock.date()
    }

    /// The address of the client as a field's value.
    pub fn peer_value(&self) -> &HeaderValue {
        let value = || HeaderValue::try_from(self.peer.ip().to_string());
        self.peer_value.get_or_init(|| value().unwrap_or(HeaderValue::from_static("unknown")))
    }

    /// Whom it had connected to, if that is known.
    pub fn connected_to(&self, local: SocketAddr) {
        self.local.set(local);
    }

    /// Whose it is, for endpoints that are told so.
    pub fn client(&self) -> Client {
        Client { source: self.peer, destination: self.local.get(), connection: self.number }
    }

    /// TLS was agreed on, and who is there is known if it was asked.
    pub fn secured(&self, shown: Option<Peer>) {
        self.tls.set(true);
        if let Some(shown) = shown {
            // Once a connection.
            let _ = self.shown.set(Box::new(shown));
        }
    }

    /// Whether it arrived by TLS.
    pub fn is_tls(&self) -> bool {
        self.tls.get()
    }

    /// Who is at its other end, where that was asked.
    pub fn shown(&self) -> Option<&Peer> {
        self.shown.get().map(|peer| &**peer)
    }

    /// The sidecar at its other end, if it has shown that it is one.
    pub fn sidecar(&self) -> Option<&SpiffeId> {
        self.shown()?.id.as_ref()
    }

    /// Bytes moved in either direction.
    pub fn moved(&self) {
        self.moved.set(self.clock.get());
    }

    /// Whether the client takes what it is sent.
    pub fn takes(&self, takes: bool) {
        if takes {
            self.blocked.set(None);
        } else if self.blocked.get().is_none() {
            self.blocked.set(Some(self.clock.get()));
        }
    }

    /// From here on it is HTTP/2.
    pub fn speaks_http2(&self) {
        self.position.set(Position::Idle);
        self.http2.set(true);
    }

    /// One more request.
    pub fn begin(self: &Rc<Self>) -> InFlight {
        let now = self.clock.get();
        self.in_flight.set(self.in_flight.get() + 1);
        self.requests.set(self.requests.get().saturating_add(1));
        self.used.set(now);
        InFlight { connection: self.clone(), since: now, answered: false }
    }

    /// Whether so many requests have answers. They come in order, so the last of them is the latest to have one.
    pub fn is_answered(&self, requests: u32) -> bool {
        self.answers.get() == requests
    }

    /// Those that are to be written now.
    pub fn interim(&self) -> Option<Vec<u8>> {
        let mut interim = self.interim.borrow_mut();
        (!interim.is_empty()).then(|| std::mem::take(&mut *interim))
    }

    /// See [`Downstream::answered`].
    pub fn is_switched(&self) -> bool {
        self.switched.get()
    }

    /// Where the connection leads from now on.
    pub fn take_far_end(&self) -> Option<Box<FarEnd>> {
        self.far_end.take()
    }

    /// From here on it carries bytes that are none of ours: other times hold.
    pub fn becomes_tunnel(&self, idle: Duration) {
        self.blocked.set(None);
        self.tunnel.set(Some(idle));
        self.moved();
    }

    /// What it carries is HTTP after all.
    pub fn is_no_tunnel(&self) {
        self.tunnel.set(None);
        self.moved();
    }

    /// Whether it is to end now, whatever it does.
    pub fn is_cut(&self) -> bool {
        self.cut.get()
    }

    /// `fault`: the client's, if it is one.
    fn cut_off(&self, fault: Option<&'static str>) {
        self.fault.set(fault);
        self.cut.set(true);
        self.wake();
    }

    /// Where the incoming stream stands now.
    pub fn at(&self, position: Position) {
        if position == Position::Head && self.position.get() != Position::Head {
            self.head_since.set(self.clock.get());
        }
        self.position.set(position);
    }

    /// Finish the request in progress, then close.
    pub fn close(&self) {
        self.closing.set(true);
        self.wake();
    }

    pub fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// Whether the head in progress took too long; asked once.
    pub fn take_head_late(&self) -> bool {
        self.head_late.take()
    }

    /// The task to wake when the sweeper or a drain has something to say.
    pub fn remember(&self, waker: &Waker) {
        let mut slot = self.waker.borrow_mut();
        if !slot.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }

    fn wake(&self) {
        let waker = self.waker.borrow().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn sweep(&self, now: u64, limits: &Timeouts) {
        if let Some(idle) = self.tunnel.get() {
            // Nobody here knows where its messages end. A quiet moment is the best there is to end it in a drain.
            let idle = if self.closing.get() { idle.min(limits::TUNNEL_QUIET) } else { idle };
            if now - self.moved.get() > ticks(idle) {
                self.cut_off(None);
            }
        } else if self.position.get() == Position::Head && now - self.head_since.get() > ticks(limits.head) {
            self.head_late.set(true);
            self.head_since.set(now);
            self.wake();
        } else if self.is_stuck(now, limits) {
            // One that does not take leave of us does no harm.
            let fault = (!self.closing.get() || self.in_flight.get() > 0).then_some("stalled");
            self.cut_off(fault);
        } else if self.is_idle(now, limits) && !self.closing.get() {
            self.close();
        }
    }

    /// HTTP/2 counts requests: signs of life move bytes as well.
    fn is_idle(&self, now: u64, limits: &Timeouts) -> bool {
        let since = if self.http2.get() { self.used.get() } else { self.moved.get() };
        self.in_flight.get() == 0 && now - since > ticks(limits.idle)
    }

    /// The client holds it without taking or giving anything. Not so one that waits for an answer, however long.
    fn is_stuck(&self, now: u64, limits: &Timeouts) -> bool {
        let quiet = now - self.moved.get();
        if let Some(since) = self.blocked.get() {
            return now - since > ticks(limits.stall);
        }
        if self.http2.get() {
            return self.closing.get() && self.in_flight.get() == 0 && quiet > ticks(H2_PING_TIMEOUT);
        }
        // Before the answer's head the request path looks after the body, and says what is wrong: in the second of two times at
        // the latest, as something may have moved in the first.
        let after = ticks(limits.idle.max(limits.stall * 2)) + STALL_TICKS_AFTER;
        self.position.get() == Position::Body && quiet > after
    }
}

/// To the client of the HTTP/1 request that began last.
impl Downstream for Connection {
    /// One that is too much for a client that takes nothing is dropped.
    fn inform(&self, head: response::Parts) {
        if self.is_answered(self.requests.get()) {
            return;
        }
        let mut text = head::interim(head);
        let mut interim = self.interim.borrow_mut();
        if interim.len() + text.len() <= INTERIM_BYTES_MAX {
            interim.append(&mut text);
        }
    }

    fn answered(&self, far_end: Option<Box<FarEnd>>) {
        self.answers.set(self.requests.get());
        self.switched.set(far_end.is_some());
        *self.far_end.borrow_mut() = far_end;
        if self.position.get() == Position::Body {
            // The guard may wait for it.
            self.wake();
        }
    }
}

/// A request until its answer has been handed over to its end.
pub(crate) struct InFlight {
    connection: Rc<Connection>,
    since: u64,
    answered: bool,
}

impl InFlight {
    /// There is an answer; its body follows.
    pub fn answered(&mut self) {
        self.answered = true;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let (of, now) = (&self.connection, self.connection.clock.get());
        of.in_flight.set(of.in_flight.get() - 1);
        of.used.set(now);
        // Within a second, as the clock shows it.
        if !self.answered && of.http2.get() && now - self.since <= 1 {
            of.abandoned.set(of.abandoned.get().saturating_add(1));
            if of.requests.get() >= H2_RESETS_MIN && of.abandoned.get() > of.requests.get() / 2 {
                of.cut_off(Some("rapid_reset"));
            }
        }
    }
}

fn ticks(limit: Duration) -> u64 {
    limit.as_millis().div_ceil(TICK.as_millis()) as u64
}

/// All connections of one worker.
#[derive(Default)]
pub(crate) struct Connections {
    timeouts: Timeouts,
    clock: Rc<Clock>,
    open: RefCell<Vec<Option<Rc<Connection>>>>,
    free: RefCell<Vec<usize>>,
    count: Cell<usize>,
    /// Accepted and not ended, those of apps and those of peers; the first moments included, in which nothing is known of them.
    accepted: [Cell<usize>; 2],
    /// So many have been there in all.
    opened: Cell<u64>,
    draining: Cell<bool>,
}

impl Connections {
    pub fn new(timeouts: Timeouts) -> Self {
        Self { timeouts, ..Self::default() }
    }

    pub fn open(self: &Rc<Self>, peer: SocketAddr, tls: bool) -> OpenConnection {
        let now = self.clock.get();
        self.opened.set(self.opened.get() + 1);
        let connection = Rc::new(Connection {
            peer,
            local: Cell::new(peer),
            number: self.opened.get(),
            peer_value: OnceCell::new(),
            tls: Cell::new(tls),
            shown: OnceCell::new(),
            clock: self.clock.clone(),
            refusal: Cell::new(None),
            position: Cell::new(Position::Idle),
            moved: Cell::new(now),
            head_since: Cell::new(now),
            closing: Cell::new(self.draining.get()),
            cut: Cell::new(false),
            fault: Cell::new(None),
            refusal_told: Cell::new(false),
            head_late: Cell::new(false),
            waker: RefCell::new(None),
            http2: Cell::new(false),
            blocked: Cell::new(None),
            in_flight: Cell::new(0),
            used: Cell::new(now),
            requests: Cell::new(0),
            abandoned: Cell::new(0),
            answers: Cell::new(0),
            interim: RefCell::default(),
            switched: Cell::new(false),
            far_end: RefCell::new(None),
            tunnel: Cell::new(None),
        });
        let mut open = self.open.borrow_mut();
        let slot = self.free.borrow_mut().pop().unwrap_or(open.len());
        if slot == open.len() {
            open.push(Some(connection.clone()));
        } else {
            open[slot] = Some(connection.clone());
        }
        self.count.set(self.count.get() + 1);
        OpenConnection { connection, slot, registry: self.clone() }
    }

    /// Those that are there, tunnels on streams of HTTP/2 among them.
    pub fn count(&self) -> usize {
        self.count.get().max(self.accepted.iter().map(Cell::get).sum())
    }

    /// The place of one that is accepted now, until it has ended.
    pub fn place(self: &Rc<Self>, direction: Direction) -> Place {
        let accepted = &self.accepted[direction as usize];
        accepted.set(accepted.get() + 1);
        Place { direction, registry: self.clone() }
    }

    /// Whether one more may come this way, where so many may be there.
    pub fn has_room(&self, direction: Direction, room: Room) -> bool {
        let all: usize = self.accepted.iter().map(Cell::get).sum();
        all < room.all && self.accepted[direction as usize].get() < room.one_way
    }

    /// One more [`TICK`] has passed.
    pub fn sweep(&self) {
        let now = self.clock.advance();
        for connection in self.open.borrow().iter().flatten() {
            connection.sweep(now, &self.timeouts);
        }
    }

    /// Those that can say goodbye without losing a request that is on its way.
    pub fn close_http2(&self) {
        for connection in self.open.borrow().iter().flatten().filter(|c| c.http2.get()) {
            connection.close();
        }
    }

    /// Every connection finishes what it does and closes; so do later ones.
    pub fn close_all(&self) {
        self.draining.set(true);
        for connection in self.open.borrow().iter().flatten() {
            connection.close();
        }
    }
}

/// How many connections may be there at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    pub all: usize,
    /// Of apps alone, or of peers alone.
    pub one_way: usize,
}

impl Room {
    /// Where connections come both ways, neither can take it all: a flood of peers does not lock the app out, nor the app its peers.
    pub fn new(all: usize, both_ways: bool) -> Self {
        let kept = if both_ways { all / limits::CONNECTIONS_KEPT_DIVISOR } else { 0 };
        Self { all, one_way: all - kept }
    }
}

/// See [`Connections::place`].
pub(crate) struct Place {
    direction: Direction,
    registry: Rc<Connections>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let accepted = &self.registry.accepted[self.direction as usize];
        accepted.set(accepted.get() - 1);
    }
}

/// Held by the connection's task; dropping it forgets the connection.
pub(crate) struct OpenConnection {
    connection: Rc<Connection>,
    slot: usize,
    registry: Rc<Connections>,
}

impl OpenConnection {
    pub fn shared(&self) -> &Rc<Connection> {
        &self.connection
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.registry.open.borrow_mut()[self.slot] = None;
        self.registry.free.borrow_mut().push(self.slot);
        self.registry.count.set(self.registry.count.get() - 1);
    }
}

#[cfg(test)]
mod tests;
