//! Watches, scene by scene.

use weft_state::{
    command::{Command, Event, Revision},
    machine::Machine,
    watch::{WatchHub, WatchOptions, WatchPoll, WatchRange, WatcherId},
};

use crate::support::{Replica, all_of, b, put_op, short, text};
use weft_state::command::TxnOp;

pub fn options(key: &str, range_end: &str, start: Revision) -> WatchOptions {
    WatchOptions {
        range: WatchRange { key: b(key), range_end: b(range_end) },
        start,
        prev_kv: false,
        no_put: false,
        no_delete: false,
    }
}

/// Applies and publishes, as a driver does.
fn run(r: &mut Replica, hub: &mut WatchHub, command: &Command) -> Vec<WatcherId> {
    let applied = r.apply(command);
    hub.publish(&applied.events)
}

fn put(r: &mut Replica, hub: &mut WatchHub, key: &str, value: &str) -> Vec<WatcherId> {
    run(r, hub, &crate::support::put(key, value))
}

/// All there is now, in short.
fn drain(hub: &mut WatchHub, id: WatcherId, machine: &Machine) -> Vec<String> {
    let mut seen = Vec::new();
    loop {
        match hub.poll(id, machine, 1 << 20) {
            WatchPoll::Events { events, .. } => seen.extend(events.iter().map(|event| short(event))),
            WatchPoll::Idle { .. } => return seen,
            WatchPoll::Compacted { oldest } => {
                seen.push(format!("compacted {oldest}"));
                return seen;
            }
        }
    }
}

#[test]
fn watcher_gets_what_happens_in_its_range_from_now_on() {
    let (mut r, mut hub) = (Replica::new(), WatchHub::new());
    r.put("a", "before");
    let (single, current) = hub.create(&r.machine, options("a", "", 0));
    let (prefix, _) = hub.create(&r.machine, options("a", "b", 0));
    assert_eq!(current, 2);
    assert_eq!(put(&mut r, &mut hub, "a", "1"), [single, prefix]);
    assert_eq!(put(&mut r, &mut hub, "a/x", "1"), [prefix]);
    assert_eq!(put(&mut r, &mut hub, "b", "1"), []);
    assert_eq!(drain(&mut hub, single, &r.machine), ["put a@3"]);
    assert_eq!(drain(&mut hub, prefix, &r.machine), ["put a@3", "put a/x@4"]);
    assert_eq!(hub.poll(single, &r.machine, 1), WatchPoll::Idle { synced_to: 5 });
    assert!(hub.cancel(single));
    assert!(!hub.cancel(single));
    assert_eq!(put(&mut r, &mut hub, "a", "2"), [prefix]);
    let (reused, _) = hub.create(&r.machine, options("a", "", 0));
    assert_ne!(reused, single, "an id is never given again");
    assert_eq!(hub.len(), 2);
}

/// W07
#[test]
fn watcher_of_a_future_revision_waits_for_it() {
    let (mut r, mut hub) = (Replica::new(), WatchHub::new());
    let (id, current) = hub.create(&r.machine, options("a", "", 4));
    assert_eq!(current, 1);
    assert_eq!(put(&mut r, &mut hub, "a", "2"), []);
    assert_eq!(put(&mut r, &mut hub, "a", "3"), []);
    assert_eq!(hub.poll(id, &r.machine, 1), WatchPoll::Idle { synced_to: 3 });
    assert_eq!(put(&mut r, &mut hub, "a", "4"), [id]);
    assert_eq!(drain(&mut hub, id, &r.machine), ["put a@4"]);
}

/// W03
#[test]
fn events_of_one_revision_stay_together_in_their_order() {
    let (mut r, mut hub) = (Replica::new(), WatchHub::new());
    let (live, _) = hub.create(&r.machine, options("\0", "\0", 0));
    let ops = ["c", "a", "b"].map(|key| TxnOp::Put(put_op(key, "a value that is longer than the limit")));
    run(&mut r, &mut hub, &all_of(ops.to_vec()));
    put(&mut r, &mut hub, "a", "x");
    let (late, _) = hub.create(&r.machine, options("\0", "\0", 1));
    for id in [live, late] {
        let WatchPoll::Events { revision: 2, events, more: true } = hub.poll(id, &r.machine, 1) else {
            panic!()
        };
        assert_eq!(
            events.iter().map(|event| short(event)).collect::<Vec<_>>(),
            ["put c@2", "put a@2", "put b@2"]
        );
        assert_eq!(drain(&mut hub, id, &r.machine), ["put a@3"]);
    }
}

/// W06, P09: the compacted revision's own changes are told; the values before them are gone, as in etcd.
#[test]
fn watch_may_start_at_the_compacted_revision_and_not_below() {
    let (mut r, mut hub) = (Replica::new(), WatchHub::new());
    r.put("a", "1");
    r.put("a", "2");
    r.delete("a", "");
    r.compact(4);
    let (below, _) = hub.create(&r.machine, options("a", "", 3));
    assert_eq!(drain(&mut hub, below, &r.machine), ["compacted 4"]);
    assert!(!hub.cancel(below), "it is gone");
    let (at, _) = hub.create(&r.machine, WatchOptions { prev_kv: true, ..options("a", "", 4) });
    let WatchPoll::Events { events, .. } = hub.poll(at, &r.machine, 1) else { panic!() };
    assert_eq!(short(&events[0]), "del a@4");
    assert_eq!(events[0].prev_kv, None);
}

