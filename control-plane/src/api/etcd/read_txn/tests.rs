use proptest::prelude::*;
use weft_state::command::{Command, Put, Response};

use super::*;

fn machine() -> Machine {
    let mut machine = Machine::new();
    for (index, (key, value)) in [("a", "1"), ("b", "2"), ("b", "3"), ("c", "3")].into_iter().enumerate() {
        let put = Put { key: key.into(), value: value.into(), ..Put::default() };
        machine.apply(index as u64 + 1, 1, &Command::Put(put));
    }
    machine
}

fn compare(key: &'static str, range_end: &'static str, op: CompareOp, target: CompareTarget) -> Compare {
    Compare { key: key.into(), range_end: range_end.into(), op, target }
}

fn succeeds(compare: Compare) -> bool {
    evaluate(&machine(), &Txn { compare: vec![compare], ..Txn::default() }).unwrap().succeeded
}

#[test]
fn a_missing_key_has_zeros_but_no_value() {
    assert!(succeeds(compare("x", "", CompareOp::Equal, CompareTarget::Version(0))));
    assert!(succeeds(compare("x", "", CompareOp::Equal, CompareTarget::CreateRevision(0))));
    for op in [CompareOp::Equal, CompareOp::NotEqual, CompareOp::Greater, CompareOp::Less] {
        assert!(!succeeds(compare("x", "", op, CompareTarget::Value("".into()))));
    }
}

#[test]
fn a_compare_over_a_range_holds_for_each_key() {
    assert!(succeeds(compare("a", "z", CompareOp::Greater, CompareTarget::CreateRevision(0))));
    assert!(!succeeds(compare("a", "z", CompareOp::Equal, CompareTarget::Version(1))));
    assert!(succeeds(compare("b", "\0", CompareOp::Equal, CompareTarget::Value("3".into()))));
}

#[test]
fn a_transaction_with_a_write_in_any_branch_is_not_read_only() {
    let put = || TxnOp::Put(Put { key: "a".into(), ..Put::default() });
    let range = || TxnOp::Range(Range { key: "a".into(), ..Range::default() });
    let inner = |failure| TxnOp::Txn(Txn { failure, ..Txn::default() });
    assert!(is_read_only(&Txn { success: vec![range(), inner(vec![range()])], ..Txn::default() }));
    assert!(!is_read_only(&Txn { success: vec![range(), inner(vec![put()])], ..Txn::default() }));
}

fn any_compare() -> impl Strategy<Value = Compare> {
    let key = prop_oneof![Just("a"), Just("b"), Just("c"), Just("x")];
    let end = prop_oneof![Just(""), Just("\0"), Just("c"), Just("a")];
    let op = prop_oneof![
        Just(CompareOp::Equal),
        Just(CompareOp::NotEqual),
        Just(CompareOp::Greater),
        Just(CompareOp::Less)
    ];
    let target = prop_oneof![
        (0..3i64).prop_map(CompareTarget::Version),
        (0..6i64).prop_map(CompareTarget::CreateRevision),
        (0..6i64).prop_map(CompareTarget::ModRevision),
        prop_oneof![Just(""), Just("1"), Just("3")].prop_map(|v| CompareTarget::Value(v.into())),
        (0..2i64).prop_map(CompareTarget::Lease),
    ];
    (key, end, op, target).prop_map(|(key, end, op, target)| compare(key, end, op, target))
}

fn any_ranges() -> impl Strategy<Value = Vec<TxnOp>> {
    let range = prop_oneof![Just(("a", "")), Just(("a", "\0")), Just(("x", ""))];
    let range = range.prop_map(|(key, end)| {
        TxnOp::Range(Range { key: key.into(), range_end: end.into(), ..Range::default() })
    });
    proptest::collection::vec(range, 0..3)
}

fn any_flat_txn() -> impl Strategy<Value = Txn> {
    (proptest::collection::vec(any_compare(), 0..3), any_ranges(), any_ranges())
        .prop_map(|(compare, success, failure)| Txn { compare, success, failure })
}

fn any_txn() -> impl Strategy<Value = Txn> {
    (any_flat_txn(), any_flat_txn()).prop_map(|(mut outer, inner)| {
        outer.success.push(TxnOp::Txn(inner));
        outer
    })
}

proptest! {
    /// The state machine is the authority on what a transaction means: evaluated here or applied from the
    /// log, a read-only one answers the same.
    #[test]
    fn evaluated_here_it_answers_what_applying_it_answers(txn in any_txn()) {
        let mut machine = machine();
        let here = evaluate(&machine, &txn).unwrap();
        let applied = machine.apply(100, 1, &Command::Txn(txn));
        prop_assert_eq!(applied.response, Ok(Response::Txn(here)));
        prop_assert_eq!(applied.revision, 5);
    }
}
