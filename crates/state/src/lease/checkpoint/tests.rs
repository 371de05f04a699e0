use proptest::prelude::*;

use super::*;
use crate::{command::Command, machine::Machine};

const HOUR: i64 = 3_600;
const STEP_MS: u64 = CHECKPOINT_STEP_SECS as u64 * 1_000;

/// One leader after another over one replicated state, on one clock.
struct Group {
    machine: Machine,
    lessor: Lessor,
    now: u64,
    index: u64,
    term: u64,
}

impl Group {
    fn with(leases: &[(LeaseId, i64)]) -> Self {
        let mut group = Self { machine: Machine::new(), lessor: Lessor::new(), now: 0, index: 0, term: 1 };
        for (id, ttl_secs) in leases {
            group.apply(&Command::LeaseGrant { id: *id, ttl_secs: *ttl_secs });
        }
        group.elect(0);
        group
    }

    fn apply(&mut self, command: &Command) {
        self.index += 1;
        self.machine.apply(self.index, self.term, command).response.expect("is not refused");
    }

    /// A change of leader; the state may come from an image.
    fn elect(&mut self, extension_ms: u64) {
        self.lessor.demote();
        self.term += 1;
        self.apply(&Command::Noop);
        self.machine = Machine::from_image(&self.machine.image()).expect("just written");
        self.lessor.promote(Tick(self.now), self.machine.all_lease_terms(), extension_ms);
    }

    fn pass(&mut self, ms: u64) {
        self.now += ms;
        self.lessor.handle_timeout(Tick(self.now));
        while let Some(leases) = self.lessor.poll_output() {
            self.apply(&Command::LeaseExpire { term: self.term, leases: leases.clone() });
            leases.iter().for_each(|(id, _)| self.lessor.revoked(*id));
        }
    }

    /// What a driver does when a sweep is due; `reaches_log` is what becomes of the command.
    fn sweep(&mut self, reaches_log: bool) -> Vec<LeaseCheckpoint> {
        let mut all = Vec::new();
        while let Some(leases) = self.lessor.poll_checkpoint(Tick(self.now)) {
            if reaches_log {
                self.apply(&Command::LeaseCheckpoint { term: self.term, leases: leases.clone() });
            }
            self.lessor.checkpointed(&leases);
            all.extend(leases);
        }
        all
    }

    /// True: it was told that it has its full time again.
    fn renew(&mut self, id: LeaseId, reaches_log: bool) -> bool {
        match self.lessor.renew(Tick(self.now), id) {
            Ok(_) => true,
            Err(RenewError::Noted(take_back)) if reaches_log => {
                self.apply(&Command::LeaseCheckpoint { term: self.term, leases: vec![take_back] });
                self.lessor.taken_back(self.machine.lease_terms(id).expect("it is running"));
                self.lessor.renew(Tick(self.now), id).expect("nothing is noted any more");
                true
            }
            Err(_) => false,
        }
    }

    fn left_secs(&self, id: LeaseId) -> u64 {
        self.lessor.remaining(Tick(self.now), id).map_or(0, |ms| ms.div_ceil(1_000))
    }
}

/// P04
#[test]
fn a_lease_of_an_hour_does_not_begin_anew_with_each_election() {
    let mut group = Group::with(&[(1, HOUR)]);
    let mut lived = 0;
    while group.machine.lease_terms(1).is_some() {
        for _ in 0..10 {
            group.pass(CHECKPOINT_SWEEP_MS);
            group.sweep(true);
            lived += CHECKPOINT_SWEEP_MS;
        }
        group.elect(1_000);
        assert!(lived < 2 * HOUR as u64 * 1_000, "it never ends");
    }
    let elections = HOUR as u64 * 1_000 / (10 * CHECKPOINT_SWEEP_MS);
    assert!(lived <= HOUR as u64 * 1_000 + elections * (STEP_MS + CHECKPOINT_SWEEP_MS + 1_000), "{lived} ms");
}

/// P04: etcd #9395 without the notes.
#[test]
fn without_notes_each_election_gives_all_of_it_again() {
    let mut group = Group::with(&[(1, HOUR)]);
    group.pass(STEP_MS * 6);
    group.elect(0);
    assert_eq!(group.left_secs(1), HOUR as u64);
}

/// P04
#[test]
fn a_new_leader_starts_from_what_was_noted_and_never_below_what_was_promised() {
    let mut group = Group::with(&[(1, HOUR), (2, 60)]);
    group.pass(STEP_MS);
    let noted = group.sweep(true);
    assert_eq!(
        noted.iter().map(|lease| (lease.id, lease.remaining_secs)).collect::<Vec<_>>(),
        [(1, Some(HOUR - CHECKPOINT_STEP_SECS))]
    );
    assert_eq!(group.sweep(true), [], "the next is due in a while");
    group.pass(CHECKPOINT_SWEEP_MS);
    assert_eq!(group.sweep(true), [], "not a step less than what was noted");
    group.elect(2_000);
    assert_eq!(group.left_secs(1), (HOUR - CHECKPOINT_STEP_SECS) as u64 + 2);
}

