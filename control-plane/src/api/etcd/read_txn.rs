//! Transactions that write nothing. They do not enter the log: they are evaluated on this server's state
//! after a read barrier, under one read lock, so that all their parts see one revision.

use weft_state::command::{
    Compare, CompareOp, CompareTarget, KeyValue, Range, Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use weft_state::error::StoreError;
use weft_state::machine::Machine;

/// Whether no branch, at any depth, puts or deletes.
pub fn is_read_only(txn: &Txn) -> bool {
    txn.success.iter().chain(&txn.failure).all(|op| match op {
        TxnOp::Range(_) => true,
        TxnOp::Put(_) | TxnOp::DeleteRange(_) => false,
        TxnOp::Txn(txn) => is_read_only(txn),
    })
}

/// What applying it would answer.
pub fn evaluate(machine: &Machine, txn: &Txn) -> Result<TxnResponse, StoreError> {
    let mut succeeded = true;
    for compare in &txn.compare {
        if !holds(machine, compare)? {
            succeeded = false;
            break;
        }
    }
    let branch = if succeeded { &txn.success } else { &txn.failure };
    let mut responses = Vec::with_capacity(branch.len());
    for op in branch {
        responses.push(match op {
            TxnOp::Range(range) => TxnOpResponse::Range(machine.range(range)?),
            TxnOp::Txn(txn) => TxnOpResponse::Txn(evaluate(machine, txn)?),
            TxnOp::Put(_) | TxnOp::DeleteRange(_) => {
                unreachable!("only read-only transactions are evaluated here")
            }
        });
    }
    Ok(TxnResponse { succeeded, responses })
}

/// A compare over a range holds if it holds for each key in it; over nothing, if it holds for a missing
/// key: zeros, except that a missing value equals nothing.
fn holds(machine: &Machine, compare: &Compare) -> Result<bool, StoreError> {
    let range = Range { key: compare.key.clone(), range_end: compare.range_end.clone(), ..Range::default() };
    let kvs = machine.range(&range)?.kvs;
    if kvs.is_empty() {
        let missing = !matches!(compare.target, CompareTarget::Value(_));
        return Ok(missing && holds_for(&KeyValue::default(), compare));
    }
    Ok(kvs.iter().all(|kv| holds_for(kv, compare)))
}

fn holds_for(kv: &KeyValue, compare: &Compare) -> bool {
    let ordering = match &compare.target {
        CompareTarget::Version(given) => kv.version.cmp(given),
        CompareTarget::CreateRevision(given) => kv.create_revision.cmp(given),
        CompareTarget::ModRevision(given) => kv.mod_revision.cmp(given),
        CompareTarget::Value(given) => kv.value.cmp(given),
        CompareTarget::Lease(given) => kv.lease.cmp(given),
    };
    match compare.op {
        CompareOp::Equal => ordering.is_eq(),
        CompareOp::NotEqual => ordering.is_ne(),
        CompareOp::Greater => ordering.is_gt(),
        CompareOp::Less => ordering.is_lt(),
    }
}

#[cfg(test)]
mod tests;