#[test]
fn previous_values_and_filters_are_as_asked() {
    let (mut r, mut hub) = (Replica::new(), WatchHub::new());
    let with =
        |prev_kv, no_put, no_delete| WatchOptions { prev_kv, no_put, no_delete, ..options("a", "", 0) };
    let ids = [with(true, false, false), with(false, true, false), with(false, false, true)]
        .map(|options| hub.create(&r.machine, options).0);
    put(&mut r, &mut hub, "a", "1");
    put(&mut r, &mut hub, "a", "2");
    run(&mut r, &mut hub, &crate::support::delete("a", ""));
    let mut events = ids.map(|id| match hub.poll(id, &r.machine, 1 << 20) {
        WatchPoll::Events { events, .. } => events,
        other => panic!("{other:?}"),
    });
    let prev = |event: &Event| event.prev_kv.as_ref().map(|kv| text(&kv.value));
    assert_eq!(
        events[0].iter().map(|event| prev(event)).collect::<Vec<_>>(),
        [None, Some("1".into()), Some("2".into())]
    );
    assert_eq!(events[1].iter().map(|event| short(event)).collect::<Vec<_>>(), ["del a@4"]);
    assert_eq!(prev(&events[1].remove(0)), None);
    assert_eq!(events[2].iter().map(|event| short(event)).collect::<Vec<_>>(), ["put a@2", "put a@3"]);
}

/// W01, W09
#[test]
fn watcher_that_is_not_read_goes_back_to_history_without_a_gap() {
    let (mut r, mut hub) = (Replica::new(), WatchHub::with_pending_bytes_max(100));
    let (slow, _) = hub.create(&r.machine, options("a", "", 0));
    let expected: Vec<String> = (2..50).map(|revision| format!("put a@{revision}")).collect();
    for _ in &expected {
        assert_eq!(put(&mut r, &mut hub, "a", "x"), [slow]);
    }
    assert_eq!(hub.overflows(), 1);
    assert_eq!(drain(&mut hub, slow, &r.machine), expected);
    assert_eq!(put(&mut r, &mut hub, "a", "x"), [slow]);
    assert_eq!(drain(&mut hub, slow, &r.machine), ["put a@50"], "synced again");
    for _ in 0..10 {
        put(&mut r, &mut hub, "a", "x");
    }
    let applied = r.apply(&Command::Compact { revision: 55 });
    hub.publish(&applied.events);
    assert_eq!(drain(&mut hub, slow, &r.machine), ["compacted 55"], "told, not silent");
}

/// W11, W02: a replica that was replaced from a Raft snapshot.
#[test]
fn watchers_read_on_after_the_machine_was_replaced() {
    let (mut r, mut hub) = (Replica::new(), WatchHub::new());
    let (queued, _) = hub.create(&r.machine, options("a", "", 0));
    let (quiet, _) = hub.create(&r.machine, options("q", "", 0));
    let (future, _) = hub.create(&r.machine, options("a", "", 9));
    put(&mut r, &mut hub, "a", "2");
    put(&mut r, &mut hub, "b", "3");
    let mut ahead = r.clone();
    for value in 4..=6 {
        ahead.put("a", &value.to_string());
    }
    ahead.compact(4);
    let restored = Machine::from_image(&ahead.machine.image()).unwrap();
    assert_eq!(hub.restored(&restored), [queued, quiet, future]);
    assert_eq!(drain(&mut hub, queued, &restored), ["put a@2", "put a@4", "put a@5", "put a@6"]);
    assert_eq!(drain(&mut hub, quiet, &restored), [""; 0]);
    assert_eq!(drain(&mut hub, future, &restored), [""; 0]);
    assert_eq!(hub.poll(quiet, &restored, 1), WatchPoll::Idle { synced_to: 6 });
    assert_eq!(put(&mut ahead, &mut hub, "a", "7"), [queued]);
    assert_eq!(drain(&mut hub, queued, &ahead.machine), ["put a@7"]);
}

#[test]
fn history_of_a_few_keys_equals_the_walk_over_all_changes() {
    let mut r = Replica::new();
    for round in 0..2_000 {
        r.put(&format!("k{:03}", round * 7 % 500), &round.to_string());
        if round % 100 == 0 {
            let ops = ["k003", "k001", "k002"].map(|key| TxnOp::Put(put_op(key, "txn")));
            r.run(all_of(ops.to_vec())).unwrap();
        }
    }
    for (key, end) in [("k001", ""), ("k001", "k004"), ("k1", "k2"), ("\0", "\0"), ("x", "y")] {
        for (from, to, max) in [(1, 5_000, 10_000), (500, 1_500, 10_000), (1, 5_000, 5)] {
            let found = r.machine.events(key.as_bytes(), end.as_bytes(), from, to, max).unwrap();
            let mut expected: Vec<_> = r
                .events
                .iter()
                .filter(|event| (from..=to).contains(&event.kv.mod_revision))
                .filter(|event| match end {
                    "" => event.kv.key == key,
                    "\0" => true,
                    _ => (key.as_bytes()..end.as_bytes()).contains(&&event.kv.key[..]),
                })
                .collect();
            if let Some(last) = expected.get(max - 1).map(|event| event.kv.mod_revision) {
                expected.retain(|event| event.kv.mod_revision <= last);
            }
            assert!(found.iter().map(|event| &***event).eq(expected), "{key} {end} {from} {to} {max}");
        }
    }
}
