//! The leader's clock for leases: gives [`Lessor`] the time and carries its batches into the log.
//!
//! ```text
//! apply (leader) ──► LeaseClock::applied    granted, revoked          machine lock, then the clock's
//! renewals       ──► LeaseClock::renew      after leadership was confirmed
//! this task      ──► Lessor::handle_timeout ──► LeaseExpire{term, grants} ──► the log ──► every replica
//! ```
//! Only one replica keeps time, and what it decides goes through the log with its term, so that a deposed
//! leader's decision is a no-op everywhere (S01, S04). Renewals do not enter the log; a new leader therefore
//! gives a lease its full time again, or what was noted of it: what is left of long leases goes through the log
//! from time to time, so that each change of leader makes a lease longer by
//! [`weft_state::lease::CHECKPOINT_STEP_SECS`] at most, or by its own time if that is less (P04, S02). Only then
//! does its next renewal wait for the log, which has to take that back first (S01).

use std::{
    future::Future,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;
use weft_state::{
    command::{Command, LeaseCheckpoint, LeaseGrantNumber, LeaseId, Response},
    error::StoreError,
    lease::{Lessor, RenewError, Tick},
    machine::Machine,
};

/// Wait after a batch could not be proposed: long enough for an election to end.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// The clock. Its lock is taken after the machine's, never before, and covers no I/O.
#[derive(Debug)]
pub struct LeaseClock {
    origin: Instant,
    inner: Mutex<Inner>,
    /// A deadline may have moved closer, or leadership changed.
    wake: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    lessor: Lessor,
    /// The term in which this server leads; none if it does not.
    term: Option<u64>,
}

/// Why the clock has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClockError {
    /// This server does not keep time in the given term.
    NotLeader,
    /// It does, and knows no such lease.
    Store(StoreError),
    /// The lease's time is up, and whether it ends is being decided by the log. Ask again.
    Undecided,
    /// What is left of it was noted in the log, which has to take that back: have this applied in the same term,
    /// then ask again.
    Noted(LeaseCheckpoint),
}

impl Default for LeaseClock {
    fn default() -> Self {
        Self { origin: Instant::now(), inner: Mutex::default(), wake: Notify::new() }
    }
}

impl LeaseClock {
    fn now(&self) -> Tick {
        Tick(self.origin.elapsed().as_millis() as u64)
    }

    /// This server leads in `term` and has applied all that was committed before: every lease has its full time
    /// from now, or what was noted of it, and `extension` more for clients to find the new leader. Call with the
    /// machine read-locked, so that no grant is missed.
    pub fn promote(&self, term: u64, machine: &Machine, extension: Duration) {
        let mut inner = self.inner.lock();
        inner.lessor.promote(self.now(), machine.all_lease_terms(), extension.as_millis() as u64);
        inner.term = Some(term);
        drop(inner);
        self.wake.notify_one();
    }

    /// As [`LeaseClock::promote`], in the same term: for a time nobody could renew. Nothing happens if this
    /// server does not lead any more.
    pub fn start_anew(&self, machine: &Machine, extension: Duration) {
        let mut inner = self.inner.lock();
        if inner.term.is_some() {
            inner.lessor.promote(self.now(), machine.all_lease_terms(), extension.as_millis() as u64);
            drop(inner);
            self.wake.notify_one();
        }
    }

    /// This server does not lead.
    pub fn demote(&self) {
        let mut inner = self.inner.lock();
        if inner.term.take().is_some() {
            inner.lessor.demote();
        }
        drop(inner);
        self.wake.notify_one();
    }

