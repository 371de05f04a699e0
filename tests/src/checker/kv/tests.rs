//! The store's model: what its answers allow, and what it learns from others' answers.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::checker::linear::naive::brute_force;
use crate::checker::linear::{Verdict, check};
use crate::checker::model::Model;
use crate::history::{End, History, Process};

const MODEL: KvModel = KvModel { revision: 1 };

type Recorded = History<Call, Answer>;

fn kv(value: &str, create_revision: i64, mod_revision: i64, version: i64) -> KeyValue {
    KeyValue { value: value.into(), create_revision, mod_revision, version }
}

fn put(key: &str, value: &str, revision: i64) -> (Call, Option<Answer>) {
    (Call::put(key, value), Some(Answer::of(revision, Seen::Put)))
}

fn get(key: &str, kv: Option<KeyValue>, revision: i64) -> (Call, Option<Answer>) {
    (Call::get(key), Some(Answer::of(revision, Seen::Got(kv))))
}

fn lost(call: Call) -> (Call, Option<Answer>) {
    (call, None)
}

/// One after the other; without an answer an operation stays open.
fn in_turn(calls: Vec<(Call, Option<Answer>)>) -> Recorded {
    let mut history = Recorded::default();
    for (i, (call, answer)) in calls.into_iter().enumerate() {
        let id = history.invoke(Process(i as u32), Duration::ZERO, call);
        if let Some(answer) = answer {
            history.ok(id, Duration::ZERO, answer);
        }
    }
    history
}

fn passes(calls: Vec<(Call, Option<Answer>)>) -> bool {
    match check(&MODEL, &in_turn(calls)) {
        Verdict::Linearizable { .. } => true,
        Verdict::Violation(_) => false,
        unknown => panic!("{unknown:?}"),
    }
}

#[test]
fn a_key_through_put_put_delete_and_put() {
    let deleted = (Call::delete("a"), Some(Answer::of(4, Seen::Deleted(1))));
    let nothing_deleted = (Call::delete("a"), Some(Answer::of(4, Seen::Deleted(0))));
    assert!(passes(vec![
        get("a", None, 1),
        put("a", "1", 2),
        put("a", "2", 3),
        get("a", Some(kv("2", 2, 3, 2)), 3),
        deleted,
        get("a", None, 4),
        nothing_deleted,
        put("a", "3", 5),
        get("a", Some(kv("3", 5, 5, 1)), 9),
    ]));
}

#[test]
fn every_number_of_an_answer_counts() {
    let after = |kv| passes(vec![put("a", "1", 2), put("a", "2", 3), get("a", Some(kv), 3)]);
    assert!(after(kv("2", 2, 3, 2)));
    for wrong in [kv("1", 2, 3, 2), kv("2", 1, 3, 2), kv("2", 2, 2, 2), kv("2", 2, 3, 1)] {
        assert!(!after(wrong));
    }
}

#[test]
fn a_revision_that_goes_back_is_found() {
    // A08
    assert!(!passes(vec![put("a", "1", 5), put("a", "2", 4)]));
    assert!(!passes(vec![put("a", "1", 5), put("a", "2", 5)]));
    assert!(!passes(vec![put("a", "1", 5), get("a", Some(kv("1", 5, 5, 1)), 4)]));
}

#[test]
fn a_lost_update_is_found() {
    // A02: both replaced version 1.
    let cas = |value: &str, revision| {
        let answer = Answer { revision: Some(revision), succeeded: Some(true), seen: Some(vec![Seen::Put]) };
        (Call::cas("a", Expect::ModRevision(2), value), Some(answer))
    };
    assert!(passes(vec![put("a", "1", 2), cas("2", 3)]));
    assert!(!passes(vec![put("a", "1", 2), cas("2", 3), cas("3", 4)]));
}

