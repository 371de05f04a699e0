//! The store as one would write it without a thought for speed: a whole map for each revision.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use weft_state::command::{
    Command, Compare, CompareOp, CompareTarget, DeleteRange, Event, EventKind, KeyValue, LeaseId, Put, Quota,
    Range, RangeResponse, Response, Revision, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse, TxnResponse,
};

pub type State = BTreeMap<Bytes, KeyValue>;

/// The refusal's kind does not matter to the model, only that it is one.
pub struct Refused;

#[derive(Debug, Clone)]
pub struct Model {
    pub states: BTreeMap<Revision, State>,
    pub leases: BTreeSet<LeaseId>,
    pub events: Vec<Event>,
    pub compacted: Revision,
    pub quotas: BTreeMap<Bytes, Quota>,
}

impl Model {
    pub fn new() -> Self {
        Self {
            states: BTreeMap::from([(1, State::new())]),
            leases: BTreeSet::new(),
            events: Vec::new(),
            compacted: 0,
            quotas: BTreeMap::new(),
        }
    }

    pub fn revision(&self) -> Revision {
        *self.states.last_key_value().unwrap().0
    }

    pub fn now(&self) -> &State {
        &self.states[&self.revision()]
    }

    /// Answers the response and the events.
    pub fn apply(&mut self, command: &Command) -> Result<(Response, Vec<Event>), Refused> {
        let mut change = Change { model: self, state: self.now().clone(), events: Vec::new() };
        let response = match command {
            Command::Put(put) => {
                check_put(put)?;
                Response::Put { prev_kv: change.put(put)? }
            }
            Command::DeleteRange(delete) => {
                check_delete(delete)?;
                let (deleted, prev_kvs) = change.delete(delete);
                Response::DeleteRange { deleted, prev_kvs }
            }
            Command::Txn(txn) => {
                check_txn(txn)?;
                Response::Txn(change.txn(&choose(self.now(), txn))?)
            }
            Command::LeaseRevoke { id } => {
                if !self.leases.contains(id) {
                    return Err(Refused);
                }
                let keys: Vec<_> = change.state.values().filter(|kv| kv.lease == *id).cloned().collect();
                for kv in keys {
                    change.remove(&kv.key);
                }
                Response::LeaseRevoke
            }
            Command::LeaseGrant { id, ttl_secs } => {
                if !self.leases.insert(*id) {
                    return Err(Refused);
                }
                return Ok((Response::LeaseGrant { id: *id, ttl_secs: *ttl_secs }, vec![]));
            }
            Command::Compact { revision } => {
                if *revision <= self.compacted || *revision > self.revision() {
                    return Err(Refused);
                }
                self.compacted = *revision;
                return Ok((Response::Compact, vec![]));
            }
            Command::SetQuota { prefix, quota } => {
                match quota {
                    Some(quota) if quota.soft_bytes > quota.hard_bytes || quota.hard_bytes == 0 => {
                        return Err(Refused);
                    }
                    Some(quota) => self.quotas.insert(prefix.clone(), *quota),
                    None => self.quotas.remove(prefix),
                };
                return Ok((Response::SetQuota, vec![]));
            }
            other => panic!("the model has no {other:?}"),
        };
        let Change { state, events, .. } = change;
        for (prefix, quota) in &self.quotas {
            let used = used_bytes(&state, prefix);
            if used > quota.hard_bytes && used > used_bytes(self.now(), prefix) {
                return Err(Refused);
            }
        }
        if let Command::LeaseRevoke { id } = command {
            self.leases.remove(id);
        }
        if !events.is_empty() {
            self.states.insert(self.revision() + 1, state);
        }
        self.events.extend(events.iter().cloned());
        Ok((response, events))
    }

    pub fn range(&self, r: &Range) -> Result<RangeResponse, Refused> {
        let revision = if r.revision <= 0 { self.revision() } else { r.revision };
        if r.key.is_empty() || revision < self.compacted {
            return Err(Refused);
        }
        Ok(range(self.states.get(&revision).ok_or(Refused)?, r))
    }
}

/// Bytes that count for a quota.
pub fn used_bytes(state: &State, prefix: &[u8]) -> u64 {
    let counts = state.values().filter(|kv| kv.key.starts_with(prefix) && !kv.key.starts_with(b"weft/"));
    counts.map(|kv| (kv.key.len() + kv.value.len()) as u64).sum()
}

