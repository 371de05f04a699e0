//! Short ways to say commands.

use bytes::Bytes;
use weft_state::{
    command::{
        Acquire, Acquired, Applied, Campaign, Command, DeleteRange, Event, EventKind, Grant, KeyValue,
        LeaseGrantNumber, LeaseId, Put, Range, RangeResponse, Release, Resign, Response, Revision, Txn,
        TxnOp,
    },
    error::StoreError,
    machine::Machine,
};

/// A machine that counts log indexes and keeps all events.
#[derive(Debug, Clone, Default)]
pub struct Replica {
    pub machine: Machine,
    pub index: u64,
    pub term: u64,
    pub events: Vec<Event>,
}

impl Replica {
    pub fn new() -> Self {
        Self { term: 1, ..Self::default() }
    }

    pub fn apply(&mut self, command: &Command) -> Applied {
        self.index += 1;
        let applied = self.machine.apply(self.index, self.term, command);
        self.events.extend(applied.events.iter().cloned());
        applied
    }

    pub fn run(&mut self, command: Command) -> Result<Response, StoreError> {
        self.apply(&command).response
    }

    pub fn put(&mut self, key: &str, value: &str) -> Revision {
        self.run(put(key, value)).unwrap();
        self.machine.revision()
    }

    pub fn put_leased(&mut self, key: &str, value: &str, lease: LeaseId) -> Result<Response, StoreError> {
        self.run(Command::Put(Put { key: b(key), value: b(value), lease, ..Put::default() }))
    }

    pub fn delete(&mut self, key: &str, end: &str) -> i64 {
        match self.run(delete(key, end)).unwrap() {
            Response::DeleteRange { deleted, .. } => deleted,
            other => panic!("{other:?}"),
        }
    }

    pub fn compact(&mut self, revision: Revision) {
        self.run(Command::Compact { revision }).unwrap();
    }

    pub fn lease(&mut self, id: LeaseId) -> LeaseId {
        self.run(Command::LeaseGrant { id, ttl_secs: 10 }).unwrap();
        id
    }

    pub fn revoke(&mut self, id: LeaseId) {
        self.run(Command::LeaseRevoke { id }).unwrap();
    }

    /// What a leader's clock knows of a lease; 0, which no grant has, if there is none.
    pub fn grant_of(&self, id: LeaseId) -> LeaseGrantNumber {
        self.machine.lease_terms(id).map_or(0, |lease| lease.grant)
    }

    pub fn expire(&mut self, leases: &[LeaseId]) -> u64 {
        let leases = leases.iter().map(|id| (*id, self.grant_of(*id))).collect();
        match self.run(Command::LeaseExpire { term: self.term, leases }).unwrap() {
            Response::LeaseExpire { expired } => expired,
            other => panic!("{other:?}"),
        }
    }

    /// The value of a key, if it exists.
    pub fn value(&self, key: &str) -> Option<String> {
        let found = self.range(key, "").kvs.pop()?;
        Some(String::from_utf8(found.value.to_vec()).unwrap())
    }

    pub fn kv(&self, key: &str) -> Option<KeyValue> {
        self.range(key, "").kvs.pop()
    }

    pub fn range(&self, key: &str, end: &str) -> RangeResponse {
        self.machine.range(&range(key, end)).unwrap()
    }

    pub fn range_at(&self, key: &str, end: &str, revision: Revision) -> Result<Vec<String>, StoreError> {
        let answer = self.machine.range(&Range { revision, ..range(key, end) })?;
        Ok(answer.kvs.iter().map(|kv| text(&kv.value)).collect())
    }

    pub fn acquire(&mut self, acquire: Acquire) -> Result<Acquired, StoreError> {
        match self.run(Command::Acquire(acquire))? {
            Response::Acquire(acquired) => Ok(acquired),
            other => panic!("{other:?}"),
        }
    }

    /// Takes a lock and panics if it has to wait.
    pub fn lock(&mut self, name: &str, lease: LeaseId) -> Grant {
        match self.acquire(acquire(name, lease)).unwrap() {
            Acquired::Granted(grant) => grant,
            other => panic!("{other:?}"),
        }
    }

    pub fn release(&mut self, name: &str, lease: LeaseId) -> bool {
        self.undo_acquire(name, lease, None)
    }

    /// Gives back what one call has; none: whichever has it.
    pub fn undo_acquire(&mut self, name: &str, lease: LeaseId, attempt: Option<u64>) -> bool {
        let release = Release { name: name.into(), lease, request_id: 0, attempt };
        match self.run(Command::Release(release)).unwrap() {
            Response::Release { released } => released,
            other => panic!("{other:?}"),
        }
    }

    pub fn campaign(&mut self, name: &str, lease: LeaseId, value: &str) -> Acquired {
        self.campaign_again(name, lease, value, 1)
    }

    pub fn campaign_again(&mut self, name: &str, lease: LeaseId, value: &str, attempt: u64) -> Acquired {
        let campaign = Campaign { name: name.into(), lease, value: b(value), attempt };
        match self.run(Command::Campaign(campaign)).unwrap() {
            Response::Campaign(acquired) => acquired,
            other => panic!("{other:?}"),
        }
    }

    /// Resigns what one call has; none: whichever has it.
    pub fn resign(&mut self, name: &str, lease: LeaseId, attempt: Option<u64>) -> bool {
        match self.run(Command::Resign(Resign { name: name.into(), lease, attempt })).unwrap() {
            Response::Resign { resigned } => resigned,
            other => panic!("{other:?}"),
        }
    }

    /// Leases of the holders and of the waiters of a semaphore, each in order.
    pub fn lineup(&self, name: &str) -> (Vec<LeaseId>, Vec<LeaseId>) {
        let Some(view) = self.machine.semaphore(name) else { return Default::default() };
        (
            view.holders.iter().map(|holder| holder.grant.lease).collect(),
            view.waiters.iter().map(|waiter| waiter.lease).collect(),
        )
    }
}

pub fn b(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn put(key: &str, value: &str) -> Command {
    Command::Put(put_op(key, value))
}

pub fn put_op(key: &str, value: &str) -> Put {
    Put { key: b(key), value: b(value), ..Put::default() }
}

pub fn delete(key: &str, end: &str) -> Command {
    Command::DeleteRange(delete_op(key, end))
}

pub fn delete_op(key: &str, end: &str) -> DeleteRange {
    DeleteRange { key: b(key), range_end: b(end), prev_kv: false }
}

pub fn range(key: &str, end: &str) -> Range {
    Range { key: b(key), range_end: b(end), ..Range::default() }
}

pub fn all_of(ops: Vec<TxnOp>) -> Command {
    Command::Txn(Txn { success: ops, ..Txn::default() })
}

pub fn acquire(name: &str, lease: LeaseId) -> Acquire {
    Acquire { name: name.into(), lease, permits: 1, limit: 0, request_id: 0, try_only: false, attempt: 1 }
}

/// `put a@3`, `del b@4`: what happened, in short.
pub fn short(event: &Event) -> String {
    let verb = match event.kind {
        EventKind::Put => "put",
        EventKind::Delete => "del",
    };
    format!("{verb} {}@{}", text(&event.kv.key), event.kv.mod_revision)
}
