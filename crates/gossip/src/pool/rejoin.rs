//! Finding the pool, and finding it again (G05).
//!
//! ```text
//! no member seen:       call up to three addresses, waiting 200 ms, then doubling up to rejoin_period
//! some missing:         call up to three of those each 10 × rejoin_period
//! all known are seen:   nobody is called
//! ```
//! A call is a Hello to an address; the Welcome tells whose it is; then SWIM announces us and a session is started.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::seq::SliceRandom;
use weft_core::backoff::Backoff;

use super::{Output, Pool};
use crate::timing::GossipTiming;
use crate::wire::{self, Hello, Kind, Welcome, WireError};

const FIRST_WAIT: Duration = Duration::from_millis(200);
/// Slower by this factor while some members are seen.
const SLOW: u32 = 10;

pub(super) fn backoff(timing: &GossipTiming) -> Backoff {
    Backoff::new(FIRST_WAIT.min(timing.rejoin_period), timing.rejoin_period)
}

impl Pool {
    /// Addresses of a seed were looked up; empty if that failed.
    pub fn handle_resolved(&mut self, now: Instant, seed: &str, addrs: Vec<SocketAddr>) {
        if self.left {
            return;
        }
        self.peers.resolved(seed, addrs);
        for to in self.peers.calls_to_seed(seed, &self.active) {
            self.call(to);
        }
        self.touch(now);
    }

    pub(super) fn rejoin(&mut self, now: Instant) {
        let alone = self.active.is_empty();
        let wait = if alone {
            // Half of it is jitter: those that lost each other together do not call together.
            let ceiling = self.rejoin_backoff.ceiling();
            ceiling / 2 + self.rejoin_backoff.next(self.rng.random()) / 2
        } else {
            self.rejoin_backoff.reset();
            self.timing.rejoin_period * SLOW
        };
        self.rejoin_at = now + wait;
        let seeds: Vec<String> = self.peers.seeds().map(str::to_owned).collect();
        for seed in seeds {
            match seed.parse::<SocketAddr>() {
                Ok(addr) => self.peers.resolved(&seed, vec![addr]),
                // Looked up each time: names move. It is called when the answer is here.
                Err(_) => self.outputs.push_back(Output::Resolve { seed }),
            }
        }
        let rng = &mut self.rng;
        for to in self.peers.calls(&self.active, |missing| missing.shuffle(rng)) {
            self.call(to);
        }
    }

    fn call(&mut self, to: SocketAddr) {
        let hello = Hello { from: self.swim.identity().clone(), to, nonce: self.nonce };
        self.send(to, wire::datagram(Kind::Hello, &hello));
    }

    pub(super) fn handle_hello(
        &mut self,
        now: Instant,
        from: SocketAddr,
        hello: Hello,
    ) -> Result<(), WireError> {
        if hello.from.id == self.local.id {
            if hello.nonce == self.nonce {
                self.peers.is_own(hello.to);
            } else {
                self.identity_conflict(now, &hello.from);
            }
            return Ok(());
        }
        let welcome = Welcome { from: self.swim.identity().clone(), to: hello.to, nonce: hello.nonce };
        self.send(from, wire::datagram(Kind::Welcome, &welcome));
        Ok(())
    }

    pub(super) fn handle_welcome(&mut self, now: Instant, welcome: Welcome) -> Result<(), WireError> {
        if welcome.nonce != self.nonce || welcome.from.id == self.local.id {
            return Err(WireError::Malformed);
        }
        let member = welcome.from;
        self.peers.answered(welcome.to, member.id);
        if !self.active.contains_key(&member.id) {
            let result = self.swim.announce(member.clone(), self.effects.at(now));
            self.settle(now, result);
            // The stream tells both sides all members at once; the announcement works where streams do not.
            self.start_session(member.addr);
        }
        Ok(())
    }
}