/// A command under way.
struct Change<'m> {
    model: &'m Model,
    state: State,
    events: Vec<Event>,
}

impl Change<'_> {
    fn put(&mut self, put: &Put) -> Result<Option<KeyValue>, Refused> {
        let before = self.state.get(&put.key).cloned();
        if (put.ignore_value || put.ignore_lease) && before.is_none() {
            return Err(Refused);
        }
        let kept = before.clone().unwrap_or_default();
        let lease = if put.ignore_lease { kept.lease } else { put.lease };
        if lease != 0 && !self.model.leases.contains(&lease) {
            return Err(Refused);
        }
        let revision = self.model.revision() + 1;
        let kv = KeyValue {
            key: put.key.clone(),
            value: if put.ignore_value { kept.value } else { put.value.clone() },
            create_revision: if before.is_some() { kept.create_revision } else { revision },
            mod_revision: revision,
            version: kept.version + 1,
            lease,
        };
        self.state.insert(put.key.clone(), kv.clone());
        self.events.push(Event { kind: EventKind::Put, kv, prev_kv: before.clone() });
        Ok(before.filter(|_| put.prev_kv))
    }

    fn delete(&mut self, delete: &DeleteRange) -> (i64, Vec<KeyValue>) {
        let doomed: Vec<_> = self
            .state
            .values()
            .filter(|kv| contains(&delete.key, &delete.range_end, &kv.key) && !kv.key.starts_with(b"weft/"))
            .cloned()
            .collect();
        for kv in &doomed {
            self.remove(&kv.key);
        }
        (doomed.len() as i64, if delete.prev_kv { doomed } else { vec![] })
    }

    fn remove(&mut self, key: &Bytes) {
        let prev_kv = self.state.remove(key);
        let kv =
            KeyValue { key: key.clone(), mod_revision: self.model.revision() + 1, ..KeyValue::default() };
        self.events.push(Event { kind: EventKind::Delete, kv, prev_kv });
    }

    fn txn(&mut self, chosen: &Chosen<'_>) -> Result<TxnResponse, Refused> {
        let mut responses = Vec::new();
        for op in &chosen.ops {
            responses.push(match op {
                ChosenOp::Txn(nested) => TxnOpResponse::Txn(self.txn(nested)?),
                ChosenOp::Plain(TxnOp::Put(put)) => TxnOpResponse::Put { prev_kv: self.put(put)? },
                ChosenOp::Plain(TxnOp::DeleteRange(delete)) => {
                    let (deleted, prev_kvs) = self.delete(delete);
                    TxnOpResponse::DeleteRange { deleted, prev_kvs }
                }
                ChosenOp::Plain(TxnOp::Range(r)) => TxnOpResponse::Range(match r.revision {
                    ..=0 => range(&self.state, r),
                    _ => self.model.range(r)?,
                }),
                ChosenOp::Plain(TxnOp::Txn(_)) => unreachable!("nested ones are chosen too"),
            });
        }
        Ok(TxnResponse { succeeded: chosen.succeeded, responses })
    }
}

struct Chosen<'t> {
    succeeded: bool,
    ops: Vec<ChosenOp<'t>>,
}

enum ChosenOp<'t> {
    Plain(&'t TxnOp),
    Txn(Chosen<'t>),
}

fn choose<'t>(state: &State, txn: &'t Txn) -> Chosen<'t> {
    let succeeded = txn.compare.iter().all(|compare| holds(state, compare));
    let ops = if succeeded { &txn.success } else { &txn.failure };
    let ops = ops.iter().map(|op| match op {
        TxnOp::Txn(nested) => ChosenOp::Txn(choose(state, nested)),
        plain => ChosenOp::Plain(plain),
    });
    Chosen { succeeded, ops: ops.collect() }
}

