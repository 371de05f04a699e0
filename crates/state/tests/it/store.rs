//! etcd's rules, one by one.

use weft_state::{
    command::{
        Command, Compare, CompareOp, CompareTarget, DeleteRange, Put, Quota, Range, Response, SortOrder,
        SortTarget, Txn, TxnOp, TxnOpResponse,
    },
    error::StoreError,
    machine::Machine,
};

use crate::support::{Replica, all_of, b, delete, delete_op, put, put_op, range, short, text};

/// W08
#[test]
fn revisions_start_at_one_and_grow_by_one_with_each_effect() {
    let mut r = Replica::new();
    assert_eq!(r.machine.revision(), 1);
    assert_eq!(r.put("a", "1"), 2);
    assert_eq!(r.delete("b", ""), 0);
    assert_eq!(r.machine.revision(), 2, "nothing was deleted");
    r.run(all_of(vec![TxnOp::Range(range("a", ""))])).unwrap();
    assert_eq!(r.machine.revision(), 2, "nothing was written");
    r.run(all_of(vec![TxnOp::Put(put_op("b", "1")), TxnOp::Put(put_op("c", "1"))])).unwrap();
    assert_eq!(r.machine.revision(), 3, "one for the whole transaction");
    assert_eq!(r.delete("a", "\0"), 3);
    assert_eq!(r.machine.revision(), 4, "one for the whole range");
    assert_eq!(r.machine.key_count(), 0);
}

#[test]
fn key_that_is_created_anew_begins_a_new_life() {
    let mut r = Replica::new();
    r.put("a", "1");
    r.put("a", "2");
    let kv = r.kv("a").unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (2, 3, 2));
    r.delete("a", "");
    r.put("a", "3");
    let kv = r.kv("a").unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (5, 5, 1));
}

#[test]
fn put_keeps_value_or_lease_if_asked_and_refuses_contradictions() {
    let mut r = Replica::new();
    let ignoring =
        |key: &str, ignore_value, ignore_lease| Put { ignore_value, ignore_lease, ..put_op(key, "") };
    assert_eq!(r.run(Command::Put(ignoring("a", true, false))), Err(StoreError::KeyNotFound));
    assert_eq!(r.run(Command::Put(ignoring("a", false, true))), Err(StoreError::KeyNotFound));
    r.lease(7);
    r.put_leased("a", "1", 7).unwrap();
    r.run(Command::Put(Put { value: b("2"), ..ignoring("a", false, true) })).unwrap();
    assert_eq!((r.value("a").unwrap().as_str(), r.kv("a").unwrap().lease), ("2", 7));
    r.run(Command::Put(ignoring("a", true, false))).unwrap();
    assert_eq!((r.value("a").unwrap().as_str(), r.kv("a").unwrap().lease), ("2", 0));
    assert_eq!(
        r.run(Command::Put(Put { value: b("3"), ..ignoring("a", true, false) })),
        Err(StoreError::ValueProvided)
    );
    assert_eq!(
        r.run(Command::Put(Put { lease: 7, ..ignoring("a", false, true) })),
        Err(StoreError::LeaseProvided)
    );
    assert_eq!(r.put_leased("a", "3", 8), Err(StoreError::LeaseNotFound { id: 8 }));
    assert_eq!(r.run(put("", "1")), Err(StoreError::EmptyKey));
    let long = "k".repeat((1 << 20) + 1);
    assert_eq!(r.run(put(&long, "1")), Err(StoreError::KeyTooLong { seen: 1_048_577, limit: 1_048_576 }));
}

#[test]
fn ranges_follow_etcds_conventions() {
    let mut r = Replica::new();
    for key in ["a", "a/1", "a/2", "b", "weft", "z"] {
        r.put(key, key);
    }
    let keys = |key: &str, end: &str| -> Vec<String> {
        r.range(key, end).kvs.iter().map(|kv| text(&kv.key)).collect()
    };
    assert_eq!(keys("a", ""), ["a"]);
    assert_eq!(keys("a/", "a0"), ["a/1", "a/2"], "prefix");
    assert_eq!(keys("b", "\0"), ["b", "weft", "z"], "from");
    assert_eq!(keys("\0", "\0").len(), 6, "everything");
    assert_eq!(keys("z", "a"), [""; 0], "inverted");
    assert_eq!(keys("a", "a"), [""; 0], "empty");
    assert_eq!(r.machine.range(&range("", "\0")), Err(StoreError::EmptyKey));
}