    /// A command was applied. Call with the machine write-locked.
    pub fn applied(&self, machine: &Machine, command: &Command, response: &Result<Response, StoreError>) {
        let Ok(response) = response else { return };
        let granted = match (command.bare(), response) {
            (Command::LeaseGrant { .. }, Response::LeaseGrant { id, .. }) => *id,
            (Command::Register(_), Response::Register { lease }) => *lease,
            (Command::LeaseCheckpoint { leases, .. }, _) => {
                let mut inner = self.inner.lock();
                if inner.term.is_some() {
                    let renewed = leases.iter().filter(|lease| lease.remaining_secs.is_none());
                    renewed
                        .filter_map(|lease| machine.lease_terms(lease.id))
                        .for_each(|terms| inner.lessor.taken_back(terms));
                }
                return;
            }
            (Command::LeaseRevoke { id }, _) => return self.gone(machine, [*id]),
            (Command::LeaseExpire { leases, .. }, _) => {
                return self.gone(machine, leases.iter().map(|(id, _)| *id));
            }
            (Command::Deregister { .. }, Response::Deregister { lease: Some(id) }) => {
                return self.gone(machine, [*id]);
            }
            _ => return,
        };
        let mut inner = self.inner.lock();
        if inner.term.is_some()
            && let Some(terms) = machine.lease_terms(granted)
        {
            inner.lessor.granted(self.now(), terms);
            drop(inner);
            self.wake.notify_one();
        }
    }

    /// Leases that should have ended. Some may live on: an expiry was proposed in another term, they were granted
    /// again, or a repeated request was answered as it was before that.
    fn gone(&self, machine: &Machine, ids: impl IntoIterator<Item = LeaseId>) {
        let mut inner = self.inner.lock();
        if inner.term.is_some() {
            let ended = ids.into_iter().filter(|id| machine.lease_terms(*id).is_none());
            ended.for_each(|id| inner.lessor.revoked(id));
        }
    }

    /// Renews a lease; answers its time to live in seconds. The caller has confirmed, after the request
    /// came in, that this server leads in `term` (S07).
    ///
    /// # Errors
    /// See [`ClockError`].
    pub fn renew(&self, term: u64, id: LeaseId) -> Result<i64, ClockError> {
        let mut inner = self.inner.lock();
        if inner.term != Some(term) {
            return Err(ClockError::NotLeader);
        }
        let now = self.now();
        inner.lessor.renew(now, id).map_err(|error| match (error, inner.lessor.remaining(now, id)) {
            // Without a majority the lease may live on: then "not found" would be untrue.
            (RenewError::Gone(_), Some(_)) | (RenewError::BeingNoted, _) => ClockError::Undecided,
            (RenewError::Gone(gone), None) => ClockError::Store(gone),
            (RenewError::Noted(lease), _) => ClockError::Noted(lease),
        })
    }

    /// Time left of a lease, none if it is unknown; with the same condition as [`LeaseClock::renew`].
    pub fn remaining(&self, term: u64, id: LeaseId) -> Result<Option<Duration>, ClockError> {
        let inner = self.inner.lock();
        if inner.term != Some(term) {
            return Err(ClockError::NotLeader);
        }
        Ok(inner.lessor.remaining(self.now(), id).map(Duration::from_millis))
    }

    /// Leases whose time is kept here.
    pub fn len(&self) -> usize {
        self.inner.lock().lessor.len()
    }

