//! What a connection's task, its guard and the worker's sweeper know of it together; all on one thread.
//!
//! Timeouts cost no timer per connection or request: reads and writes note the worker's tick, and a sweep every
//! [`TICK`] looks for connections that stood still too long.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use super::refusal::Refusal;
use super::scanner::Position;
use crate::limits::{DOWNSTREAM_IDLE_TIMEOUT, HEAD_TIMEOUT};

/// Between two sweeps.
pub(crate) const TICK: Duration = Duration::from_millis(500);

/// One downstream connection.
pub(crate) struct Connection {
    pub peer: SocketAddr,
    /// It arrived by TLS.
    pub tls: bool,
    clock: Rc<Cell<u64>>,
    refusal: Cell<Option<Refusal>>,
    position: Cell<Position>,
    /// Tick of the last byte read or written.
    moved: Cell<u64>,
    /// Tick of the first byte of the head that is arriving.
    head_since: Cell<u64>,
    closing: Cell<bool>,
    head_late: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Connection {
    /// Why it is refused, if it is.
    pub fn refusal(&self) -> Option<Refusal> {
        self.refusal.get()
    }

    pub fn refuse(&self, refusal: Refusal) {
        self.refusal.set(Some(refusal));
    }

    /// Bytes moved in either direction.
    pub fn moved(&self) {
        self.moved.set(self.clock.get());
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

    fn sweep(&self, now: u64) {
        if self.position.get() == Position::Head && now - self.head_since.get() > ticks(HEAD_TIMEOUT) {
            self.head_late.set(true);
            self.head_since.set(now);
            self.wake();
        } else if now - self.moved.get() > ticks(DOWNSTREAM_IDLE_TIMEOUT) && !self.closing.get() {
            self.close();
        }
    }
}

fn ticks(limit: Duration) -> u64 {
    limit.as_millis().div_ceil(TICK.as_millis()) as u64
}

/// All connections of one worker.
#[derive(Default)]
pub(crate) struct Connections {
    clock: Rc<Cell<u64>>,
    open: RefCell<Vec<Option<Rc<Connection>>>>,
    free: RefCell<Vec<usize>>,
    count: Cell<usize>,
    draining: Cell<bool>,
}

impl Connections {
    pub fn open(self: &Rc<Self>, peer: SocketAddr, tls: bool) -> OpenConnection {
        let now = self.clock.get();
        let connection = Rc::new(Connection {
            peer,
            tls,
            clock: self.clock.clone(),
            refusal: Cell::new(None),
            position: Cell::new(Position::Idle),
            moved: Cell::new(now),
            head_since: Cell::new(now),
            closing: Cell::new(self.draining.get()),
            head_late: Cell::new(false),
            waker: RefCell::new(None),
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

    pub fn count(&self) -> usize {
        self.count.get()
    }

    /// One more [`TICK`] has passed.
    pub fn sweep(&self) {
        let now = self.clock.get() + 1;
        self.clock.set(now);
        for connection in self.open.borrow().iter().flatten() {
            connection.sweep(now);
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
mod tests {
    use super::*;

    fn peer() -> SocketAddr {
        "127.0.0.1:1".parse().unwrap()
    }

    #[test]
    fn a_connection_that_stands_still_is_closed_and_one_that_moves_is_not() {
        let all = Rc::new(Connections::default());
        let (still, moves) = (all.open(peer(), false), all.open(peer(), false));
        for _ in 0..=ticks(DOWNSTREAM_IDLE_TIMEOUT) {
            all.sweep();
            moves.shared().moved();
        }
        assert!(still.shared().is_closing());
        assert!(!moves.shared().is_closing());
    }

    #[test]
    fn a_slow_head_is_late_even_if_bytes_keep_coming() {
        let all = Rc::new(Connections::default());
        let slow = all.open(peer(), false);
        for _ in 0..=ticks(HEAD_TIMEOUT) {
            slow.shared().at(Position::Head);
            slow.shared().moved();
            assert!(!slow.shared().take_head_late());
            all.sweep();
        }
        assert!(slow.shared().take_head_late());
        assert!(!slow.shared().take_head_late(), "asked once");
    }

    #[test]
    fn slots_are_used_again_and_new_connections_of_a_draining_worker_close() {
        let all = Rc::new(Connections::default());
        let first = all.open(peer(), false);
        drop(all.open(peer(), false));
        let _third = all.open(peer(), false);
        assert_eq!((all.count(), all.open.borrow().len()), (2, 2));
        all.close_all();
        assert!(first.shared().is_closing());
        assert!(all.open(peer(), true).shared().is_closing());
    }
}