#[test]
fn limit_cuts_after_sorting_and_count_is_of_all() {
    let mut r = Replica::new();
    for (key, value) in [("a", "3"), ("b", "1"), ("c", "2")] {
        r.put(key, value);
    }
    r.put("a", "3");
    let ask = |target, order, limit| {
        let answer =
            r.machine.range(&Range { sort: Some((target, order)), limit, ..range("\0", "\0") }).unwrap();
        let keys: String = answer.kvs.iter().map(|kv| text(&kv.key)).collect();
        (keys, answer.more, answer.count)
    };
    use {SortOrder::*, SortTarget::*};
    assert_eq!(ask(Key, Ascend, 2), ("ab".into(), true, 3));
    assert_eq!(ask(Key, Descend, 2), ("cb".into(), true, 3));
    assert_eq!(ask(Value, Ascend, 0), ("bca".into(), false, 3));
    assert_eq!(ask(Mod, Ascend, 3), ("bca".into(), false, 3));
    assert_eq!(ask(Create, Descend, 1), ("c".into(), true, 3));
    assert_eq!(ask(Version, Descend, 1), ("a".into(), true, 3));
    let count = r.machine.range(&Range { count_only: true, ..range("\0", "\0") }).unwrap();
    assert_eq!((count.kvs.len(), count.count), (0, 3));
    let keys = r.machine.range(&Range { keys_only: true, ..range("a", "") }).unwrap();
    assert!(keys.kvs[0].value.is_empty() && keys.kvs[0].version == 2);
    let newer = r.machine.range(&Range { min_mod_revision: 4, ..range("\0", "\0") }).unwrap();
    assert_eq!((newer.kvs.len(), newer.count), (2, 3), "count is before the filters");
}

/// A10
#[test]
fn old_revisions_are_read_whole_until_compacted_and_refused_from_then_on() {
    let mut r = Replica::new();
    r.put("a", "1");
    r.put("b", "1");
    r.put("a", "2");
    r.delete("b", "");
    assert_eq!(r.range_at("\0", "\0", 3), Ok(vec!["1".into(), "1".into()]));
    assert_eq!(r.range_at("\0", "\0", 4), Ok(vec!["2".into(), "1".into()]));
    assert_eq!(r.range_at("\0", "\0", 6), Err(StoreError::FutureRevision { requested: 6, current: 5 }));
    r.compact(4);
    assert_eq!(r.range_at("\0", "\0", 3), Err(StoreError::Compacted { requested: 3, oldest: 4 }));
    assert_eq!(
        r.range_at("\0", "\0", 4),
        Ok(vec!["2".into(), "1".into()]),
        "the compacted one itself is whole"
    );
    let refused = [
        (4, StoreError::Compacted { requested: 4, oldest: 4 }),
        (9, StoreError::FutureRevision { requested: 9, current: 5 }),
    ];
    for (revision, error) in refused {
        assert_eq!(r.run(Command::Compact { revision }), Err(error));
    }
    assert_eq!(r.machine.compacted(), 4);
}

#[test]
fn memory_of_compacted_history_is_given_back_step_by_step() {
    let mut r = Replica::new();
    for round in 0..1_000 {
        r.put(&format!("k{}", round % 10), "0123456789");
    }
    r.delete("k0", "");
    let before = r.machine.data_bytes();
    r.compact(r.machine.revision());
    let after_one = r.machine.data_bytes();
    r.put("x", "");
    let after_two = r.machine.data_bytes();
    assert!(after_two < after_one && after_one < before, "{before} to {after_one} to {after_two}");
    assert!(after_two > before * 9 / 10, "by bounded steps: {before} to {after_two}");
    while r.machine.scrub(100) {}
    // Of nine keys one version each; of k0, deleted by the last revision, the name alone.
    assert_eq!(r.machine.data_bytes(), 9 * 12 + 2 + 1);
    assert_eq!(r.machine.key_count(), 10);
}

/// P01: what an operator does whose disk is full.
#[test]
fn deleting_all_and_compacting_to_that_frees_the_values_at_once() {
    let mut r = Replica::new();
    for round in 0..100 {
        r.put(&format!("k{round}"), &"v".repeat(10_000));
    }
    r.delete("k", "l");
    r.compact(r.machine.revision());
    while r.machine.scrub(100) {}
    assert!(r.machine.data_bytes() < 1_000, "{} bytes", r.machine.data_bytes());
    let events = r.machine.events(b"k", b"l", r.machine.revision(), r.machine.revision(), 1_000).unwrap();
    assert_eq!(events.len(), 100, "a watch from there is told of the deletes");
    assert!(events.iter().all(|event| event.prev_kv.is_none()));
}

