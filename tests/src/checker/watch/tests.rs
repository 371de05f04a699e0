//! Each wrong message is found under its name.

use std::time::Duration;

use super::*;
use crate::checker::kv::{Answer, Call, Seen};
use crate::history::{History, Process};

fn change(key: &str, value: Option<&str>, revision: i64) -> Change {
    Change { key: key.into(), value: value.map(Into::into), revision }
}

/// a=1 at 2; a=2 and b=1 at 3; c at 4; a deleted at 6 (5 is elsewhere).
fn truth() -> Truth {
    Truth::new(vec![
        change("a", Some("1"), 2),
        change("a", Some("2"), 3),
        change("b", Some("1"), 3),
        change("c", Some("1"), 4),
        change("a", None, 6),
    ])
    .unwrap()
}

fn events(changes: &[Change]) -> Message {
    let events = changes.iter().map(|change| Event { change: change.clone(), previous: None });
    Message::Events { events: events.collect(), fragment: false }
}

fn told(messages: Vec<Message>) -> Watcher {
    let moment = |seq| Moment { seq, at: Duration::from_secs(seq) };
    let told = messages.into_iter().enumerate().map(|(i, message)| (moment(i as u64), message));
    Watcher { name: "w".to_owned(), start: "a".into(), end: Some("c".into()), told: told.collect() }
}

fn after_opening(messages: Vec<Message>) -> Result<i64, Violation> {
    let mut all = vec![Message::Opened { from: 1 }];
    all.extend(messages);
    told(all).check(&truth())
}

fn all() -> Vec<Change> {
    truth().changes().iter().filter(|change| *change.key < *"c").cloned().collect()
}

#[test]
fn whole_revisions_in_order_pass_in_any_division() {
    let all = all();
    assert_eq!(after_opening(vec![events(&all)]), Ok(7));
    assert_eq!(after_opening(vec![events(&all[..1]), events(&all[1..3]), events(&all[3..])]), Ok(7));
    let part = |changes: &[Change]| match events(changes) {
        Message::Events { events, .. } => Message::Events { events, fragment: true },
        other => other,
    };
    assert_eq!(after_opening(vec![part(&all[..2]), events(&all[2..])]), Ok(7));
}

#[test]
fn a_watcher_that_begins_again_where_it_stopped_passes() {
    let all = all();
    let messages = vec![
        events(&all[..1]),
        Message::Opened { from: 3 },
        events(&all[1..]),
        Message::Progress { revision: 9 },
    ];
    assert_eq!(after_opening(messages), Ok(10));
}

#[test]
fn a_gap_is_found() {
    let all = all();
    assert!(matches!(after_opening(vec![events(&all[1..3])]), Err(Violation::Gap { .. })));
    assert!(matches!(after_opening(vec![events(&all[..2]), events(&all[3..])]), Err(Violation::Gap { .. })));
}

#[test]
fn silence_is_a_gap_in_the_end() {
    // W09, W11
    let watcher = told(vec![Message::Opened { from: 1 }, events(&all()[..3])]);
    assert_eq!(watcher.check(&truth()), Ok(4));
    assert!(matches!(watcher.check_complete(&truth(), 6), Err(Violation::Gap { .. })));
    assert_eq!(watcher.check_complete(&truth(), 5), Ok(()));
}

#[test]
fn a_duplicate_is_found() {
    let all = all();
    assert!(matches!(after_opening(vec![events(&all[..1]), events(&all)]), Err(Violation::Duplicate { .. })));
    let twice = [all[0].clone(), all[1].clone(), all[2].clone(), all[2].clone()];
    assert!(matches!(after_opening(vec![events(&twice)]), Err(Violation::Duplicate { .. })));
}

#[test]
fn a_wrong_order_is_found() {
    let all = all();
    let swapped = [all[0].clone(), all[2].clone(), all[1].clone()];
    assert!(matches!(after_opening(vec![events(&swapped)]), Err(Violation::Order { .. })));
}

#[test]
fn what_is_older_than_the_stream_is_found() {
    // W04 after a reconnection, W07 for a stream that begins in the future.
    let all = all();
    let again = vec![events(&all[..3]), Message::Opened { from: 4 }, events(&all[1..3])];
    assert!(matches!(after_opening(again), Err(Violation::BeforeStart { from: 4, .. })));
    let future = told(vec![Message::Opened { from: 90 }, events(&all[..1])]);
    assert!(matches!(future.check(&truth()), Err(Violation::BeforeStart { from: 90, .. })));
}

