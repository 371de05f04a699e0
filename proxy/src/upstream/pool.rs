//! Idle connections to endpoints, kept by one worker.
//!
//! HTTP/1: a stack per endpoint; the one used last is used next, so that the others grow old and are closed before
//! their server closes them (P42). HTTP/2: one connection per endpoint carries all requests.
//! With TLS, those of other certificates are other connections, and with the PROXY protocol those of each client's connection
//! ([`Place::key`]).

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connect::{self, ConnectError, Key, Place};
use super::http1::Shared;
use super::http2;
use crate::limits::{UPSTREAM_IDLE_MAX, UPSTREAM_IDLE_SAID_MAX, UPSTREAM_IDLE_TIMEOUT};

/// See the module.
#[derive(Default)]
pub(crate) struct Pool {
    idle: RefCell<HashMap<Key, Vec<Idle>, foldhash::fast::RandomState>>,
    multiplexed: RefCell<HashMap<Key, Rc<Multiplexed>, foldhash::fast::RandomState>>,
}

struct Idle {
    conn: Shared,
    until: Instant,
    /// Its endpoint said so, and may mean less than the time between two looks at all of them.
    said: bool,
}

/// How long an endpoint keeps an idle connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// As long as is usual: [`UPSTREAM_IDLE_TIMEOUT`] is less.
    Unsaid,
    Said(Duration),
}

impl Patience {
    /// How long we do. We close first.
    fn ours(self) -> Duration {
        match self {
            Self::Unsaid => UPSTREAM_IDLE_TIMEOUT,
            Self::Said(theirs) => {
                let theirs = theirs.min(UPSTREAM_IDLE_SAID_MAX);
                theirs - Duration::from_secs(1).min(theirs / 2)
            }
        }
    }
}

/// The one HTTP/2 connection to an endpoint.
#[derive(Default)]
struct Multiplexed {
    sender: RefCell<Option<http2::Conn>>,
    used: RefCell<Option<Instant>>,
    /// Held by the one request that connects; the others wait for its result.
    connecting: tokio::sync::Mutex<()>,
    /// Of the last attempt, if it failed, and when.
    failed: RefCell<Option<(Instant, Arc<ConnectError>)>>,
}

/// A connection to send one request on.
pub(crate) struct Lease {
    pub conn: Shared,
    key: Key,
    pool: Rc<Pool>,
}

impl Pool {
    /// An idle connection that is still open.
    pub fn take(self: &Rc<Self>, key: Key) -> Option<Lease> {
        let mut all = self.idle.borrow_mut();
        let stack = all.get_mut(&key)?;
        while let Some(idle) = stack.pop() {
            if idle.said && idle.until <= Instant::now() {
                idle.conn.borrow_mut().close();
                continue;
            }
            if idle.conn.borrow_mut().is_open() {
                return Some(Lease { conn: idle.conn, key, pool: self.clone() });
            }
        }
        None
    }

    /// A new connection.
    pub async fn connect(self: &Rc<Self>, to: &Place, limit: Duration) -> Result<Lease, Arc<ConnectError>> {
        let conn = connect::http1(to, limit).await.map_err(Arc::new)?;
        Ok(Lease { conn, key: to.key(), pool: self.clone() })
    }

    /// The HTTP/2 connection to an endpoint, if there is one.
    pub fn open(&self, key: Key) -> Option<http2::Conn> {
        self.multiplexed.borrow().get(&key)?.open()
    }

