//! Random watchers, polled at random, against the full list of events.

use std::collections::BTreeMap;

use proptest::prelude::*;
use weft_state::{
    command::{Command, Event, EventKind, Revision},
    machine::Machine,
    watch::{WatchHub, WatchOptions, WatchPoll, WatchRange, WatcherId},
};

use crate::{
    model::contains,
    store_model::{command, key, range_end},
    support::Replica,
};

#[derive(Debug, Clone)]
enum Step {
    /// Applied one by one, published as one batch.
    Apply(Vec<Command>),
    Create(WatchOptions),
    Poll {
        which: usize,
        max_bytes: usize,
    },
    Cancel(usize),
    CompactToCurrent,
    /// Apply without publishing, then replace the machine, as when a Raft snapshot arrives.
    Restore(Vec<Command>),
}

fn options() -> impl Strategy<Value = WatchOptions> {
    let start = prop_oneof![3 => Just(0), 2 => 1..20i64, 1 => 20..60i64];
    (key(), range_end(), start, any::<bool>(), prop::bool::weighted(0.2), prop::bool::weighted(0.2)).prop_map(
        |(key, range_end, start, prev_kv, no_put, no_delete)| WatchOptions {
            range: WatchRange { key, range_end },
            start,
            prev_kv,
            no_put,
            no_delete,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let commands = || prop::collection::vec(command(), 1..5);
    prop_oneof![
        6 => commands().prop_map(Step::Apply),
        3 => options().prop_map(Step::Create),
        6 => (0..20usize, prop_oneof![Just(0), 1..200usize, Just(1 << 20)])
            .prop_map(|(which, max_bytes)| Step::Poll { which, max_bytes }),
        1 => (0..20usize).prop_map(Step::Cancel),
        1 => Just(Step::CompactToCurrent),
        1 => commands().prop_map(Step::Restore),
    ]
}

/// What one watcher was told so far.
#[derive(Debug)]
struct Told {
    options: WatchOptions,
    first: Revision,
    events: Vec<Event>,
    ended: bool,
}

impl Told {
    /// The events that the watcher should get, of all that ever happened.
    fn wanted<'a>(&'a self, all: &'a [Event]) -> impl Iterator<Item = Event> + 'a {
        let WatchOptions { range, prev_kv, no_put, no_delete, .. } = &self.options;
        all.iter()
            .filter(|event| event.kv.mod_revision >= self.first)
            .filter(|event| contains(&range.key, &range.range_end, &event.kv.key))
            .filter(|event| !(if event.kind == EventKind::Put { *no_put } else { *no_delete }))
            .map(|event| Event { prev_kv: event.prev_kv.clone().filter(|_| *prev_kv), ..event.clone() })
    }
}

/// Polls once, as a driver does; true if there may be more.
fn poll(
    hub: &mut WatchHub,
    id: WatcherId,
    told: &mut Told,
    replica: &Replica,
    max_bytes: usize,
) -> Result<bool, TestCaseError> {
    let answer = hub.take(id, max_bytes).unwrap_or_else(|| hub.poll(id, &replica.machine, max_bytes));
    match answer {
        WatchPoll::Events { revision, events, more } => {
            prop_assert_eq!(events.last().map(|event| event.kv.mod_revision), Some(revision));
            told.events.extend(events.iter().map(|event| {
                let mut event = Event::clone(event);
                // The value before a change of the compacted revision may be gone.
                if event.prev_kv.is_none() && event.kv.mod_revision == replica.machine.compacted() {
                    let was = replica.events.iter().find(|was| was.kv == event.kv);
                    event.prev_kv = was.and_then(|was| was.prev_kv.clone()).filter(|_| told.options.prev_kv);
                }
                event
            }));
            // Exactly what should have come up to this revision: in order, no gap, whole revisions.
            let wanted: Vec<_> =
                told.wanted(&replica.events).take_while(|event| event.kv.mod_revision <= revision).collect();
            prop_assert_eq!(&told.events, &wanted);
            if !more {
                let rest = told.wanted(&replica.events).count() - told.events.len();
                prop_assert_eq!(rest, 0, "nobody will be named for it");
            }
            Ok(more)
        }
        WatchPoll::Idle { synced_to } => {
            prop_assert!(synced_to <= replica.machine.revision());
            // W05: what is said to be synced was told.
            let wanted = told.wanted(&replica.events).filter(|event| event.kv.mod_revision <= synced_to);
            prop_assert_eq!(told.events.len(), wanted.count());
            Ok(false)
        }
        WatchPoll::Compacted { oldest } => {
            // W09: said only if the next revision is in fact gone.
            let last = told.events.last().map_or(told.first, |event| event.kv.mod_revision + 1);
            prop_assert!(last < oldest && oldest == replica.machine.compacted());
            told.ended = true;
            Ok(false)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// W01 to W10, W12
    #[test]
    fn every_watcher_gets_every_event_once_in_order_or_is_told_why_not(
        steps in prop::collection::vec(step(), 1..60),
        pending_bytes_max in prop_oneof![Just(0), 30..400usize, Just(1 << 20)],
    ) {
        let mut replica = Replica::new();
        let mut hub = WatchHub::with_pending_bytes_max(pending_bytes_max);
        let mut watchers: BTreeMap<WatcherId, Told> = BTreeMap::new();
        for step in steps {
            let nth = |which: usize| watchers.keys().nth(which % watchers.len().max(1)).copied();
            match step {
                Step::Apply(commands) => {
                    let seen = replica.events.len();
                    for command in &commands {
                        replica.apply(command);
                    }
                    let named = hub.publish(&replica.events[seen..]);
                    let mut unique = named.clone();
                    unique.sort_unstable();
                    unique.dedup();
                    prop_assert_eq!(unique.len(), named.len(), "each is named once");
                    for (id, told) in &watchers {
                        let concerned = told.wanted(&replica.events[seen..]).next().is_some();
                        prop_assert!(!concerned || told.ended || named.contains(id), "L04: lost wake-up");
                    }
                }
                Step::Create(options) => {
                    let (id, current) = hub.create(&replica.machine, options.clone());
                    prop_assert_eq!(current, replica.machine.revision());
                    let first = if options.start <= 0 { current + 1 } else { options.start };
                    let told = Told { options, first, events: vec![], ended: false };
                    prop_assert!(watchers.insert(id, told).is_none());
                }
                Step::Poll { which, max_bytes } => if let Some(id) = nth(which) {
                    let told = watchers.get_mut(&id).unwrap();
                    if !told.ended {
                        poll(&mut hub, id, told, &replica, max_bytes)?;
                    }
                }
                Step::Cancel(which) => if let Some(id) = nth(which) {
                    let told = watchers.remove(&id).unwrap();
                    prop_assert_eq!(hub.cancel(id), !told.ended);
                }
                Step::CompactToCurrent => {
                    let revision = replica.machine.revision();
                    replica.apply(&Command::Compact { revision });
                }
                Step::Restore(commands) => {
                    for command in &commands {
                        replica.apply(command);
                    }
                    replica.machine = Machine::from_image(&replica.machine.image()).unwrap();
                    hub.restored(&replica.machine);
                }
            }
        }
        for (id, told) in &mut watchers {
            while !told.ended && poll(&mut hub, *id, told, &replica, 100)? {}
            if !told.ended {
                let wanted: Vec<_> = told.wanted(&replica.events).collect();
                prop_assert_eq!(&told.events, &wanted);
            }
        }
        prop_assert_eq!(hub.len(), watchers.values().filter(|told| !told.ended).count());
    }
}
