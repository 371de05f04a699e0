//! Whether a client that says nothing is still there: it is asked (PING, RFC 9113 §6.7).

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

use crate::limits::{H2_PING_INTERVAL, H2_PING_TIMEOUT};

/// See the module.
pub(super) struct Alive {
    pings: Option<PingPong>,
    until: Pin<Box<Sleep>>,
    asked: bool,
}

impl Alive {
    pub fn new(pings: Option<PingPong>) -> Self {
        Self { pings, until: Box::pin(sleep(H2_PING_INTERVAL)), asked: false }
    }

    /// Ready once it has not answered for [`H2_PING_TIMEOUT`]; ask no more then.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(pings) = &mut self.pings else { return Poll::Pending };
        loop {
            if self.asked && pings.poll_pong(cx).is_ready() {
                self.asked = false;
                self.until.as_mut().reset(Instant::now() + H2_PING_INTERVAL);
            }
            ready!(self.until.as_mut().poll(cx));
            if self.asked || pings.send_ping(Ping::opaque()).is_err() {
                self.pings = None;
                return Poll::Ready(());
            }
            self.asked = true;
            self.until.as_mut().reset(Instant::now() + H2_PING_TIMEOUT);
        }
    }
}
