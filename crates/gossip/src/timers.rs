//! SWIM's timers, in one ordered queue. None is lost; several that are due come in SWIM's own order.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use foca::Timer;
use weft_core::id::NodeId;

use crate::member_id::MemberId;

/// The queue.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    /// The number keeps timers of one instant apart, in order of submission.
    queue: BTreeMap<(Instant, u64), Timer<MemberId>>,
    /// Where the removal of each down member stands in the queue.
    removals: BTreeMap<NodeId, (Instant, u64)>,
    submitted: u64,
}

impl Timers {
    pub(crate) fn submit(&mut self, at: Instant, timer: Timer<MemberId>) {
        let key = (at, self.submitted);
        self.submitted += 1;
        if let Timer::RemoveDown(member) = &timer {
            // There is one entry a member, and removal asks for the exact identity: the earlier timer, for an
            // earlier life of the member, would do nothing. Dropping it keeps restarts from piling them up (G06).
            if let Some(earlier) = self.removals.insert(member.id, key) {
                self.queue.remove(&earlier);
            }
        }
        self.queue.insert(key, timer);
    }

    pub(crate) fn next_at(&self) -> Option<Instant> {
        self.queue.keys().next().map(|(at, _)| *at)
    }

    /// Takes all that are due, in the order in which SWIM wants them when several are late.
    pub(crate) fn take_due(&mut self, now: Instant) -> Vec<Timer<MemberId>> {
        let mut due = Vec::new();
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let (key, timer) = entry.remove_entry();
            if let Timer::RemoveDown(member) = &timer
                && self.removals.get(&member.id) == Some(&key)
            {
                self.removals.remove(&member.id);
            }
            due.push(timer);
        }
        due.sort();
        due
    }

    /// Gives all suspects more time: the time in which this process did not run is no evidence against them.
    pub(crate) fn delay_suspicions(&mut self, by: Duration) {
        let is_suspicion = |timer: &Timer<MemberId>| matches!(timer, Timer::ChangeSuspectToDown { .. });
        let keys: Vec<_> = self.queue.iter().filter(|(_, t)| is_suspicion(t)).map(|(key, _)| *key).collect();
        for key in keys {
            if let Some(timer) = self.queue.remove(&key) {
                self.queue.insert((key.0 + by, key.1), timer);
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::member::Role;

    fn member(incarnation: u64) -> MemberId {
        MemberId {
            id: NodeId(1),
            addr: "127.0.0.1:1".parse().unwrap(),
            incarnation,
            renewals: 0,
            name: "a".into(),
            role: Role::Proxy,
        }
    }

    fn down(incarnation: u64) -> Timer<MemberId> {
        Timer::ChangeSuspectToDown { member_id: member(incarnation), incarnation: 0, token: 0 }
    }

    #[test]
    fn late_timers_come_in_the_order_of_the_protocol_and_none_is_lost() {
        let start = Instant::now();
        let mut timers = Timers::default();
        timers.submit(start + Duration::from_millis(1), down(1));
        timers.submit(start + Duration::from_millis(2), Timer::ProbeRandomMember(0));
        timers.submit(
            start + Duration::from_millis(3),
            Timer::SendIndirectProbe { probed_id: member(1), token: 0 },
        );
        timers.submit(start + Duration::from_millis(9), Timer::PeriodicGossip(0));
        let due = timers.take_due(start + Duration::from_millis(5));
        assert!(matches!(
            due[..],
            [Timer::SendIndirectProbe { .. }, Timer::ProbeRandomMember(_), Timer::ChangeSuspectToDown { .. }]
        ));
        assert_eq!(timers.next_at(), Some(start + Duration::from_millis(9)));
    }

    /// G06: a member that restarts often leaves one removal behind, not one a restart.
    #[test]
    fn removals_of_one_member_do_not_pile_up() {
        let start = Instant::now();
        let mut timers = Timers::default();
        for life in 0..200 {
            timers.submit(start + Duration::from_secs(life), Timer::RemoveDown(member(life)));
        }
        assert_eq!(timers.len(), 1);
        assert_eq!(timers.take_due(start + Duration::from_secs(300)), [Timer::RemoveDown(member(199))]);
        assert!(timers.removals.is_empty());
    }

    #[test]
    fn a_pause_delays_suspicions_and_nothing_else() {
        let start = Instant::now();
        let mut timers = Timers::default();
        timers.submit(start, down(1));
        timers.submit(start, Timer::PeriodicGossip(0));
        timers.delay_suspicions(Duration::from_secs(3));
        assert_eq!(timers.take_due(start + Duration::from_secs(2)), [Timer::PeriodicGossip(0)]);
        assert_eq!(timers.take_due(start + Duration::from_secs(3)), [down(1)]);
    }
}
