//! What SWIM wants done, collected while a call into it runs.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use foca::{Notification, OwnedNotification, Runtime, Timer};

use crate::member_id::MemberId;
use crate::timers::Timers;

pub(super) struct Effects {
    now: Instant,
    /// Factor for our own probes and suspicions; SWIM cannot change its probe times while it runs, so they are
    /// stretched where they become timers.
    pub(super) multiplier: u32,
    pub(super) timers: Timers,
    /// Bounded by what one call can send: a few messages, or one for each chosen member.
    pub(super) sends: Vec<(SocketAddr, Vec<u8>)>,
    pub(super) notes: Vec<OwnedNotification<MemberId>>,
    /// Whether a suspicion of ours began in this call.
    pub(super) suspicion_started: bool,
}

impl Effects {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            now,
            multiplier: 1,
            timers: Timers::default(),
            sends: Vec::new(),
            notes: Vec::new(),
            suspicion_started: false,
        }
    }

    /// For one call at that time.
    pub(super) fn at(&mut self, now: Instant) -> &mut Self {
        self.now = now;
        self.suspicion_started = false;
        self
    }
}

impl Runtime<MemberId> for Effects {
    fn notify(&mut self, notification: Notification<'_, MemberId>) {
        self.notes.push(notification.to_owned());
    }

    fn send_to(&mut self, to: MemberId, data: &[u8]) {
        self.sends.push((to.addr, data.to_vec()));
    }

    fn submit_after(&mut self, timer: Timer<MemberId>, after: Duration) {
        let after = match &timer {
            Timer::ProbeRandomMember(_) | Timer::SendIndirectProbe { .. } => after * self.multiplier,
            Timer::ChangeSuspectToDown { .. } => {
                self.suspicion_started = true;
                after * self.multiplier
            }
            _ => after,
        };
        self.timers.submit(self.now + after, timer);
    }
}
