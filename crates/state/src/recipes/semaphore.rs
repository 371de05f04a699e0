//! Semaphores; a lock is one with limit 1.
//!
//! ```text
//! weft/semaphore/NAME/limit                     {"limit":10}          only if it is not 1
//! weft/semaphore/NAME/holder/LEASE-REQUEST      {"lease":…,"request_id":…,"permits":…,"attempt":…}
//! weft/semaphore/NAME/waiter/JOINED-LEASE-REQUEST      the same
//! ```
//!
//! Ids are 16 hex digits; JOINED is the revision at which the waiter joined, so that key order is queue
//! order. The queue is strictly first come, first served: while its head asks for more permits than are
//! free, nobody behind it is granted either.
//!
//! The attempt is the call that owns the place or the grant. When a later call of the same request takes
//! over, the key is written again, which keeps its create revision.
//!
//! Invariants: what is granted never raises the permits held above the limit (they can be above it only
//! after the limit was lowered); the head of the queue never waits while its permits are free; nobody
//! waits for more permits than the limit.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    command::{Acquire, Acquired, Event, Grant, KeyValue, LeaseId, Release, Revision},
    error::StoreError,
    recipes::{json, name, queue::Queue},
    store::Store,
};

/// Longest queue of one semaphore; `Full` beyond it. A client that meets it has a design problem that more
/// memory would only hide.
pub const WAITERS_MAX: usize = 65_536;

/// A semaphore as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SemaphoreView {
    /// Permits there are. May be below what is held, after it was lowered.
    pub limit: u32,
    /// Sessions that hold permits, oldest grant first.
    pub holders: Vec<SemaphoreHolder>,
    /// The queue, head first.
    pub waiters: Vec<SemaphoreWaiter>,
}

/// A session that holds permits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SemaphoreHolder {
    /// Fencing token, lease and key.
    pub grant: Grant,
    /// As in the acquire.
    pub request_id: u64,
    /// How many.
    pub permits: u32,
}

/// A session that waits for permits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SemaphoreWaiter {
    /// Its session.
    pub lease: LeaseId,
    /// As in the acquire.
    pub request_id: u64,
    /// How many.
    pub permits: u32,
    /// The key that stands for its place.
    pub waiter_key: Bytes,
}

/// All semaphores that have a holder, a waiter or a limit of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Semaphores {
    by_name: BTreeMap<String, Semaphore>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Semaphore {
    limit: u32,
    /// Sum over `holders`.
    held: u64,
    holders: BTreeMap<Request, Holder>,
    waiters: Queue<Request, Claim>,
}

/// What makes an acquire idempotent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Request {
    lease: LeaseId,
    request_id: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holder {
    fence: Revision,
    claim: Claim,
}

/// What a request asks for or has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Claim {
    permits: u32,
    /// The newest call of the request: the only one whose undo counts.
    attempt: u64,
}

impl Semaphores {
    /// # Errors
    /// `NameOutOfRange`, `LeaseNotFound`, `PermitsOverLimit`, `Full`; nothing is changed then, the limit
    /// neither.
    pub(crate) fn acquire(
        &mut self,
        store: &mut Store,
        events: &mut Vec<Event>,
        acquire: &Acquire,
    ) -> Result<Acquired, StoreError> {
        name::check(&acquire.name)?;
        if !store.leases.contains(acquire.lease) {
            return Err(StoreError::LeaseNotFound { id: acquire.lease });
        }
        let request = Request { lease: acquire.lease, request_id: acquire.request_id };
        let keys = Keys(&acquire.name);
        let claim = Claim { permits: acquire.permits, attempt: acquire.attempt };
        let present = self.by_name.get_mut(&acquire.name);
        if let Some(semaphore) = present
            && let Some(known) = semaphore.known(keys, request)
        {
            // Its limit is not set again: a repeated request must not undo a later one's.
            semaphore.take_over(store, events, keys, request, acquire.attempt);
            return Ok(known);
        }
        let present = self.by_name.get(&acquire.name);
        let present_limit = present.map_or(DEFAULT_LIMIT, |semaphore| semaphore.limit);
        let limit = if acquire.limit == 0 { present_limit } else { acquire.limit };
        if !(1..=limit).contains(&acquire.permits) {
            return Err(StoreError::PermitsOverLimit {
                name: acquire.name.clone(),
                seen: acquire.permits,
                limit,
            });
        }
        let waiting = present.map_or(0, |semaphore| semaphore.waiters.len());
        if waiting >= WAITERS_MAX && !acquire.try_only {
            let what = format!("queue of semaphore {}", acquire.name);
            return Err(StoreError::Full { what, limit: WAITERS_MAX as u64 });
        }
        let semaphore = self.by_name.entry(acquire.name.clone()).or_default();
        if limit != semaphore.limit {
            semaphore.set_limit(store, events, keys, limit);
            semaphore.settle(store, events, keys);
        }
        let free = semaphore.waiters.is_empty() && semaphore.has_free(acquire.permits);
        let answer = if free {
            Acquired::Granted(semaphore.grant(store, events, keys, request, claim, None))
        } else if acquire.try_only {
            Acquired::Refused
        } else {
            semaphore.wait(store, events, keys, request, claim)
        };
        self.drop_if_vacant(&acquire.name);
        Ok(answer)
    }