    /// The HTTP/2 connection to an endpoint, and whether it was there already. `fresh` asks for another one than that
    /// which has just failed. Requests that wait for the same attempt share its failure: one after the other they
    /// would wait many times `limit`.
    pub async fn multiplexed(
        &self,
        to: &Place,
        limit: Duration,
        fresh: bool,
    ) -> Result<(http2::Conn, bool), Arc<ConnectError>> {
        let slot = self.multiplexed.borrow_mut().entry(to.key()).or_default().clone();
        if fresh {
            slot.sender.take();
        } else if let Some(sender) = slot.open() {
            return Ok((sender, true));
        }
        let asked = Instant::now();
        let _turn = slot.connecting.lock().await;
        if let Some(sender) = slot.open() {
            return Ok((sender, false));
        }
        if let Some((at, error)) = &*slot.failed.borrow()
            && *at >= asked
        {
            return Err(error.clone());
        }
        let sender = match connect::http2(to, limit).await {
            Ok(sender) => sender,
            Err(error) => {
                let error = Arc::new(error);
                slot.failed.replace(Some((Instant::now(), error.clone())));
                return Err(error);
            }
        };
        slot.sender.replace(Some(sender.clone()));
        slot.used.replace(Some(Instant::now()));
        Ok((sender, false))
    }

    /// The next request to an endpoint gets a new HTTP/2 connection; those on the old one go on.
    pub fn discard(&self, key: Key) {
        if let Some(slot) = self.multiplexed.borrow().get(&key) {
            slot.sender.take();
        }
    }

    /// Closes connections that were not used for long ([`Patience`]), or that their endpoint has closed.
    pub fn expire(&self, now: Instant) {
        let old = |since: Instant| now.saturating_duration_since(since) >= UPSTREAM_IDLE_TIMEOUT;
        self.idle.borrow_mut().retain(|_, stack| {
            stack.retain(|idle| {
                let mut conn = idle.conn.borrow_mut();
                let keep = idle.until > now && conn.is_open();
                if !keep {
                    conn.close();
                }
                keep
            });
            !stack.is_empty()
        });
        self.multiplexed.borrow_mut().retain(|_, slot| {
            // One that never came about is old from the start.
            let unused = slot.used.borrow().is_none_or(old);
            // A request that waits for the connection holds the slot too.
            !unused || Rc::strong_count(slot) > 1
        });
    }

    fn give_back(&self, key: Key, conn: Shared, patience: Patience) {
        let mut all = self.idle.borrow_mut();
        let stack = all.entry(key).or_default();
        if stack.len() < UPSTREAM_IDLE_MAX {
            let until = Instant::now() + patience.ours();
            stack.push(Idle { conn, until, said: patience != Patience::Unsaid });
        }
    }
}

impl Multiplexed {
    fn open(&self) -> Option<http2::Conn> {
        let mut sender = self.sender.borrow().clone()?;
        if !sender.is_open() {
            return None;
        }
        self.used.replace(Some(Instant::now()));
        Some(sender)
    }
}

impl Lease {
    /// The exchange is complete on both sides: others may use the connection.
    pub fn give_back(self, patience: Patience) {
        self.pool.give_back(self.key, self.conn, patience);
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    /// A port that neither takes nor refuses connections: its queue is full.
    fn black_hole() -> (SocketAddr, Vec<std::net::TcpStream>, socket2::Socket) {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(0).unwrap();
        let addr = socket.local_addr().unwrap().as_socket().unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) = std::net::TcpStream::connect_timeout(&addr, Duration::from_millis(50)) {
            queued.push(stream);
        }
        (addr, queued, socket)
    }

    #[tokio::test]
    async fn requests_that_wait_for_one_connection_fail_together() {
        let (addr, _queued, _socket) = black_hole();
        let (pool, limit) = (Pool::default(), Duration::from_millis(200));
        let to = Place { addr, secure: None, announced: None };
        let started = Instant::now();
        let waiting = (0..20).map(|_| pool.multiplexed(&to, limit, false));
        let all = futures::future::join_all(waiting).await;
        assert!(all.iter().all(|r| matches!(r.as_ref().map_err(|e| &**e), Err(ConnectError::Timeout(_)))));
        assert!(started.elapsed() < limit * 3, "{:?}", started.elapsed());
        assert_eq!(pool.multiplexed.borrow().len(), 1);
        pool.expire(Instant::now());
        assert!(pool.multiplexed.borrow().is_empty(), "nothing is left of endpoints that never answered");
    }
}
