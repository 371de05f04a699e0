//! Idle connections to endpoints, kept by one worker.
//!
//! HTTP/1: a stack per endpoint; the one used last is used next, so that the others grow old and are closed before
//! their server closes them (P42). HTTP/2: one connection per endpoint carries all requests.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hyper::client::conn::{http1, http2};

use super::connect::{self, ConnectError};
use super::request_body::RequestBody;
use crate::limits::{UPSTREAM_IDLE_MAX, UPSTREAM_IDLE_TIMEOUT};

/// See the module.
#[derive(Default)]
pub(crate) struct Pool {
    idle: RefCell<HashMap<SocketAddr, Vec<Idle>, foldhash::fast::RandomState>>,
    multiplexed: RefCell<HashMap<SocketAddr, Rc<Multiplexed>, foldhash::fast::RandomState>>,
}

struct Idle {
    sender: http1::SendRequest<RequestBody>,
    since: Instant,
}

/// The one HTTP/2 connection to an endpoint.
#[derive(Default)]
struct Multiplexed {
    sender: RefCell<Option<http2::SendRequest<RequestBody>>>,
    used: RefCell<Option<Instant>>,
    /// Held by the one request that connects; the others wait for its result.
    connecting: tokio::sync::Mutex<()>,
}

/// A connection to send one request on.
pub(crate) struct Lease {
    pub sender: http1::SendRequest<RequestBody>,
    pub addr: SocketAddr,
    pool: Rc<Pool>,
}

impl Pool {
    /// An idle connection that still looks alive.
    pub fn take(self: &Rc<Self>, addr: SocketAddr) -> Option<Lease> {
        let mut all = self.idle.borrow_mut();
        let stack = all.get_mut(&addr)?;
        while let Some(idle) = stack.pop() {
            if idle.sender.is_ready() {
                return Some(Lease { sender: idle.sender, addr, pool: self.clone() });
            }
        }
        None
    }

    /// A new connection.
    pub async fn connect(self: &Rc<Self>, addr: SocketAddr, limit: Duration) -> Result<Lease, ConnectError> {
        let sender = connect::http1(addr, limit).await?;
        Ok(Lease { sender, addr, pool: self.clone() })
    }

    /// The HTTP/2 connection to an endpoint, and whether it was there already. `not` is one that has just failed.
    pub async fn multiplexed(
        &self,
        addr: SocketAddr,
        limit: Duration,
        fresh: bool,
    ) -> Result<(http2::SendRequest<RequestBody>, bool), ConnectError> {
        let slot = self.multiplexed.borrow_mut().entry(addr).or_default().clone();
        if fresh {
            slot.sender.take();
        } else if let Some(sender) = slot.open() {
            return Ok((sender, true));
        }
        let _turn = slot.connecting.lock().await;
        if let Some(sender) = slot.open() {
            return Ok((sender, false));
        }
        let sender = connect::http2(addr, limit).await?;
        slot.sender.replace(Some(sender.clone()));
        slot.used.replace(Some(Instant::now()));
        Ok((sender, false))
    }

    /// The next request to an endpoint gets a new HTTP/2 connection; those on the old one go on.
    pub fn discard(&self, addr: SocketAddr) {
        if let Some(slot) = self.multiplexed.borrow().get(&addr) {
            slot.sender.take();
        }
    }

    /// Closes connections that were not used for [`UPSTREAM_IDLE_TIMEOUT`].
    pub fn expire(&self, now: Instant) {
        let old = |since: Instant| now.saturating_duration_since(since) >= UPSTREAM_IDLE_TIMEOUT;
        self.idle.borrow_mut().retain(|_, stack| {
            stack.retain(|idle| !old(idle.since) && !idle.sender.is_closed());
            !stack.is_empty()
        });
        self.multiplexed.borrow_mut().retain(|_, slot| {
            let unused = slot.used.borrow().is_some_and(old);
            // A request that waits for the connection holds the slot too.
            !unused || Rc::strong_count(slot) > 1
        });
    }

    fn give_back(&self, addr: SocketAddr, sender: http1::SendRequest<RequestBody>) {
        let mut all = self.idle.borrow_mut();
        let stack = all.entry(addr).or_default();
        if stack.len() < UPSTREAM_IDLE_MAX {
            stack.push(Idle { sender, since: Instant::now() });
        }
    }
}

impl Multiplexed {
    fn open(&self) -> Option<http2::SendRequest<RequestBody>> {
        let sender = self.sender.borrow().clone().filter(|s| !s.is_closed())?;
        self.used.replace(Some(Instant::now()));
        Some(sender)
    }
}

impl Lease {
    /// The exchange is complete on both sides: others may use the connection.
    pub fn give_back(mut self) {
        if self.sender.is_ready() {
            self.pool.give_back(self.addr, self.sender);
        } else if !self.sender.is_closed() {
            // Its task has not come round yet; it will in a moment, or close.
            tokio::task::spawn_local(async move {
                if self.sender.ready().await.is_ok() {
                    self.pool.give_back(self.addr, self.sender);
                }
            });
        }
    }
}