#[test]
fn transaction_takes_the_branch_that_its_compares_choose() {
    let mut r = Replica::new();
    r.put("a", "1");
    let mut holds = |key: &str, end: &str, op, target| {
        let compare = vec![Compare { key: b(key), range_end: b(end), op, target }];
        match r.run(Command::Txn(Txn { compare, ..Txn::default() })).unwrap() {
            Response::Txn(answer) => answer.succeeded,
            other => panic!("{other:?}"),
        }
    };
    use {CompareOp::*, CompareTarget::*};
    assert!(holds("a", "", Equal, Value(b("1"))));
    assert!(holds("a", "", Less, Value(b("2"))));
    assert!(!holds("a", "", Greater, ModRevision(2)));
    assert!(holds("a", "", NotEqual, Version(2)));
    assert!(holds("x", "", Equal, CreateRevision(0)), "a missing key has zeros");
    assert!(holds("x", "", Equal, Lease(0)));
    for op in [Equal, NotEqual, Less, Greater] {
        assert!(!holds("x", "", op, Value(b(""))), "a missing key's value compares with nothing");
    }
    assert!(holds("a", "\0", Greater, Version(0)), "all of the range");
    assert!(holds("x", "z", Equal, Version(0)), "an empty range is like a missing key");
    assert!(!holds("x", "z", Equal, Value(b(""))));
}

#[test]
fn operations_of_a_transaction_see_earlier_ones_and_share_one_revision() {
    let mut r = Replica::new();
    r.put("a", "old");
    let nested = Txn {
        compare: vec![Compare {
            key: b("a"),
            range_end: b(""),
            op: CompareOp::Equal,
            target: CompareTarget::Value(b("old")),
        }],
        success: vec![TxnOp::Put(put_op("b", "1")), TxnOp::Range(range("a", "\0"))],
        failure: vec![],
    };
    let applied = r.apply(&all_of(vec![
        TxnOp::Put(put_op("a", "new")),
        TxnOp::Range(range("a", "")),
        TxnOp::Range(Range { revision: 2, ..range("a", "") }),
        TxnOp::Txn(nested),
        TxnOp::DeleteRange(delete_op("c", "\0")),
    ]));
    let Ok(Response::Txn(answer)) = applied.response else { panic!() };
    let [TxnOpResponse::Put { .. }, TxnOpResponse::Range(now), TxnOpResponse::Range(before), nested, _] =
        &answer.responses[..]
    else {
        panic!("{answer:?}")
    };
    assert_eq!((&now.kvs[0].value[..], now.kvs[0].mod_revision), (&b"new"[..], 3));
    assert_eq!(&before.kvs[0].value[..], b"old", "a revision that is asked for is read as it was");
    let TxnOpResponse::Txn(nested) = nested else { panic!() };
    assert!(nested.succeeded, "conditions are judged before the first operation, as in etcd");
    assert_eq!(applied.events.iter().map(short).collect::<Vec<_>>(), ["put a@3", "put b@3"]);
}

/// A03, A05: nothing of a refused transaction is left.
#[test]
fn transaction_that_fails_in_the_middle_leaves_no_trace() {
    let mut r = Replica::new();
    r.lease(1);
    r.lease(2);
    r.put_leased("a", "1", 1).unwrap();
    r.put("b", "1");
    let (image, hash) = (r.machine.image(), r.machine.hash());
    let command = all_of(vec![
        TxnOp::Put(Put { lease: 2, ..put_op("a", "2") }),
        TxnOp::Put(Put { lease: 2, ..put_op("new", "2") }),
        TxnOp::DeleteRange(DeleteRange { prev_kv: true, ..delete_op("b", "") }),
        TxnOp::Put(Put { lease: 99, ..put_op("c", "2") }),
    ]);
    let applied = r.apply(&command);
    assert_eq!(applied.response, Err(StoreError::LeaseNotFound { id: 99 }));
    assert_eq!((applied.revision, applied.events.len(), r.machine.hash()), (3, 0, hash));
    assert_eq!(r.machine.lease(2).unwrap().keys.len(), 0);
    assert_eq!(r.machine.lease(1).unwrap().keys, ["a"]);
    let mut untouched =
        Replica { machine: weft_state::machine::Machine::from_image(&image).unwrap(), ..r.clone() };
    untouched.index -= 1;
    untouched.run(Command::Noop).unwrap();
    assert_eq!(untouched.machine.image(), r.machine.image(), "but for the applied index");
}