#[test]
fn a_failed_compare_is_checked_as_well() {
    let cas = |expect, seen| {
        let answer = Answer { revision: Some(2), succeeded: Some(false), seen: Some(vec![Seen::Got(seen)]) };
        (Call::cas("a", expect, "2"), Some(answer))
    };
    let is = Some(kv("1", 2, 2, 1));
    assert!(passes(vec![put("a", "1", 2), cas(Expect::Value("0".into()), is.clone())]));
    assert!(!passes(vec![put("a", "1", 2), cas(Expect::Value("1".into()), is.clone())]));
    assert!(!passes(vec![put("a", "1", 2), cas(Expect::Version(2), None)]));
    // A value never equals that of a missing key, its numbers are zero.
    assert!(passes(vec![cas(Expect::Value("".into()), None)]));
    assert!(!passes(vec![cas(Expect::ModRevision(0), None)]));
}

#[test]
fn half_of_a_transaction_is_found() {
    let both = Call {
        then: vec![Op::Put("a".into(), "1".into()), Op::Put("b".into(), "1".into())],
        ..Call::default()
    };
    let done = Answer { revision: Some(2), succeeded: Some(true), seen: Some(vec![Seen::Put, Seen::Put]) };
    let read = Call { then: vec![Op::Get("a".into()), Op::Get("b".into())], ..Call::default() };
    let seen = |b: Option<KeyValue>| {
        let seen = vec![Seen::Got(Some(kv("1", 2, 2, 1))), Seen::Got(b)];
        Some(Answer { revision: Some(2), succeeded: Some(true), seen: Some(seen) })
    };
    assert!(passes(vec![(both.clone(), Some(done.clone())), (read.clone(), seen(Some(kv("1", 2, 2, 1))))]));
    assert!(!passes(vec![(both, Some(done)), (read, seen(None))]));
}

#[test]
fn a_write_skew_is_found() {
    // A05: each writes one key if the other does not exist.
    let if_missing = |other: &str, key: &str| Call {
        compares: vec![(other.into(), Expect::Version(0))],
        then: vec![Op::Put(key.into(), "1".into())],
        otherwise: vec![],
    };
    let done = |revision| {
        Some(Answer { revision: Some(revision), succeeded: Some(true), seen: Some(vec![Seen::Put]) })
    };
    assert!(passes(vec![(if_missing("a", "b"), done(2))]));
    assert!(!passes(vec![(if_missing("a", "b"), done(2)), (if_missing("b", "a"), done(3))]));
}

#[test]
fn a_lost_write_has_the_revision_that_is_read_later() {
    assert!(passes(vec![lost(Call::put("a", "1")), get("a", Some(kv("1", 7, 7, 1)), 8)]));
    assert!(passes(vec![lost(Call::put("a", "1")), get("a", None, 8), get("a", Some(kv("1", 9, 9, 1)), 9)]));
    // A read at 8 showed that it had not happened.
    assert!(!passes(vec![lost(Call::put("a", "1")), get("a", None, 8), get("a", Some(kv("1", 7, 7, 1)), 8)]));
    // One revision, not two: it was applied again (A06).
    assert!(!passes(vec![
        lost(Call::put("a", "1")),
        get("a", Some(kv("1", 7, 7, 1)), 7),
        get("a", Some(kv("1", 7, 9, 2)), 9)
    ]));
}

#[test]
fn a_compare_with_a_revision_that_nobody_knows_may_go_both_ways() {
    let cas = |succeeded, seen, revision| {
        let answer = Answer { revision: Some(revision), succeeded: Some(succeeded), seen: Some(vec![seen]) };
        (Call::cas("a", Expect::ModRevision(5), "2"), Some(answer))
    };
    assert!(passes(vec![lost(Call::put("a", "1")), cas(true, Seen::Put, 6)]));
    assert!(passes(vec![lost(Call::put("a", "1")), cas(false, Seen::Got(Some(kv("1", 4, 4, 1))), 6)]));
    assert!(!passes(vec![lost(Call::put("a", "1")), cas(false, Seen::Got(Some(kv("1", 5, 5, 1))), 6)]));
}