    /// Whether no lease's time is kept here.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Expires leases for as long as it is polled, and notes what is left of them. `propose` carries a command
    /// into the log if this server leads, and says whether it was applied; `note` does the same with what need not
    /// succeed.
    pub async fn run<F, N>(&self, propose: impl Fn(Command) -> F, note: impl Fn(Command) -> N)
    where
        F: Future<Output = bool>,
        N: Future<Output = ()>,
    {
        loop {
            while let Some((term, leases)) = self.next_batch() {
                let command = Command::LeaseExpire { term, leases: leases.clone() };
                if !propose(command).await {
                    self.inner.lock().lessor.not_expired(&leases);
                    tokio::time::sleep(RETRY_AFTER).await;
                } else {
                    // Those that live on after all, as the term had changed, can be renewed again.
                    self.inner.lock().lessor.not_expired(&leases);
                }
            }
            // One at a time: what expires comes first.
            if let Some((term, leases)) = self.next_checkpoint() {
                if !leases.is_empty() {
                    note(Command::LeaseCheckpoint { term, leases: leases.clone() }).await;
                    self.inner.lock().lessor.checkpointed(&leases);
                }
                continue;
            }
            let due = {
                let inner = self.inner.lock();
                inner.lessor.poll_timeout().into_iter().chain(inner.lessor.next_checkpoint()).min()
            };
            match due {
                Some(tick) => {
                    let wait = Duration::from_millis(tick.0.saturating_sub(self.now().0));
                    // At least a millisecond, so that a tick that is due at once cannot spin.
                    let _ =
                        tokio::time::timeout(wait.max(Duration::from_millis(1)), self.wake.notified()).await;
                }
                None => self.wake.notified().await,
            }
        }
    }

    fn next_checkpoint(&self) -> Option<(u64, Vec<LeaseCheckpoint>)> {
        let mut inner = self.inner.lock();
        let term = inner.term?;
        let now = self.now();
        Some((term, inner.lessor.poll_checkpoint(now)?))
    }

    fn next_batch(&self) -> Option<(u64, Vec<(LeaseId, LeaseGrantNumber)>)> {
        let mut inner = self.inner.lock();
        let term = inner.term?;
        let now = self.now();
        inner.lessor.handle_timeout(now);
        Some((term, inner.lessor.poll_output()?))
    }
}

#[cfg(test)]
mod tests {
    use weft_state::auth::Caller;
    use weft_state::command::{Register, RegisteredInstance};
    use weft_state::requests::RequestId;

    use super::*;

    fn machine_with(leases: &[(LeaseId, i64)]) -> Machine {
        let mut machine = Machine::new();
        for (index, (id, ttl_secs)) in leases.iter().enumerate() {
            let command = Command::LeaseGrant { id: *id, ttl_secs: *ttl_secs };
            machine.apply(index as u64 + 1, 1, &command).response.expect("granted");
        }
        machine
    }

    /// S07
    #[test]
    fn a_server_that_does_not_lead_renews_nothing() {
        let clock = LeaseClock::default();
        let machine = machine_with(&[(7, 60)]);
        assert_eq!(clock.renew(1, 7), Err(ClockError::NotLeader));
        clock.promote(3, &machine, Duration::ZERO);
        assert_eq!(clock.renew(2, 7), Err(ClockError::NotLeader));
        assert_eq!(clock.renew(3, 7), Ok(60));
        clock.demote();
        assert_eq!(clock.renew(3, 7), Err(ClockError::NotLeader));
        assert_eq!(clock.remaining(3, 7), Err(ClockError::NotLeader));
    }

    #[test]
    fn grants_and_revocations_are_followed_while_leading() {
        let clock = LeaseClock::default();
        let mut machine = machine_with(&[]);
        clock.promote(1, &machine, Duration::ZERO);
        let grant = Command::LeaseGrant { id: 9, ttl_secs: 30 };
        let response = machine.apply(1, 1, &grant).response;
        clock.applied(&machine, &grant, &response);
        assert_eq!(clock.renew(1, 9), Ok(30));
        let revoke = Command::LeaseRevoke { id: 9 };
        let response = machine.apply(2, 1, &revoke).response;
        clock.applied(&machine, &revoke, &response);
        assert_eq!(clock.renew(1, 9), Err(ClockError::Store(StoreError::LeaseNotFound { id: 9 })));
    }

