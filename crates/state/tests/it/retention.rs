//! How much history a leader keeps.

use proptest::prelude::*;
use weft_state::{
    command::Command,
    lease::Tick,
    retention::{HISTORY_BYTES_MIN, HistoryLimits, Retention},
};

use crate::support::{Replica, put};

const NONE: HistoryLimits = HistoryLimits { age_max_ms: 0, changes_max: 0, bytes_max: Some(0) };

/// What a leader does with the answer.
fn look(retention: &mut Retention, now: u64, replica: &mut Replica) {
    if let Some(revision) = retention.due(Tick(now), &replica.machine) {
        replica.compact(revision);
    }
}

#[test]
fn without_limits_history_stays() {
    let (mut r, mut retention) = (Replica::new(), Retention::new(NONE));
    for now in 0..100 {
        r.put("a", "1");
        look(&mut retention, now * 1_000_000, &mut r);
    }
    assert_eq!(r.machine.compacted(), 0);
}

#[test]
fn history_older_than_the_age_limit_goes_and_no_other() {
    let mut r = Replica::new();
    let mut retention = Retention::new(HistoryLimits { age_max_ms: 60_000, ..NONE });
    // One change a second: at second n the revision is n + 2.
    for second in 0..300_i64 {
        r.put("a", "1");
        look(&mut retention, second as u64 * 1_000, &mut r);
        let readable_for = second + 2 - r.machine.compacted();
        assert!(second < 60 || (60..=63).contains(&readable_for), "{readable_for} s at {second} s");
    }
    // Once nothing changes any more, the rest follows, and then nothing is proposed.
    for second in 300..500 {
        look(&mut retention, second * 1_000, &mut r);
    }
    assert_eq!(r.machine.compacted(), r.machine.revision());
    assert_eq!(retention.due(Tick(900_000), &r.machine), None);
}

#[test]
fn changes_beyond_the_limit_go_with_a_quarter_more() {
    let mut r = Replica::new();
    let mut retention = Retention::new(HistoryLimits { changes_max: 100, ..NONE });
    let mut compactions = 0;
    for round in 0..1_000 {
        r.put(&format!("k{}", round % 7), "1");
        let before = r.machine.compacted();
        look(&mut retention, 0, &mut r);
        compactions += i32::from(r.machine.compacted() != before);
        assert!(r.machine.history_held().changes <= 100);
        assert!(round < 100 || r.machine.history_held().changes >= 75);
    }
    assert!((30..=40).contains(&compactions), "{compactions}");
}

#[test]
fn bytes_of_past_values_are_bounded_and_present_ones_are_not_counted() {
    let mut r = Replica::new();
    let mut retention = Retention::new(HistoryLimits { bytes_max: Some(10_000), ..NONE });
    let value = "x".repeat(1_000);
    for key in 0..50 {
        r.put(&format!("k{key}"), &value);
        look(&mut retention, 0, &mut r);
    }
    assert_eq!(r.machine.compacted(), 0, "50 kB of present values are not history");
    for _ in 0..200 {
        r.put("k1", &value);
        look(&mut retention, 0, &mut r);
        // The first halves are changes that made the keys, with nothing before them.
        assert!(r.machine.history_held().bytes <= 14_000, "{:?}", r.machine.history_held());
    }
    assert!(r.machine.compacted() > 0);
}

#[test]
fn history_takes_no_more_than_what_exists_unless_that_is_little() {
    // Values of 100 kB, of which all but the newest are past.
    let value = "x".repeat(100_000);
    let most_held = |keys: u64| {
        let mut r = Replica::new();
        let mut retention = Retention::new(HistoryLimits { bytes_max: None, ..NONE });
        let mut most = 0;
        for n in 0..1_500 {
            r.put(&format!("k{}", n % keys), &value);
            look(&mut retention, 0, &mut r);
            while r.machine.scrub(100) {}
            most = most.max(r.machine.history_held().bytes);
        }
        most
    };
    let few = most_held(10);
    assert!((HISTORY_BYTES_MIN * 9 / 10..=HISTORY_BYTES_MIN).contains(&few), "{few} bytes beside 1 MB");
    let many = most_held(700);
    assert!((63_000_000..=70_000_000).contains(&many), "{many} bytes beside 70 MB");
}

#[test]
fn compacted_history_is_a_backlog_until_it_is_given_back() {
    let mut r = Replica::new();
    for _ in 0..1_000 {
        r.put("a", "1234");
    }
    r.compact(r.machine.revision());
    let held = r.machine.history_held();
    assert!(held.backlog > 900, "{held:?}");
    assert_eq!(held.changes, 1);
    while r.machine.scrub(10) {}
    assert_eq!(
        r.machine.history_held(),
        weft_state::machine::HistoryHeld { changes: 1, bytes: 0, backlog: 0 }
    );
}

proptest! {
    /// P02: one command never gives back more than its fixed share, whatever was compacted.
    #[test]
    fn work_of_one_apply_is_bounded_after_any_compaction(puts in 1..400usize, keys in 1..50usize) {
        let mut r = Replica::new();
        for n in 0..puts {
            r.put(&format!("k{}", n % keys), "1");
        }
        let revision = r.machine.revision();
        let mut before = r.machine.history_held().changes;
        r.apply(&Command::Compact { revision });
        loop {
            let backlog = r.machine.history_held().backlog;
            prop_assert!(before - backlog <= 40, "{} at once", before - backlog);
            if backlog == 0 { break }
            before = backlog;
            r.apply(&put("other", "1"));
        }
    }
}
