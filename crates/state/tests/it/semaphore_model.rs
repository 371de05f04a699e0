//! Random sessions around one semaphore and one election, against a naive queue.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;
use weft_state::{
    command::{Acquire, Acquired, Campaign, Command, LeaseId, Release, Resign, Response, Revision},
    machine::Machine,
};

use crate::support::{Replica, b, text};

type Request = (LeaseId, u64);

#[derive(Debug, Clone)]
enum Step {
    Acquire { request: Request, permits: u32, limit: u32, try_only: bool, attempt: u64 },
    Release(Request, Option<u64>),
    Campaign(LeaseId, u64),
    Resign(LeaseId, Option<u64>),
    Revoke(LeaseId),
    Expire(Vec<LeaseId>),
}

const SESSIONS: std::ops::Range<LeaseId> = 1..7;

fn step() -> impl Strategy<Value = Step> {
    let request = || (SESSIONS, 0..2u64);
    let attempt = || 0..3u64;
    let limit = prop_oneof![3 => Just(0), 1 => 1..5u32];
    prop_oneof![
        8 => (request(), 0..4u32, limit, prop::bool::weighted(0.2), attempt()).prop_map(
            |(request, permits, limit, try_only, attempt)| {
                Step::Acquire { request, permits, limit, try_only, attempt }
            }
        ),
        4 => (request(), prop::option::of(attempt())).prop_map(|(request, of)| Step::Release(request, of)),
        3 => (SESSIONS, attempt()).prop_map(|(lease, attempt)| Step::Campaign(lease, attempt)),
        1 => (SESSIONS, prop::option::of(attempt())).prop_map(|(lease, of)| Step::Resign(lease, of)),
        1 => SESSIONS.prop_map(Step::Revoke),
        1 => prop::collection::vec(SESSIONS, 0..4).prop_map(Step::Expire),
    ]
}

/// First come, first served, in the most direct words.
#[derive(Debug, Default)]
struct Naive {
    limit: u32,
    holders: Vec<(Request, u32)>,
    queue: VecDeque<(Request, u32)>,
    /// Election: the first one leads.
    candidates: Vec<LeaseId>,
    /// The newest call of each request, and of each candidate; also of those that are gone.
    attempts: BTreeMap<Request, u64>,
    campaigns: BTreeMap<LeaseId, u64>,
}

impl Naive {
    fn held(&self) -> u32 {
        self.holders.iter().map(|(_, permits)| permits).sum()
    }

    fn settle(&mut self) {
        while let Some((request, permits)) = self.queue.front().copied()
            && self.held() + permits <= self.limit
        {
            self.queue.pop_front();
            self.holders.push((request, permits));
        }
    }

    /// What the answer should be: `g`ranted, `q`ueued, `r`efused or an error.
    fn acquire(&mut self, request: Request, permits: u32, limit: u32, try_only: bool) -> Option<char> {
        if self.holders.iter().any(|(holder, _)| *holder == request) {
            return Some('g');
        }
        if self.queue.iter().any(|(waiter, _)| *waiter == request) {
            return Some('q');
        }
        let limit = if limit == 0 { self.limit } else { limit };
        if permits == 0 || permits > limit {
            return None;
        }
        self.limit = limit;
        self.queue.retain(|(_, permits)| *permits <= limit);
        self.settle();
        if self.queue.is_empty() && self.held() + permits <= self.limit {
            self.holders.push((request, permits));
            return Some('g');
        }
        if try_only {
            return Some('r');
        }
        self.queue.push_back((request, permits));
        Some('q')
    }

    fn release(&mut self, request: Request) -> bool {
        let before = self.holders.len() + self.queue.len();
        self.holders.retain(|(holder, _)| *holder != request);
        self.queue.retain(|(waiter, _)| *waiter != request);
        let released = self.holders.len() + self.queue.len() < before;
        self.settle();
        released
    }

    fn end(&mut self, sessions: &[LeaseId]) {
        self.holders.retain(|((lease, _), _)| !sessions.contains(lease));
        self.queue.retain(|((lease, _), _)| !sessions.contains(lease));
        self.candidates.retain(|lease| !sessions.contains(lease));
        self.settle();
    }
}

const NAME: &str = "db/1";

