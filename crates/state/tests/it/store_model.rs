//! Random commands and reads: the machine against the naive model.

use bytes::Bytes;
use proptest::prelude::*;
use weft_state::{
    command::{
        Command, Compare, CompareOp, CompareTarget, DeleteRange, Event, Put, Quota, Range, SortOrder,
        SortTarget, Txn, TxnOp,
    },
    machine::Machine,
};

use crate::{
    model::{Model, contains, used_bytes},
    support::Replica,
};

pub fn key() -> impl Strategy<Value = Bytes> {
    prop::sample::select(vec!["a", "ab", "b", "b\u{0}", "c", "d", "weft", "z"]).prop_map(Bytes::from)
}

/// Mostly good ones; some empty or reserved.
fn any_key() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        20 => key(),
        1 => Just(Bytes::new()),
        1 => Just(Bytes::from("weft/x")),
    ]
}

pub fn range_end() -> impl Strategy<Value = Bytes> {
    prop::sample::select(vec!["", "", "\0", "b", "c", "weft/x", "zz"]).prop_map(Bytes::from)
}

fn value() -> impl Strategy<Value = Bytes> {
    prop::sample::select(vec!["", "1", "2", "a longer value"]).prop_map(Bytes::from)
}

fn lease() -> impl Strategy<Value = i64> {
    prop_oneof![3 => Just(0), 2 => 1..4i64]
}

fn put() -> impl Strategy<Value = Put> {
    let rarely = || prop::bool::weighted(0.1);
    (any_key(), value(), lease(), any::<bool>(), rarely(), rarely()).prop_map(
        |(key, value, lease, prev_kv, ignore_value, ignore_lease)| Put {
            key,
            value,
            lease,
            prev_kv,
            ignore_value,
            ignore_lease,
        },
    )
}

fn delete() -> impl Strategy<Value = DeleteRange> {
    (any_key(), range_end(), any::<bool>()).prop_map(|(key, range_end, prev_kv)| DeleteRange {
        key,
        range_end,
        prev_kv,
    })
}

fn read() -> impl Strategy<Value = Range> {
    let target = prop::sample::select(vec![
        SortTarget::Key,
        SortTarget::Version,
        SortTarget::Create,
        SortTarget::Mod,
        SortTarget::Value,
    ]);
    let order = prop::sample::select(vec![SortOrder::Ascend, SortOrder::Descend]);
    let bound = || prop_oneof![4 => Just(0), 1 => 0..30i64];
    (
        (key(), range_end(), -1..4i64, prop_oneof![2 => Just(0), 1 => 0..40i64]),
        prop::option::of((target, order)),
        (prop::bool::weighted(0.1), prop::bool::weighted(0.1)),
        (bound(), bound(), bound(), bound()),
    )
        .prop_map(|((key, range_end, limit, revision), sort, (keys_only, count_only), bounds)| Range {
            key,
            range_end,
            limit,
            revision,
            sort,
            keys_only,
            count_only,
            min_mod_revision: bounds.0,
            max_mod_revision: bounds.1,
            min_create_revision: bounds.2,
            max_create_revision: bounds.3,
        })
}

fn compare() -> impl Strategy<Value = Compare> {
    let op = prop::sample::select(vec![
        CompareOp::Equal,
        CompareOp::NotEqual,
        CompareOp::Greater,
        CompareOp::Less,
    ]);
    let target = prop_oneof![
        (0..4i64).prop_map(CompareTarget::Version),
        (0..20i64).prop_map(CompareTarget::CreateRevision),
        (0..20i64).prop_map(CompareTarget::ModRevision),
        value().prop_map(CompareTarget::Value),
        (0..4i64).prop_map(CompareTarget::Lease),
    ];
    (key(), range_end(), op, target).prop_map(|(key, range_end, op, target)| Compare {
        key,
        range_end,
        op,
        target,
    })
}

fn txn() -> impl Strategy<Value = Txn> {
    let plain = prop_oneof![
        4 => put().prop_map(TxnOp::Put),
        1 => delete().prop_map(TxnOp::DeleteRange),
        2 => read().prop_map(TxnOp::Range),
    ];
    let of =
        |op: BoxedStrategy<TxnOp>| {
            let ops = move || prop::collection::vec(op.clone(), 0..4);
            (prop::collection::vec(compare(), 0..2), ops(), ops())
                .prop_map(|(compare, success, failure)| Txn { compare, success, failure })
        };
    let nested = of(plain.clone().boxed()).prop_map(TxnOp::Txn);
    of(prop_oneof![5 => plain, 1 => nested].boxed())
}

