//! Transactions: checked before they run, then run as one revision or not at all.

use std::{cmp::Ordering, collections::BTreeSet};

use crate::{
    command::{
        Compare, CompareOp, CompareTarget, DeleteRange, Put, Range, Txn, TxnOp, TxnOpResponse, TxnResponse,
    },
    error::StoreError,
    store::{
        KEY_BYTES_MAX, RESERVED_PREFIX, TXN_OPS_MAX,
        key_index::Version,
        mvcc::{Store, Writer},
        range::KeyRange,
    },
};

/// Refuses what no client may put, before anything is looked up.
pub(crate) fn check_put(put: &Put) -> Result<(), StoreError> {
    check_key(&put.key)?;
    if put.ignore_value && !put.value.is_empty() {
        return Err(StoreError::ValueProvided);
    }
    if put.ignore_lease && put.lease != 0 {
        return Err(StoreError::LeaseProvided);
    }
    if put.key.starts_with(RESERVED_PREFIX) { Err(StoreError::ReservedKey) } else { Ok(()) }
}

/// Refuses what no client may delete. A range that merely spans `weft/` is fine: it skips it.
pub(crate) fn check_delete(delete: &DeleteRange) -> Result<(), StoreError> {
    if delete.key.is_empty() {
        return Err(StoreError::EmptyKey);
    }
    if delete.key.starts_with(RESERVED_PREFIX) { Err(StoreError::ReservedKey) } else { Ok(()) }
}

/// Refuses a transaction that is malformed in any branch, whichever would run.
pub(crate) fn check_txn(txn: &Txn) -> Result<(), StoreError> {
    check_ops(txn, 0)?;
    writes(&txn.success)?;
    writes(&txn.failure)?;
    Ok(())
}

impl Writer<'_> {
    /// Runs a transaction that passed [`check_txn`].
    ///
    /// As in etcd all conditions, those of nested transactions too, are judged before the first operation
    /// runs; the operations themselves see what earlier ones wrote.
    ///
    /// # Errors
    /// Those of the operations that run. The caller's [`Store::write`] then undoes the earlier ones.
    pub(crate) fn txn(&mut self, txn: &Txn) -> Result<TxnResponse, StoreError> {
        let mut branches = Vec::new();
        choose(self.store(), txn, &mut branches);
        let mut branches = branches.into_iter();
        self.run(txn, &mut branches)
    }

    fn run(
        &mut self,
        txn: &Txn,
        branches: &mut impl Iterator<Item = bool>,
    ) -> Result<TxnResponse, StoreError> {
        let succeeded = branches.next().expect("choose() and run() visit the same transactions");
        let ops = if succeeded { &txn.success } else { &txn.failure };
        let mut responses = Vec::with_capacity(ops.len());
        for op in ops {
            responses.push(match op {
                TxnOp::Range(range) => TxnOpResponse::Range(self.store().range(range)?),
                TxnOp::Put(put) => TxnOpResponse::Put { prev_kv: self.put(put)? },
                TxnOp::DeleteRange(delete) => {
                    let (deleted, prev_kvs) = self.delete_range(delete);
                    TxnOpResponse::DeleteRange { deleted, prev_kvs }
                }
                TxnOp::Txn(nested) => TxnOpResponse::Txn(self.run(nested, branches)?),
            });
        }
        Ok(TxnResponse { succeeded, responses })
    }
}

/// Which branch each transaction takes, in the order in which [`Writer::run`] visits them.
fn choose(store: &Store, txn: &Txn, branches: &mut Vec<bool>) {
    let holds = txn.compare.iter().all(|compare| holds(store, compare));
    branches.push(holds);
    for op in if holds { &txn.success } else { &txn.failure } {
        if let TxnOp::Txn(nested) = op {
            choose(store, nested, branches);
        }
    }
}

fn holds(store: &Store, compare: &Compare) -> bool {
    let mut found = store.live(KeyRange::new(&compare.key, &compare.range_end)).peekable();
    if found.peek().is_none() {
        return version_holds(compare, None);
    }
    found.all(|(_, version)| version_holds(compare, Some(version)))
}