    /// Gives permits back or leaves the queue; false if the request is unknown or a newer call has it.
    pub(crate) fn release(
        &mut self,
        store: &mut Store,
        events: &mut Vec<Event>,
        release: &Release,
    ) -> Result<bool, StoreError> {
        name::check(&release.name)?;
        let request = Request { lease: release.lease, request_id: release.request_id };
        let keys = Keys(&release.name);
        let Some(semaphore) = self.by_name.get_mut(&release.name) else { return Ok(false) };
        let Some((key, claim)) = semaphore.claim(keys, request) else { return Ok(false) };
        if release.attempt.is_some_and(|attempt| attempt != claim.attempt) {
            return Ok(false);
        }
        store.revise(events, |writer| writer.delete(&key));
        semaphore.forget(request);
        self.settle(store, events, &release.name);
        Ok(true)
    }

    /// Grants to the head of the queue as long as its permits are free.
    pub(crate) fn settle(&mut self, store: &mut Store, events: &mut Vec<Event>, name: &str) {
        if let Some(semaphore) = self.by_name.get_mut(name) {
            semaphore.settle(store, events, Keys(name));
            self.drop_if_vacant(name);
        }
    }

    /// A key went with its lease. [`Semaphores::settle`] is the caller's to call, after all are gone.
    pub(crate) fn key_gone(&mut self, name: &str, part: &KeyPart) {
        if let (Some(semaphore), KeyPart::Holder(request) | KeyPart::Waiter(_, request)) =
            (self.by_name.get_mut(name), part)
        {
            semaphore.forget(*request);
        }
    }

    /// Takes in a stored key; none if its value is not one of ours.
    pub(crate) fn load(&mut self, name: String, part: KeyPart, kv: &KeyValue) -> Option<()> {
        let semaphore = self.by_name.entry(name).or_default();
        if part == KeyPart::Limit {
            semaphore.limit = serde_json::from_slice::<LimitValue>(&kv.value).ok()?.limit;
            return Some(());
        }
        let claim = serde_json::from_slice::<RequestValue>(&kv.value).ok()?.claim()?;
        match part {
            KeyPart::Holder(request) => {
                semaphore.hold(request, Holder { fence: kv.create_revision, claim });
            }
            KeyPart::Waiter(joined, request) => semaphore.waiters.join(joined, request, claim),
            KeyPart::Limit => {}
        }
        Some(())
    }

    pub(crate) fn view(&self, name: &str) -> Option<SemaphoreView> {
        let semaphore = self.by_name.get(name)?;
        let keys = Keys(name);
        let mut holders: Vec<_> = semaphore
            .holders
            .iter()
            .map(|(request, holder)| SemaphoreHolder {
                grant: Grant { fence: holder.fence, lease: request.lease, key: keys.holder(*request) },
                request_id: request.request_id,
                permits: holder.claim.permits,
            })
            .collect();
        holders.sort_by_key(|holder| holder.grant.fence);
        let waiters = semaphore
            .waiters
            .iter()
            .map(|(joined, request, claim)| SemaphoreWaiter {
                lease: request.lease,
                request_id: request.request_id,
                permits: claim.permits,
                waiter_key: keys.waiter(joined, request),
            })
            .collect();
        Some(SemaphoreView { limit: semaphore.limit, holders, waiters })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.by_name.keys()
    }