pub fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        8 => put().prop_map(Command::Put),
        3 => delete().prop_map(Command::DeleteRange),
        5 => txn().prop_map(Command::Txn),
        2 => (1..4i64).prop_map(|id| Command::LeaseGrant { id, ttl_secs: 10 }),
        1 => (1..4i64).prop_map(|id| Command::LeaseRevoke { id }),
        1 => (1..40i64).prop_map(|revision| Command::Compact { revision }),
        1 => set_quota(),
    ]
}

fn set_quota() -> impl Strategy<Value = Command> {
    let prefix = prop::sample::select(vec!["", "a", "ab", "b", "w"]).prop_map(Bytes::from);
    let quota = prop::option::weighted(0.8, (0..40u64, 0..60u64));
    (prefix, quota).prop_map(|(prefix, quota)| Command::SetQuota {
        prefix,
        quota: quota.map(|(soft_bytes, hard_bytes)| Quota { soft_bytes, hard_bytes }),
    })
}

/// Everything a reader can find, at the revisions that can be read.
fn assert_equal_content(replica: &Replica, model: &Model) -> Result<(), TestCaseError> {
    let machine = &replica.machine;
    prop_assert_eq!(machine.revision(), model.revision());
    prop_assert_eq!(machine.compacted(), model.compacted);
    prop_assert_eq!(machine.key_count(), model.now().len() as u64);
    for (revision, state) in model.states.range(model.compacted.max(1)..) {
        let all = Range {
            key: Bytes::from("\0"),
            range_end: Bytes::from("\0"),
            revision: *revision,
            ..Range::default()
        };
        let found = machine.range(&all).unwrap().kvs;
        prop_assert!(found.iter().eq(state.values()), "at {}", revision);
    }
    for id in &model.leases {
        let keys: Vec<_> =
            model.now().values().filter(|kv| kv.lease == *id).map(|kv| kv.key.clone()).collect();
        prop_assert_eq!(machine.lease(*id).map(|lease| lease.keys), Some(keys));
    }
    prop_assert_eq!(machine.leases().len(), model.leases.len());
    let quotas: Vec<_> = model
        .quotas
        .iter()
        .map(|(prefix, quota)| (prefix.clone(), *quota, used_bytes(model.now(), prefix)))
        .collect();
    let found: Vec<_> =
        machine.quotas().into_iter().map(|view| (view.prefix, view.quota, view.used_bytes)).collect();
    prop_assert_eq!(found, quotas);
    Ok(())
}

/// P11: what a cursor answers in chunks is what the range answers at once.
fn assert_equal_chunks(machine: &Machine, model: &Model, read: &Range) -> Result<(), TestCaseError> {
    let read = Range { sort: None, ..read.clone() };
    let Ok(expected) = model.range(&read) else {
        prop_assert!(machine.range_cursor(&read).is_err());
        return Ok(());
    };
    for (keys_max, bytes_max) in [(9, 1), (9, 60), (2, 10_000), (9, 10_000)] {
        let mut cursor = machine.range_cursor(&read).unwrap();
        let mut kvs = Vec::new();
        while let Some(chunk) = machine.range_chunk(&mut cursor, keys_max, bytes_max).unwrap() {
            let most = if bytes_max == 1 { 1 } else { keys_max };
            prop_assert!(chunk.len() <= most);
            kvs.extend(chunk);
        }
        prop_assert_eq!(&kvs, &expected.kvs, "{:?}", read);
        prop_assert_eq!((cursor.count(), cursor.more()), (expected.count, expected.more));
    }
    Ok(())
}