#[test]
fn malformed_transactions_are_refused_before_they_run() {
    let mut r = Replica::new();
    r.put("a", "1");
    let put = |key: &str| TxnOp::Put(put_op(key, "2"));
    let delete = |key: &str, end: &str| TxnOp::DeleteRange(delete_op(key, end));
    let nested = |success, failure| TxnOp::Txn(Txn { compare: vec![], success, failure });
    for twice in [
        vec![put("a"), put("a")],
        vec![put("a"), delete("a", "")],
        vec![delete("a", "c"), put("b")],
        vec![delete("a", "\0"), nested(vec![put("b")], vec![])],
        vec![nested(vec![], vec![put("b")]), put("b")],
        vec![nested(vec![put("b")], vec![]), nested(vec![delete("b", "")], vec![])],
    ] {
        assert_eq!(r.run(all_of(twice.clone())), Err(StoreError::DuplicateKey), "{twice:?}");
        let never_run = Txn { failure: twice, ..Txn::default() };
        assert_eq!(r.run(Command::Txn(never_run)), Err(StoreError::DuplicateKey));
    }
    for fine in [
        vec![nested(vec![put("b")], vec![put("b")])],
        vec![nested(vec![put("b")], vec![delete("b", "")])],
        vec![delete("b", ""), delete("a", "c")],
        vec![put("c"), delete("a", "c")],
    ] {
        r.run(all_of(fine)).unwrap();
    }
    let many = (0..129).map(|n| put(&format!("k{n}"))).collect::<Vec<_>>();
    assert_eq!(r.run(all_of(many.clone())), Err(StoreError::TooManyOps { seen: 129, limit: 128 }));
    let shared = vec![nested(many[..128].to_vec(), vec![])];
    assert_eq!(r.run(all_of(shared)), Err(StoreError::TooManyOps { seen: 129, limit: 128 }));
    r.run(all_of(many[..128].to_vec())).unwrap();
    assert_eq!(r.run(all_of(vec![put("")])), Err(StoreError::EmptyKey));
}