/// A missing key has zeros; its value equals nothing, differs from nothing.
fn version_holds(compare: &Compare, version: Option<&Version>) -> bool {
    let number = |of: fn(&Version) -> i64, given: &i64| version.map_or(0, of).cmp(given);
    let ordering = match &compare.target {
        CompareTarget::Version(given) => number(|version| version.version, given),
        CompareTarget::CreateRevision(given) => number(|version| version.create_revision, given),
        CompareTarget::ModRevision(given) => number(|version| version.mod_revision, given),
        CompareTarget::Lease(given) => number(|version| version.lease, given),
        CompareTarget::Value(given) => match version {
            Some(version) => version.value.as_slice().cmp(given),
            None => return false,
        },
    };
    match compare.op {
        CompareOp::Equal => ordering == Ordering::Equal,
        CompareOp::NotEqual => ordering != Ordering::Equal,
        CompareOp::Greater => ordering == Ordering::Greater,
        CompareOp::Less => ordering == Ordering::Less,
    }
}

/// `outside` counts the operations of the levels around this one, as etcd does; it also bounds the depth.
fn check_ops(txn: &Txn, outside: usize) -> Result<(), StoreError> {
    let seen = outside + txn.compare.len().max(txn.success.len()).max(txn.failure.len());
    if seen > TXN_OPS_MAX {
        return Err(StoreError::TooManyOps { seen: seen as u64, limit: TXN_OPS_MAX as u64 });
    }
    for compare in &txn.compare {
        if compare.key.is_empty() {
            return Err(StoreError::EmptyKey);
        }
    }
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            TxnOp::Range(Range { key, .. }) if key.is_empty() => return Err(StoreError::EmptyKey),
            TxnOp::Range(_) => {}
            TxnOp::Put(put) => check_put(put)?,
            TxnOp::DeleteRange(delete) => check_delete(delete)?,
            TxnOp::Txn(nested) => check_ops(nested, seen)?,
        }
    }
    Ok(())
}

/// What a list of operations may write.
#[derive(Default)]
struct Writes<'t> {
    puts: BTreeSet<&'t [u8]>,
    deletes: Vec<KeyRange<'t>>,
}

/// Refuses a key that would change twice in one revision: put twice, or put and in a deleted range, also
/// across nested transactions. The two branches of one nested transaction exclude each other and may repeat.
fn writes(ops: &[TxnOp]) -> Result<Writes<'_>, StoreError> {
    let mut all = Writes::default();
    for op in ops {
        match op {
            TxnOp::Range(_) => {}
            TxnOp::Put(put) => all.add_put(&put.key)?,
            TxnOp::DeleteRange(delete) => all.add_delete(KeyRange::new(&delete.key, &delete.range_end))?,
            TxnOp::Txn(nested) => {
                let mut either = writes(&nested.success)?;
                let failure = writes(&nested.failure)?;
                either.puts.extend(failure.puts);
                either.deletes.extend(failure.deletes);
                // Against what stands beside the nested transaction, not success against failure.
                let beside = std::mem::take(&mut all);
                for put in &either.puts {
                    beside.refuse_put(put)?;
                }
                for delete in &either.deletes {
                    beside.refuse_delete(*delete)?;
                }
                all = either;
                all.puts.extend(beside.puts);
                all.deletes.extend(beside.deletes);
            }
        }
    }
    Ok(all)
}

impl<'t> Writes<'t> {
    fn add_put(&mut self, key: &'t [u8]) -> Result<(), StoreError> {
        self.refuse_put(key)?;
        self.puts.insert(key);
        Ok(())
    }

    fn add_delete(&mut self, range: KeyRange<'t>) -> Result<(), StoreError> {
        self.refuse_delete(range)?;
        self.deletes.push(range);
        Ok(())
    }

    fn refuse_put(&self, key: &[u8]) -> Result<(), StoreError> {
        let twice = self.puts.contains(key) || self.deletes.iter().any(|range| range.contains(key));
        if twice { Err(StoreError::DuplicateKey) } else { Ok(()) }
    }

    fn refuse_delete(&self, range: KeyRange<'_>) -> Result<(), StoreError> {
        let twice = self.puts.range::<[u8], _>(range.bounds()).next().is_some();
        if twice { Err(StoreError::DuplicateKey) } else { Ok(()) }
    }
}

fn check_key(key: &[u8]) -> Result<(), StoreError> {
    match key.len() {
        0 => Err(StoreError::EmptyKey),
        seen if seen > KEY_BYTES_MAX => {
            Err(StoreError::KeyTooLong { seen: seen as u64, limit: KEY_BYTES_MAX as u64 })
        }
        _ => Ok(()),
    }
}