/// P04, S01
#[test]
fn a_renewal_takes_back_what_was_noted_before_it_is_answered() {
    let mut group = Group::with(&[(1, HOUR)]);
    group.pass(STEP_MS);
    group.sweep(true);
    assert!(!group.renew(1, false), "not answered while a new leader would start from less");
    assert!(group.renew(1, true));
    assert_eq!(group.machine.lease_terms(1).expect("it runs").remaining_secs, None);
    group.elect(0);
    assert_eq!(group.left_secs(1), HOUR as u64);
    assert!(group.renew(1, false), "nothing is noted, so the log is not asked");
}

/// P04, S01: what is in the log for certain only later.
#[test]
fn a_lease_is_not_renewed_while_it_is_being_noted() {
    let mut group = Group::with(&[(1, HOUR)]);
    group.pass(STEP_MS);
    let leases = group.lessor.poll_checkpoint(Tick(group.now)).expect("a sweep is due");
    assert_eq!(group.lessor.renew(Tick(group.now), 1), Err(RenewError::BeingNoted));
    // This leader stays, and counts anew; the command is still on its way.
    group.lessor.promote(Tick(group.now), group.machine.all_lease_terms(), 0);
    assert!(matches!(group.lessor.renew(Tick(group.now), 1), Err(RenewError::Noted(_))));
    group.lessor.checkpointed(&leases);
    assert!(
        matches!(group.lessor.renew(Tick(group.now), 1), Err(RenewError::Noted(_))),
        "it may be in the log"
    );
}

/// P04, P03
#[test]
fn notes_of_a_former_leader_or_of_an_earlier_grant_count_for_nothing() {
    let mut group = Group::with(&[(1, HOUR), (2, HOUR)]);
    group.pass(STEP_MS);
    let leases = group.lessor.poll_checkpoint(Tick(group.now)).expect("a sweep is due");
    group.apply(&Command::LeaseRevoke { id: 2 });
    group.apply(&Command::LeaseGrant { id: 2, ttl_secs: HOUR });
    let (former, term) = (group.term, group.term + 1);
    group.elect(0);
    group.apply(&Command::LeaseCheckpoint { term: former, leases: leases.clone() });
    assert!(group.machine.all_lease_terms().all(|terms| terms.remaining_secs.is_none()));
    group.apply(&Command::LeaseCheckpoint { term, leases });
    let noted: Vec<_> = group.machine.all_lease_terms().map(|terms| terms.remaining_secs.is_some()).collect();
    assert_eq!(noted, [true, false]);
}

/// P04, A09
#[test]
fn what_was_noted_is_part_of_the_state_and_of_its_image() {
    let mut group = Group::with(&[(1, HOUR), (2, HOUR)]);
    let hash = group.machine.hash();
    group.pass(STEP_MS);
    group.sweep(true);
    assert_ne!(group.machine.hash(), hash);
    let back = Machine::from_image(&group.machine.image()).expect("just written");
    assert_eq!((back.hash(), back.lease_terms(2)), (group.machine.hash(), group.machine.lease_terms(2)));
    for id in [1, 2] {
        assert!(group.renew(id, true));
    }
    assert_eq!(group.machine.hash(), hash, "and taken back without a trace");
}

/// P04
#[test]
fn a_hundred_thousand_leases_are_noted_in_bounded_commands() {
    let leases: Vec<_> = (1..=100_000).map(|id| (id, HOUR)).collect();
    let mut group = Group::with(&leases);
    group.now += STEP_MS;
    let mut noted = 0;
    while let Some(batch) = group.lessor.poll_checkpoint(Tick(group.now)) {
        assert!(batch.len() <= LEASES_PER_CHECKPOINT_MAX);
        noted += batch.len();
    }
    assert_eq!(noted, 100_000);
}

#[derive(Debug, Clone)]
enum Step {
    Pass(u64),
    Renew { reaches_log: bool },
    Sweep { reaches_log: bool },
    Elect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..2 * STEP_MS).prop_map(Step::Pass),
        2 => prop::bool::weighted(0.8).prop_map(|reaches_log| Step::Renew { reaches_log }),
        3 => prop::bool::weighted(0.8).prop_map(|reaches_log| Step::Sweep { reaches_log }),
        1 => Just(Step::Elect),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// P04, S01, S02: whatever is renewed, noted, lost and elected when.
    #[test]
    fn no_lease_ends_before_what_its_holder_was_promised(
        ttl_secs in 1..2 * HOUR,
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut group = Group::with(&[(1, ttl_secs)]);
        let mut promised = group.now + ttl_secs as u64 * 1_000;
        for step in steps {
            let before = group.now;
            match step {
                Step::Pass(ms) => group.pass(ms),
                Step::Renew { reaches_log } => if group.renew(1, reaches_log) {
                    promised = group.now + ttl_secs as u64 * 1_000;
                }
                Step::Sweep { reaches_log } => { group.sweep(reaches_log); }
                Step::Elect => group.elect(0),
            }
            if group.machine.lease_terms(1).is_none() {
                prop_assert!(group.now >= promised, "ended at {} of {promised}, from {before}", group.now);
                return Ok(());
            }
            let deadline = group.now + group.lessor.remaining(Tick(group.now), 1).unwrap_or(0);
            prop_assert!(deadline >= promised, "to end at {deadline}, promised {promised}");
        }
    }
}