#[test]
fn what_others_saw_tells_what_became_of_a_lost_write() {
    let calls = || {
        vec![
            lost(Call::put("a", "seen")),
            lost(Call::put("a", "never")),
            lost(Call::put("a", "in the events")),
            lost(Call::delete("a")),
            get("a", Some(kv("seen", 7, 7, 1)), 8),
        ]
    };
    let mut history = in_turn(calls());
    let learnt = learn(&mut history, None);
    assert_eq!(learnt, Learnt { took_effect: 1, did_nothing: 0, unknown: 3 });
    let reader = history.operations()[4].ended().unwrap();
    let took_effect = Answer { revision: Some(7), succeeded: Some(true), seen: None };
    assert_eq!(history.operations()[0].end, End::Ok { moment: reader, answer: took_effect });

    let mut history = in_turn(calls());
    let learnt =
        learn(&mut history, Some(&[("a".into(), "seen".into(), 7), ("a".into(), "in the events".into(), 9)]));
    assert_eq!(learnt, Learnt { took_effect: 2, did_nothing: 1, unknown: 1 });
    assert!(matches!(history.operations()[1].end, End::Failed { .. }));
    check(&MODEL, &history).unwrap();
}

#[test]
fn a_value_that_two_calls_write_tells_nothing() {
    let mut history = in_turn(vec![
        lost(Call::put("a", "same")),
        lost(Call::put("a", "same")),
        get("a", Some(kv("same", 7, 7, 1)), 8),
    ]);
    assert_eq!(learn(&mut history, Some(&[])).unknown, 2);
    check(&MODEL, &history).unwrap();
}

#[test]
fn many_lost_writes_are_no_burden_once_they_are_learnt() {
    let mut calls: Vec<_> = (0..200).map(|i| lost(Call::put("a", format!("lost {i}")))).collect();
    calls.extend((0..200).map(|i| put("a", &format!("{i}"), 2 + i)));
    calls.push(get("a", Some(kv("199", 2, 201, 200)), 201));
    let mut history = in_turn(calls);
    let events: Vec<_> = (0..200).map(|i| ("a".into(), format!("{i}").into(), 2 + i)).collect();
    assert_eq!(learn(&mut history, Some(&events)).did_nothing, 200);
    assert!(check(&MODEL, &history).unwrap() < 1000);
}

/// One operation of a generated history: what, how long its call came before and its answer after it took effect, whether it
/// takes effect and is answered, and by how much its answer is falsified.
type Drawn = (u8, u64, u64, u8, i64);

/// A store's history: operations take effect one after the other, at times 100 apart.
fn produced(drawn: &[Drawn]) -> Recorded {
    let mut state = MODEL.initial();
    let mut events: Vec<(u64, usize, Option<Answer>)> = Vec::new();
    let mut calls = Vec::new();
    for (i, (kind, before, after, fate, wrong)) in drawn.iter().enumerate() {
        let key = if kind % 2 == 0 { "a" } else { "b" };
        let known = state.keys.get(key).map(|live| live.modified);
        let expect = match known {
            Some(Stamp::At(revision)) => revision,
            _ => 0,
        };
        let call = match kind / 2 {
            0 => Call::get(key),
            1 => Call::put(key, i.to_string()),
            2 => Call::delete(key),
            3 => Call::cas(key, Expect::ModRevision(expect), i.to_string()),
            _ => Call::cas(key, Expect::Version(1), i.to_string()),
        };
        let at = 100 * (i as u64 + 10);
        events.push((at - before, i, None));
        if *fate != 0 {
            let (next, mut answer) = apply(&state, &call);
            state = next;
            answer.revision = answer.revision.map(|revision| revision + wrong);
            if *fate != 1 {
                events.push((at + after, i, Some(answer)));
            }
        }
        calls.push(call);
    }
    events.sort_by_key(|(at, i, answer)| (*at, answer.is_some(), *i));
    let mut history = Recorded::default();
    let mut ids = vec![None; calls.len()];
    for (at, i, answer) in events {
        let at = Duration::from_millis(at);
        match (answer, ids[i]) {
            (Some(answer), Some(id)) => history.ok(id, at, answer),
            _ => ids[i] = Some(history.invoke(Process(i as u32), at, calls[i].clone())),
        }
    }
    history
}