    fn drop_if_vacant(&mut self, name: &str) {
        let vacant = self.by_name.get(name).is_some_and(|semaphore| {
            semaphore.limit == DEFAULT_LIMIT && semaphore.holders.is_empty() && semaphore.waiters.is_empty()
        });
        if vacant {
            self.by_name.remove(name);
        }
    }
}

impl Default for Semaphore {
    fn default() -> Self {
        Self { limit: DEFAULT_LIMIT, held: 0, holders: BTreeMap::new(), waiters: Queue::default() }
    }
}

impl Semaphore {
    fn has_free(&self, permits: u32) -> bool {
        self.held + u64::from(permits) <= u64::from(self.limit)
    }

    /// Where a request stands that was made before.
    fn known(&self, keys: Keys<'_>, request: Request) -> Option<Acquired> {
        if let Some(holder) = self.holders.get(&request) {
            let Holder { fence, .. } = *holder;
            return Some(Acquired::Granted(Grant { fence, lease: request.lease, key: keys.holder(request) }));
        }
        let joined = self.waiters.joined(request)?;
        Some(Acquired::Queued {
            key: keys.holder(request),
            waiter_key: keys.waiter(joined, request),
            position: self.waiters.ahead_of(joined),
        })
    }

    /// What a request has, and the key that stands for it.
    fn claim(&mut self, keys: Keys<'_>, request: Request) -> Option<(Bytes, &mut Claim)> {
        if let Some(holder) = self.holders.get_mut(&request) {
            return Some((keys.holder(request), &mut holder.claim));
        }
        let (joined, claim) = self.waiters.waiting(request)?;
        Some((keys.waiter(joined, request), claim))
    }

    /// What the request has is this call's from now on. A revision of the same key: place and fencing token
    /// stay, and nobody is granted anything.
    fn take_over(
        &mut self,
        store: &mut Store,
        events: &mut Vec<Event>,
        keys: Keys<'_>,
        request: Request,
        attempt: u64,
    ) {
        if let Some((key, claim)) = self.claim(keys, request)
            && claim.attempt != attempt
        {
            claim.attempt = attempt;
            let value = json(&RequestValue::new(request, *claim));
            store.revise(events, |writer| {
                writer.set(key, value, request.lease);
            });
        }
    }

    /// Sets the limit. Permits that are held above a lower one stay held; waiters who ask for more than it
    /// are sent away, as they would block the queue for ever.
    fn set_limit(&mut self, store: &mut Store, events: &mut Vec<Event>, keys: Keys<'_>, limit: u32) {
        let hopeless: Vec<_> = self
            .waiters
            .iter()
            .filter(|(_, _, claim)| claim.permits > limit)
            .map(|(joined, request, _)| (joined, request))
            .collect();
        store.revise(events, |writer| {
            if limit == DEFAULT_LIMIT {
                writer.delete(&keys.limit());
            } else {
                writer.set(keys.limit(), json(&LimitValue { limit }), 0);
            }
            for (joined, request) in &hopeless {
                writer.delete(&keys.waiter(*joined, *request));
            }
        });
        for (_, request) in hopeless {
            self.waiters.leave(request);
        }
        self.limit = limit;
    }

    fn settle(&mut self, store: &mut Store, events: &mut Vec<Event>, keys: Keys<'_>) {
        while let Some((joined, request, &claim)) = self.waiters.head() {
            if !self.has_free(claim.permits) {
                break;
            }
            self.waiters.leave(request);
            self.grant(store, events, keys, request, claim, Some(joined));
        }
        debug_assert!(self.waiters.iter().all(|(_, _, claim)| claim.permits <= self.limit));
    }