fn assert_equal_history(
    machine: &Machine,
    model: &Model,
    key: &Bytes,
    range_end: &Bytes,
) -> Result<(), TestCaseError> {
    let from = model.compacted.max(1);
    let found = machine.events(key, range_end, from, machine.revision(), usize::MAX).unwrap();
    let expected = model
        .events
        .iter()
        .filter(|event| event.kv.mod_revision >= from && contains(key, range_end, &event.kv.key));
    // The value before a change of the compacted revision is not readable any more.
    let expected: Vec<Event> = expected
        .map(|event| {
            let prev_kv = event.prev_kv.clone().filter(|_| event.kv.mod_revision > model.compacted);
            Event { prev_kv, ..event.clone() }
        })
        .collect();
    prop_assert!(found.iter().map(|event| &***event).eq(&expected));
    if model.compacted > 1 {
        prop_assert!(machine.events(key, range_end, from - 1, from, 1).is_err());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// A02, A03, A04, A05, A08, A10, P01
    #[test]
    fn store_equals_the_naive_model(
        steps in prop::collection::vec((command(), read(), key(), range_end()), 1..50),
        scrubs in any::<bool>(),
    ) {
        let (mut replica, mut model) = (Replica::new(), Model::new());
        for (command, read, key, range_end) in steps {
            let before = (replica.machine.hash(), replica.machine.image());
            let applied = replica.apply(&command);
            match model.apply(&command) {
                Ok((response, events)) => {
                    prop_assert_eq!(applied.response, Ok(response), "{:?}", command);
                    prop_assert_eq!(&applied.events, &events, "{:?}", command);
                }
                Err(_) => {
                    prop_assert!(applied.response.is_err(), "{:?}", command);
                    prop_assert_eq!(replica.machine.hash(), before.0, "a refusal changes nothing");
                }
            }
            prop_assert_eq!(applied.revision, model.revision());
            if scrubs {
                replica.machine.scrub(1);
            }
            prop_assert_eq!(replica.machine.range(&read).ok(), model.range(&read).ok(), "{:?}", read);
            assert_equal_chunks(&replica.machine, &model, &read)?;
            assert_equal_history(&replica.machine, &model, &key, &range_end)?;
        }
        assert_equal_content(&replica, &model)?;
    }

    /// A08, A09: wherever a replica is restored from an image, it goes on like the others.
    #[test]
    fn restored_replica_goes_on_like_the_others(
        before in prop::collection::vec(command(), 0..40),
        after in prop::collection::vec(command(), 0..20),
        scrub in prop_oneof![0..20usize, Just(1_000)],
    ) {
        let mut replica = Replica::new();
        for command in &before {
            replica.apply(command);
        }
        let revision = replica.machine.revision();
        replica.apply(&Command::Compact { revision });
        let image = replica.machine.image();
        let mut restored = Replica { machine: Machine::from_image(&image).unwrap(), ..replica.clone() };
        replica.machine.scrub(scrub);
        prop_assert_eq!(replica.machine.image(), image, "scrubbing is not seen");
        for command in &after {
            prop_assert_eq!(replica.apply(command), restored.apply(command));
            prop_assert_eq!(replica.machine.hash(), restored.machine.hash());
        }
        prop_assert_eq!(replica.machine.image(), restored.machine.image());
        while replica.machine.scrub(1_000) {}
        while restored.machine.scrub(1_000) {}
        prop_assert_eq!(replica.machine.data_bytes(), restored.machine.data_bytes());
    }

    /// P19, A08, A10: an image is of the moment of its begin, whatever is done while it is written.
    #[test]
    fn image_of_a_busy_machine_equals_the_one_of_its_moment(
        before in prop::collection::vec(command(), 0..60),
        during in prop::collection::vec((command(), 0..3usize), 0..40),
        scrub in 0..30usize,
    ) {
        let mut replica = Replica::new();
        for command in &before {
            replica.apply(command);
        }
        let expected = replica.machine.image();
        let mut walk = replica.machine.begin_image();
        let (mut image, mut more) = (Vec::new(), true);
        for (command, steps) in &during {
            for _ in 0..*steps {
                more = more && replica.machine.image_step(&mut walk, &mut image).unwrap();
            }
            replica.apply(command);
            replica.machine.scrub(scrub);
        }
        while more {
            more = replica.machine.image_step(&mut walk, &mut image).unwrap();
        }
        prop_assert_eq!(image, expected);
        drop(walk);
        while replica.machine.scrub(1_000) {}
        prop_assert_eq!(replica.machine.history_held().backlog, 0);
    }
}