#[test]
fn progress_ahead_of_events_is_found() {
    let progress = |revision| after_opening(vec![events(&all()[..1]), Message::Progress { revision }]);
    assert_eq!(progress(2), Ok(3));
    assert!(matches!(progress(3), Err(Violation::Progress { progress: 3, .. })));
}

#[test]
fn a_wrong_previous_value_is_found() {
    let with_previous = |previous: Option<&str>| {
        let all = all();
        let second = Event { change: all[1].clone(), previous: Some(previous.map(Into::into)) };
        let third = Event { change: all[2].clone(), previous: Some(None) };
        let events = Message::Events { events: vec![second, third], fragment: false };
        told(vec![Message::Opened { from: 3 }, events]).check(&truth())
    };
    assert_eq!(with_previous(Some("1")), Ok(4));
    assert!(matches!(with_previous(None), Err(Violation::Previous { .. })));
    assert!(matches!(with_previous(Some("2")), Err(Violation::Previous { .. })));
}

#[test]
fn an_invented_event_is_found() {
    let invented = [change("a", Some("1"), 2), change("a", Some("x"), 3)];
    assert!(matches!(after_opening(vec![events(&invented)]), Err(Violation::Invented { .. })));
}

#[test]
fn an_event_that_cannot_be_read_yet_is_found() {
    let moment = |seq| Moment { seq, at: Duration::from_secs(seq) };
    let read = |from, revision| Reading {
        process: Process(1),
        invoked: moment(from),
        ended: moment(from + 1),
        revision,
        wrote: false,
    };
    let told = [(moment(2), 5), (moment(4), 6)];
    assert_eq!(check_readable(told.into_iter(), &[read(1, 4), read(3, 5), read(5, 6)]), Ok(()));
    assert!(matches!(
        check_readable(told.into_iter(), &[read(1, 4), read(5, 5)]),
        Err(Violation::NotReadable { revision: 6, .. })
    ));
}

#[test]
fn changes_must_be_what_was_acknowledged_and_nothing_that_was_refused() {
    let record = |refuse: bool| {
        let mut history = History::default();
        for (call, revision, seen) in [
            (Call::put("a", "1"), 2, Seen::Put),
            (Call::put("a", "2"), 3, Seen::Put),
            (Call::delete("a"), 6, Seen::Deleted(1)),
        ] {
            let id = history.invoke(Process(0), Duration::ZERO, call);
            history.ok(id, Duration::ZERO, Answer::of(revision, seen));
        }
        let other = history.invoke(Process(0), Duration::ZERO, Call::put("b", "1"));
        if refuse {
            history.fail(other, Duration::ZERO);
        }
        history
    };
    let changes =
        |count| Truth::new(truth().changes().iter().filter(|c| *c.key < *"c").take(count).cloned().collect());
    let all = changes(4).unwrap();
    assert_eq!(all.check_writes(&record(false)), Ok(()));
    assert_eq!(all.check_writes(&record(true)), Err(Contradiction::Unasked(change("b", Some("1"), 3))));
    let short = changes(3).unwrap();
    assert_eq!(short.check_writes(&record(false)), Err(Contradiction::Lost(change("a", None, 6))));
    // A06: asked for once, done twice.
    let twice = Truth::new(vec![change("b", Some("1"), 3), change("b", Some("1"), 4)]).unwrap();
    let mut history = History::default();
    history.invoke(Process(0), Duration::ZERO, Call::put("b", "1"));
    assert_eq!(twice.check_writes(&history), Err(Contradiction::Unasked(change("b", Some("1"), 4))));
}

#[test]
fn changes_out_of_order_or_twice_in_one_revision_are_refused() {
    let (a, b) = (change("a", Some("1"), 3), change("a", Some("2"), 2));
    assert!(matches!(Truth::new(vec![a.clone(), b]), Err(Contradiction::Order(..))));
    assert!(matches!(Truth::new(vec![a.clone(), a]), Err(Contradiction::Twice(_))));
}