fn holds(state: &State, compare: &Compare) -> bool {
    let mut found: Vec<Option<&KeyValue>> =
        state.values().filter(|kv| contains(&compare.key, &compare.range_end, &kv.key)).map(Some).collect();
    if found.is_empty() {
        found.push(None);
    }
    found.into_iter().all(|kv| {
        let zeros = KeyValue::default();
        let stored = kv.unwrap_or(&zeros);
        let ordering = match &compare.target {
            CompareTarget::Version(given) => stored.version.cmp(given),
            CompareTarget::CreateRevision(given) => stored.create_revision.cmp(given),
            CompareTarget::ModRevision(given) => stored.mod_revision.cmp(given),
            CompareTarget::Lease(given) => stored.lease.cmp(given),
            CompareTarget::Value(_) if kv.is_none() => return false,
            CompareTarget::Value(given) => stored.value.cmp(given),
        };
        match compare.op {
            CompareOp::Equal => ordering.is_eq(),
            CompareOp::NotEqual => ordering.is_ne(),
            CompareOp::Greater => ordering.is_gt(),
            CompareOp::Less => ordering.is_lt(),
        }
    })
}

fn check_put(put: &Put) -> Result<(), Refused> {
    let bad = put.key.is_empty()
        || put.key.starts_with(b"weft/")
        || (put.ignore_value && !put.value.is_empty())
        || (put.ignore_lease && put.lease != 0);
    if bad { Err(Refused) } else { Ok(()) }
}

fn check_delete(delete: &DeleteRange) -> Result<(), Refused> {
    if delete.key.is_empty() || delete.key.starts_with(b"weft/") { Err(Refused) } else { Ok(()) }
}

fn check_txn(txn: &Txn) -> Result<(), Refused> {
    for ops in [&txn.success, &txn.failure] {
        for op in ops {
            match op {
                TxnOp::Put(put) => check_put(put)?,
                TxnOp::DeleteRange(delete) => check_delete(delete)?,
                TxnOp::Txn(nested) => check_txn(nested)?,
                TxnOp::Range(_) => {}
            }
        }
        for path in paths(ops) {
            for (at, op) in path.iter().enumerate() {
                let TxnOp::Put(put) = op else { continue };
                let twice = path.iter().enumerate().any(|(other_at, other)| match other {
                    TxnOp::Put(other) => at != other_at && other.key == put.key,
                    TxnOp::DeleteRange(delete) => contains(&delete.key, &delete.range_end, &put.key),
                    _ => false,
                });
                if twice {
                    return Err(Refused);
                }
            }
        }
    }
    Ok(())
}

/// Every list of plain operations that may run, whichever way nested conditions turn out.
fn paths(ops: &[TxnOp]) -> Vec<Vec<&TxnOp>> {
    let mut all = vec![vec![]];
    for op in ops {
        let next: Vec<Vec<&TxnOp>> = match op {
            TxnOp::Txn(nested) => [paths(&nested.success), paths(&nested.failure)].concat(),
            plain => vec![vec![plain]],
        };
        all = all.iter().flat_map(|path| next.iter().map(move |more| [&path[..], more].concat())).collect();
    }
    all
}

pub fn contains(key: &[u8], range_end: &[u8], candidate: &[u8]) -> bool {
    match range_end {
        [] => candidate == key,
        [0] => candidate >= key,
        _ => candidate >= key && candidate < range_end,
    }
}

fn range(state: &State, r: &Range) -> RangeResponse {
    let mut kvs: Vec<KeyValue> =
        state.values().filter(|kv| contains(&r.key, &r.range_end, &kv.key)).cloned().collect();
    let count = kvs.len() as i64;
    if r.count_only {
        return RangeResponse { count, ..RangeResponse::default() };
    }
    kvs.retain(|kv| r.min_mod_revision == 0 || kv.mod_revision >= r.min_mod_revision);
    kvs.retain(|kv| r.max_mod_revision == 0 || kv.mod_revision <= r.max_mod_revision);
    kvs.retain(|kv| r.min_create_revision == 0 || kv.create_revision >= r.min_create_revision);
    kvs.retain(|kv| r.max_create_revision == 0 || kv.create_revision <= r.max_create_revision);
    if let Some((target, order)) = r.sort {
        kvs.sort_by(|a, b| {
            let ordering = match target {
                SortTarget::Key => a.key.cmp(&b.key),
                SortTarget::Version => a.version.cmp(&b.version),
                SortTarget::Create => a.create_revision.cmp(&b.create_revision),
                SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
                SortTarget::Value => a.value.cmp(&b.value),
            };
            if order == SortOrder::Descend { ordering.reverse() } else { ordering }
        });
    }
    let more = r.limit > 0 && kvs.len() as i64 > r.limit;
    if more {
        kvs.truncate(r.limit as usize);
    }
    if r.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    RangeResponse { kvs, more, count }
}