/// What a store in this state does and answers.
fn apply(state: &State, call: &Call) -> (State, Answer) {
    let number = |stamp| match stamp {
        Stamp::At(revision) => revision,
        Stamp::After { .. } => unreachable!("every write gets a revision here"),
    };
    let holds = |(key, expect): &(Key, Expect)| match expect {
        Expect::Version(version) => state.keys.get(key).map_or(0, |live| live.version) == *version,
        Expect::ModRevision(revision) => {
            state.keys.get(key).map_or(0, |live| number(live.modified)) == *revision
        }
        Expect::Value(_) | Expect::CreateRevision(_) => unreachable!("not drawn"),
    };
    let succeeded = call.compares.iter().all(holds);
    let (mut next, mut seen) = (state.clone(), Vec::new());
    let revision = state.revision + 1;
    for op in call.branch(succeeded) {
        seen.push(match op {
            Op::Get(key) => Seen::Got(next.keys.get(key).map(|live| KeyValue {
                value: live.value.clone(),
                create_revision: number(live.created),
                mod_revision: number(live.modified),
                version: live.version,
            })),
            Op::Put(key, value) => {
                let before = next.keys.get(key);
                let live = Live {
                    value: value.clone(),
                    created: before.map_or(Stamp::At(revision), |live| live.created),
                    modified: Stamp::At(revision),
                    version: before.map_or(0, |live| live.version) + 1,
                };
                next.keys.insert(key.clone(), live);
                next.revision = revision;
                Seen::Put
            }
            Op::Delete(key) => {
                let was_there = next.keys.remove(key).is_some();
                next.revision = if was_there { revision } else { next.revision };
                Seen::Deleted(was_there.into())
            }
        });
    }
    let answer = Answer { revision: Some(next.revision), succeeded: Some(succeeded), seen: Some(seen) };
    (next, answer)
}

fn drawn(wrong: std::ops::Range<i64>) -> impl Strategy<Value = Vec<Drawn>> {
    prop::collection::vec((0..10u8, 0..500u64, 0..500u64, 0..8u8, wrong), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn what_a_store_answers_passes(drawn in drawn(0..1)) {
        let mut history = produced(&drawn);
        prop_assert!(!check(&MODEL, &history).is_violation());
        learn(&mut history, None);
        prop_assert!(!check(&MODEL, &history).is_violation());
    }

    #[test]
    fn what_one_answers_that_lies_is_judged_as_by_trying_everything(
        drawn in drawn(-2..3).prop_map(|mut drawn| {
            // One lie is enough; most answers are true.
            drawn.iter_mut().skip(1).for_each(|one| one.4 = 0);
            let places = 3.min(drawn.len() - 1);
            drawn.rotate_right(places);
            drawn
        })
    ) {
        let mut history = produced(&drawn);
        let key = |key: &str| -> Vec<_> {
            history.operations().iter().filter(|op| MODEL.keys(&op.call)[0] == key.into()).cloned().collect()
        };
        let right = brute_force(&MODEL, &key("a")) && brute_force(&MODEL, &key("b"));
        prop_assert_eq!(!check(&MODEL, &history).is_violation(), right);
        // What is learnt adds nothing that was not so.
        learn(&mut history, None);
        prop_assert_eq!(!check(&MODEL, &history).is_violation(), right);
    }
}