    /// P04, S01
    #[test]
    fn a_lease_of_which_something_was_noted_is_renewed_when_the_log_has_taken_that_back() {
        let clock = LeaseClock::default();
        let mut machine = machine_with(&[(7, 3_600)]);
        let noted = LeaseCheckpoint { id: 7, grant: 1, remaining_secs: Some(600) };
        let command = |term, lease| Command::LeaseCheckpoint { term, leases: vec![lease] };
        machine.apply(2, 1, &command(1, noted)).response.expect("noted");
        clock.promote(2, &machine, Duration::ZERO);
        assert!(clock.remaining(2, 7).expect("it leads").expect("it runs") <= Duration::from_secs(600));
        let Err(ClockError::Noted(take_back)) = clock.renew(2, 7) else { panic!("it was noted") };
        for (index, term, answer) in [(3, 1, Err(ClockError::Noted(take_back))), (4, 2, Ok(3_600))] {
            let command = command(term, take_back);
            let response = machine.apply(index, 2, &command).response;
            clock.applied(&machine, &command, &response);
            assert_eq!(clock.renew(2, 7), answer, "after the entry of term {term}");
        }
    }

    /// S06: a lease that ended with its instance is not expired later on, whoever has its id by then.
    #[test]
    fn a_deregistered_instances_lease_has_no_deadline_left() {
        let clock = LeaseClock::default();
        let mut machine = machine_with(&[]);
        clock.promote(1, &machine, Duration::ZERO);
        let instance = RegisteredInstance {
            service: "web".into(),
            instance_id: "one".into(),
            host: "127.0.0.1".into(),
            port: 80,
            metadata: Default::default(),
            health_path: None,
            ttl_secs: 10,
        };
        let register = Command::Register(Register { instance, lease: 7, ttl_secs: 10 });
        let deregister = Command::Deregister { service: "web".into(), instance_id: "one".into() };
        for (index, command, timed) in [(1, &register, 1), (2, &deregister, 0), (3, &deregister, 0)] {
            let response = machine.apply(index, 1, command).response;
            clock.applied(&machine, command, &response);
            assert_eq!(clock.len(), timed, "after {command:?}");
        }
    }

    /// S04, P14: the revocation of an earlier lease, sent again, does not stop the clock of the one that has its id now.
    #[test]
    fn a_repeated_revocation_leaves_a_lease_of_the_same_id_its_deadline() {
        let clock = LeaseClock::default();
        let mut machine = machine_with(&[]);
        clock.promote(1, &machine, Duration::ZERO);
        let request = |seq| Some(RequestId { client: 1, seq, after: 0, answered: 0 });
        let grant =
            |seq| Command::LeaseGrant { id: 7, ttl_secs: 10 }.enclosed(Caller::Anonymous, request(seq));
        let revoke = Command::LeaseRevoke { id: 7 }.enclosed(Caller::Anonymous, request(2));
        for (index, command, timed) in
            [(1, grant(1), 1), (2, revoke.clone(), 0), (3, grant(3), 1), (4, revoke, 1)]
        {
            let response = machine.apply(index, 1, &command).response;
            clock.applied(&machine, &command, &response);
            assert_eq!((response.is_ok(), clock.len()), (true, timed), "after {command:?}");
        }
    }

    #[tokio::test]
    async fn an_expired_lease_is_proposed_with_the_term_of_its_clock() {
        let clock = LeaseClock::default();
        let machine = Mutex::new(machine_with(&[(5, 1)]));
        clock.promote(4, &machine.lock(), Duration::ZERO);
        let proposed = Mutex::new(Vec::new());
        let propose = |command| {
            let mut machine = machine.lock();
            let response = machine.apply(10, 4, &command).response;
            clock.applied(&machine, &command, &response);
            proposed.lock().push(command);
            std::future::ready(true)
        };
        let note = async |noted| unreachable!("it is short: {noted:?}");
        let run = clock.run(propose, note);
        let _ = tokio::time::timeout(Duration::from_millis(1500), run).await;
        assert_eq!(*proposed.lock(), [Command::LeaseExpire { term: 4, leases: vec![(5, 1)] }]);
        assert!(clock.is_empty());
    }
}