    /// One grant is one revision, which is its fencing token; the place in the queue goes in the same.
    fn grant(
        &mut self,
        store: &mut Store,
        events: &mut Vec<Event>,
        keys: Keys<'_>,
        request: Request,
        claim: Claim,
        joined: Option<Revision>,
    ) -> Grant {
        let key = keys.holder(request);
        let value = json(&RequestValue::new(request, claim));
        let fence = store.revise(events, |writer| {
            if let Some(joined) = joined {
                writer.delete(&keys.waiter(joined, request));
            }
            writer.set(key.clone(), value, request.lease);
            writer.revision()
        });
        self.hold(request, Holder { fence, claim });
        Grant { fence, lease: request.lease, key }
    }

    fn wait(
        &mut self,
        store: &mut Store,
        events: &mut Vec<Event>,
        keys: Keys<'_>,
        request: Request,
        claim: Claim,
    ) -> Acquired {
        let value = json(&RequestValue::new(request, claim));
        let position = self.waiters.len() as u64;
        let (joined, waiter_key) = store.revise(events, |writer| {
            let joined = writer.revision();
            let key = keys.waiter(joined, request);
            writer.set(key.clone(), value, request.lease);
            (joined, key)
        });
        self.waiters.join(joined, request, claim);
        Acquired::Queued { key: keys.holder(request), waiter_key, position }
    }

    fn hold(&mut self, request: Request, holder: Holder) {
        self.held += u64::from(holder.claim.permits);
        self.holders.insert(request, holder);
    }

    fn forget(&mut self, request: Request) {
        if let Some(holder) = self.holders.remove(&request) {
            self.held -= u64::from(holder.claim.permits);
        }
        self.waiters.leave(request);
    }
}

/// Under which all keys of semaphore `name` are.
pub fn prefix(name: &str) -> String {
    format!("weft/semaphore/{}/", name::encode(name))
}

/// The keys of the semaphore of this name.
#[derive(Clone, Copy)]
struct Keys<'n>(&'n str);

impl Keys<'_> {
    fn limit(self) -> Bytes {
        Bytes::from(format!("weft/semaphore/{}/limit", name::encode(self.0)))
    }

    fn holder(self, request: Request) -> Bytes {
        Bytes::from(format!("weft/semaphore/{}/holder/{}", name::encode(self.0), request.encode()))
    }

    fn waiter(self, joined: Revision, request: Request) -> Bytes {
        let joined = name::hex(joined.cast_unsigned());
        Bytes::from(format!("weft/semaphore/{}/waiter/{joined}-{}", name::encode(self.0), request.encode()))
    }
}

/// What a key says behind the semaphore's name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum KeyPart {
    Limit,
    Holder(Request),
    Waiter(Revision, Request),
}

impl KeyPart {
    pub(crate) fn parse(part: &str) -> Option<Self> {
        if part == "limit" {
            return Some(Self::Limit);
        }
        let (kind, id) = part.split_once('/')?;
        match kind {
            "holder" => Some(Self::Holder(Request::decode(id)?)),
            "waiter" => {
                let (joined, request) = id.split_once('-')?;
                Some(Self::Waiter(name::unhex(joined)?.cast_signed(), Request::decode(request)?))
            }
            _ => None,
        }
    }
}

impl Request {
    fn encode(self) -> String {
        format!("{}-{}", name::hex(self.lease.cast_unsigned()), name::hex(self.request_id))
    }

    fn decode(id: &str) -> Option<Self> {
        let (lease, request_id) = id.split_once('-')?;
        Some(Self { lease: name::unhex(lease)?.cast_signed(), request_id: name::unhex(request_id)? })
    }
}

#[derive(Serialize, Deserialize)]
struct LimitValue {
    limit: u32,
}

/// For readers; ids are repeated from the key, as hex text.
#[derive(Serialize, Deserialize)]
struct RequestValue {
    lease: String,
    request_id: String,
    permits: u32,
    attempt: String,
}

impl RequestValue {
    fn new(request: Request, claim: Claim) -> Self {
        Self {
            lease: name::hex(request.lease.cast_unsigned()),
            request_id: name::hex(request.request_id),
            permits: claim.permits,
            attempt: name::hex(claim.attempt),
        }
    }

    fn claim(&self) -> Option<Claim> {
        Some(Claim { permits: self.permits, attempt: name::unhex(&self.attempt)? })
    }
}

/// Limit of a semaphore that was never given one: a lock.
const DEFAULT_LIMIT: u32 = 1;