#[test]
fn clients_read_keys_under_weft_and_cannot_write_them() {
    let mut r = Replica::new();
    r.lease(1);
    let grant = r.lock("deploy", 1);
    let holder = text(&grant.key);
    assert!(holder.starts_with("weft/semaphore/deploy/holder/"));
    assert!(r.value(&holder).unwrap().contains(r#""permits":1"#));
    let revision = r.machine.revision();
    for refused in [
        put("weft/x", "1"),
        put(&holder, "1"),
        delete(&holder, ""),
        delete("weft/", "weft0"),
        all_of(vec![TxnOp::Put(put_op("weft/x", "1"))]),
        Command::Txn(Txn { failure: vec![TxnOp::DeleteRange(delete_op(&holder, ""))], ..Txn::default() }),
    ] {
        assert_eq!(r.run(refused), Err(StoreError::ReservedKey));
    }
    assert_eq!(r.machine.revision(), revision);
    r.put("weft", "1");
    r.put("weft0", "1");
    assert_eq!(r.delete("\0", "\0"), 2, "a range that spans them skips them");
    assert_eq!(r.lineup("deploy").0, [1]);
}

#[test]
#[should_panic(expected = "applied once and in order")]
fn applying_an_index_twice_is_a_broken_invariant() {
    let mut r = Replica::new();
    r.put("a", "1");
    r.index = 0;
    r.put("a", "1");
}

/// P11, A10: a range that is read in chunks is of one revision although writes go on, holds a chunk at a time,
/// and is refused once its revision is compacted.
#[test]
fn chunks_of_a_cursor_are_of_one_revision() {
    let mut r = Replica::new();
    for n in 0..3_000 {
        r.put(&format!("k{n:04}"), "before");
    }
    r.delete("k1000", "k1500");
    let mut cursor = r.machine.range_cursor(&range("k", "l")).unwrap();
    assert_eq!((cursor.count(), cursor.revision()), (2_500, r.machine.revision()));
    let (mut seen, mut chunks) = (0, 0);
    while let Some(chunk) = r.machine.range_chunk(&mut cursor, usize::MAX, 4_000).unwrap() {
        assert!(chunk.iter().all(|kv| kv.value == "before"));
        assert!(chunk.len() <= 100);
        seen += chunk.len();
        chunks += 1;
        r.put(&format!("k{:04}", 2_900 - chunks), "after");
        r.put(&format!("k9{chunks}"), "new");
        r.delete(&format!("k{:04}", 2_500 - chunks), "");
    }
    assert_eq!(seen, 2_500);

    let mut cursor = r.machine.range_cursor(&range("k", "l")).unwrap();
    r.machine.range_chunk(&mut cursor, usize::MAX, 100).unwrap().unwrap();
    r.put("k", "1");
    r.compact(r.machine.revision());
    let refused = r.machine.range_chunk(&mut cursor, usize::MAX, 100).unwrap_err();
    assert!(matches!(refused, StoreError::Compacted { .. }), "{refused}");
}

#[test]
fn limit_of_a_sorted_range_keeps_the_first_ones_in_order() {
    let mut r = Replica::new();
    for n in 0..500 {
        r.put(&format!("k{n:03}"), &format!("{}", n * 7 % 10));
    }
    let sorted = |order, limit| {
        let sort = Some((SortTarget::Value, order));
        let answer = r.machine.range(&Range { sort, limit, ..range("k", "l") }).unwrap();
        (answer.kvs.iter().map(|kv| text(&kv.key)).collect::<Vec<_>>(), answer.more, answer.count)
    };
    for order in [SortOrder::Ascend, SortOrder::Descend] {
        let (all, more, _) = sorted(order, 0);
        assert!(!more);
        for limit in [1, 3, 49, 50, 51, 499, 500] {
            let (first, more, count) = sorted(order, limit);
            assert_eq!(first, all[..limit as usize]);
            assert_eq!((more, count), (limit < 500, 500));
        }
    }
}

/// P01: what frees space is never refused, and the quota is free again by itself.
#[test]
fn quota_that_is_full_refuses_growth_only_and_clears_itself() {
    let mut r = Replica::new();
    r.lease(1);
    let set = |soft_bytes, hard_bytes| Command::SetQuota {
        prefix: b("app/"),
        quota: Some(Quota { soft_bytes, hard_bytes }),
    };
    r.put("app/old", "1234");
    r.run(set(20, 30)).unwrap();
    assert_eq!(r.machine.quotas()[0].used_bytes, 11, "what is there already counts");
    r.put_leased("app/b", "12345678", 1).unwrap();
    let before = (r.machine.hash(), r.machine.revision());
    let refused = r.run(put("app/c", "12")).unwrap_err();
    let expected =
        StoreError::SpaceExceeded { prefix: "app/".into(), used_bytes: 24, needed_bytes: 7, limit: 30 };
    assert_eq!(refused, expected);
    assert_eq!((r.machine.hash(), r.machine.revision()), before, "a refusal changes nothing");
    r.put("other", "as much as you like, it is another prefix");
    r.lock("jobs", 1);

    // A transaction counts as a whole: it may move bytes around.
    let swap = vec![TxnOp::DeleteRange(delete_op("app/old", "")), TxnOp::Put(put_op("app/new", "12345"))];
    r.run(all_of(swap)).unwrap();
    assert_eq!(r.machine.quotas()[0].used_bytes, 25);
    // Above the mark, since it was lowered: less is fine, more is not.
    r.run(set(5, 10)).unwrap();
    r.put("app/new", "1");
    assert!(r.run(put("app/new", "12")).is_err());
    r.compact(r.machine.revision());
    assert_eq!(r.expire(&[1]), 1);
    assert_eq!(r.machine.quotas()[0].used_bytes, 8, "the lease's key went");
    r.put("app/new", "123");
    assert_eq!(r.delete("app/", "app0"), 1);
    r.put("app/c", "12345");

    for (prefix, soft_bytes, hard_bytes) in [("app/", 2, 1), ("app/", 0, 0), ("weft/", 1, 1)] {
        let quota = Some(Quota { soft_bytes, hard_bytes });
        assert!(r.run(Command::SetQuota { prefix: b(prefix), quota }).is_err());
    }
    let image = r.machine.image();
    let back = Machine::from_image(&image).unwrap();
    assert_eq!(back.quotas(), r.machine.quotas());
    assert_eq!(back.image(), image);
    r.run(Command::SetQuota { prefix: b("app/"), quota: None }).unwrap();
    r.put("app/d", "more than there was room for");
}