fn run(replica: &mut Replica, naive: &mut Naive, step: &Step) -> Result<(), TestCaseError> {
    match step.clone() {
        Step::Acquire { request: (lease, request_id), permits, limit, try_only, attempt } => {
            let acquire = Acquire { name: NAME.into(), lease, permits, limit, request_id, try_only, attempt };
            let answer = replica.acquire(acquire).ok().map(|answer| match answer {
                Acquired::Granted(_) => 'g',
                Acquired::Queued { .. } => 'q',
                Acquired::Refused => 'r',
            });
            prop_assert_eq!(answer, naive.acquire((lease, request_id), permits, limit, try_only));
            naive.attempts.insert((lease, request_id), attempt);
        }
        Step::Release((lease, request_id), attempt) => {
            let release = Release { name: NAME.into(), lease, request_id, attempt };
            let newest = naive.attempts.get(&(lease, request_id)).copied();
            let released = (attempt.is_none() || attempt == newest) && naive.release((lease, request_id));
            prop_assert_eq!(replica.run(Command::Release(release)), Ok(Response::Release { released }));
        }
        Step::Campaign(lease, attempt) => {
            let campaign = Campaign { name: NAME.into(), lease, value: b(&lease.to_string()), attempt };
            naive.campaigns.insert(lease, attempt);
            replica.run(Command::Campaign(campaign)).unwrap();
            if !naive.candidates.contains(&lease) {
                naive.candidates.push(lease);
            }
        }
        Step::Resign(lease, attempt) => {
            let counts = attempt.is_none() || attempt == naive.campaigns.get(&lease).copied();
            let resigned = counts && naive.candidates.contains(&lease);
            naive.candidates.retain(|candidate| !resigned || *candidate != lease);
            let resign = Resign { name: NAME.into(), lease, attempt };
            prop_assert_eq!(replica.run(Command::Resign(resign)), Ok(Response::Resign { resigned }));
        }
        Step::Revoke(lease) => {
            replica.revoke(lease);
            naive.end(&[lease]);
            replica.lease(lease);
        }
        Step::Expire(mut leases) => {
            replica.expire(&leases);
            naive.end(&leases);
            leases.sort_unstable();
            leases.dedup();
            for lease in leases {
                replica.lease(lease);
            }
        }
    }
    Ok(())
}

fn assert_equal(machine: &Machine, naive: &Naive) -> Result<(), TestCaseError> {
    let (mut holders, mut waiters, mut limit) = (vec![], vec![], 1);
    if let Some(view) = machine.semaphore(NAME) {
        limit = view.limit;
        for holder in view.holders {
            holders.push(((holder.grant.lease, holder.request_id), holder.permits));
        }
        for waiter in view.waiters {
            waiters.push(((waiter.lease, waiter.request_id), waiter.permits));
        }
    }
    prop_assert_eq!(&holders, &naive.holders);
    prop_assert!(waiters.iter().eq(&naive.queue), "{:?} {:?}", waiters, naive.queue);
    prop_assert_eq!(limit, naive.limit);
    // L04: nobody waits while the head's permits are free.
    if let Some((_, permits)) = waiters.first() {
        let held: u32 = holders.iter().map(|(_, permits)| permits).sum();
        prop_assert!(held + permits > limit);
    }
    let mut lineup = vec![];
    if let Some(view) = machine.election(NAME) {
        lineup.push(view.leader.expect("whoever waits waits for a leader").0.lease);
        lineup.extend(view.candidates.iter().map(|candidate| candidate.lease));
    }
    prop_assert_eq!(&lineup, &naive.candidates);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// L01 to L11, as far as they concern the server.
    #[test]
    fn semaphore_and_election_equal_the_naive_queue(
        steps in prop::collection::vec((step(), prop::bool::weighted(0.05)), 1..80),
    ) {
        let mut replica = Replica::new();
        let mut naive = Naive { limit: 1, ..Naive::default() };
        for lease in SESSIONS {
            replica.lease(lease);
        }
        let mut last_fence: Revision = 0;
        for (step, restart) in steps {
            let held_before = naive.held();
            let seen = replica.events.len();
            run(&mut replica, &mut naive, &step)?;
            assert_equal(&replica.machine, &naive)?;
            // L05: nothing that was granted went above the limit.
            prop_assert!(naive.held() <= naive.limit.max(held_before));
            // L11: each grant is one revision, above all earlier ones.
            for event in &replica.events[seen..] {
                let key = text(&event.kv.key);
                let grants = key.contains("/holder/") || key.ends_with("/leader");
                if grants && event.kv.version == 1 {
                    prop_assert!(event.kv.create_revision > last_fence, "{} {}", key, last_fence);
                    last_fence = event.kv.create_revision;
                }
            }
            if restart {
                // What is derived from the keys equals what was built step by step.
                replica.machine = Machine::from_image(&replica.machine.image()).unwrap();
                assert_equal(&replica.machine, &naive)?;
            }
        }
        // L06: when all sessions are gone, nothing is left but a limit that was set.
        for lease in SESSIONS {
            replica.revoke(lease);
        }
        let left: Vec<_> = replica.range("weft/", "weft0").kvs.iter().map(|kv| text(&kv.key)).collect();
        prop_assert!(left.is_empty() || left == ["weft/semaphore/db%2F1/limit"], "{:?}", left);
    }
}
