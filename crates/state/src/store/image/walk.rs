//! Writing an image while commands go on.
//!
//! At the begin the small things are fixed, in constant time: revisions, log position, hash. From then on
//! the store keeps what this moment needs (a *pin*): versions that the walk may still read are not given
//! back, and a lease that changes leaves behind what it was. Each step then takes a few tens of
//! microseconds under the read lock. The pins are gone when the walk is dropped.

use std::{
    ops::Bound,
    sync::{Arc, Weak},
};

use super::{
    Append, Beside, CHUNK_BYTES, CHUNK_HEADER_BYTES, FORMAT_VERSION, Head, ImageLive, ImageVersion,
    LogPosition, MAGIC, Raw, Record, checksum,
};
use crate::{
    command::{LeaseId, Revision},
    store::{key::Key, mvcc::Store, quota::QuotaView},
};

/// Keys looked at in one step, most of them perhaps made after the image's moment.
const KEYS_PER_STEP: usize = 1_000;

/// Leases looked at in one step.
const LEASES_PER_STEP: usize = 2_000;

/// The machine was replaced by another one: this walk cannot go on. Begin anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the state was replaced while an image of it was written")]
pub struct WalkLost;

/// An image on its way. See [`crate::machine::Machine::begin_image`].
#[derive(Debug)]
pub struct ImageWalk {
    /// None for a walk that nothing can change under.
    pin: Option<Arc<()>>,
    /// Dropped when the leases are written.
    lease_pin: Option<Arc<()>>,
    head: Head,
    quotas: Vec<QuotaView>,
    stage: Stage,
    leases: u64,
    keys: u64,
    versions: u64,
    /// Gone when it is written.
    beside: Beside,
    /// Chunks completed.
    chunks: u32,
    /// Of the chunk under way.
    payload: Vec<u8>,
}

#[derive(Debug)]
enum Stage {
    Head,
    Leases {
        after: Bound<LeaseId>,
    },
    /// Up to this version of this key.
    Keys {
        after: Option<(Key, Revision)>,
    },
    Beside,
    Clients {
        written: u64,
        after: Bound<u64>,
    },
    Done,
}

/// What a store keeps for walks that are under way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pins {
    versions: Vec<(Weak<()>, Revision)>,
}

impl Pins {
    /// The revision that `compacted` counts as when memory is given back.
    pub(crate) fn horizon(&mut self, compacted: Revision) -> Revision {
        self.versions.retain(|(pin, _)| pin.strong_count() > 0);
        self.versions.iter().map(|(_, revision)| *revision).fold(compacted, Revision::min)
    }

    fn add(&mut self, revision: Revision) -> Arc<()> {
        let pin = Arc::new(());
        self.versions.push((Arc::downgrade(&pin), revision));
        pin
    }

    fn has(&self, pin: &Arc<()>) -> bool {
        self.versions.iter().any(|(known, _)| std::ptr::eq(known.as_ptr(), Arc::as_ptr(pin)))
    }
}

impl ImageWalk {
    /// Of a store that does not change until the walk is done.
    pub(crate) fn of(store: &Store, beside: Beside, position: LogPosition) -> Self {
        let head = Head {
            revision: store.revision,
            compacted: store.compacted,
            position,
            hash: store.hash(),
            last_grant: store.leases.last_grant(),
        };
        Self {
            pin: None,
            lease_pin: None,
            head,
            quotas: store.quotas().collect(),
            stage: Stage::Head,
            leases: 0,
            keys: 0,
            versions: 0,
            beside,
            chunks: 0,
            payload: Vec::new(),
        }
    }

    /// Of a store that goes on.
    pub(crate) fn begin(store: &mut Store, beside: Beside, position: LogPosition) -> Self {
        let compacted = store.compacted;
        let (pin, lease_pin) = (store.pins.add(compacted), store.leases.pin());
        Self { pin: Some(pin), lease_pin: Some(lease_pin), ..Self::of(store, beside, position) }
    }

    /// Appends the next bytes; false when that was all.
    pub(crate) fn step(&mut self, store: &Store, out: &mut Vec<u8>) -> Result<bool, WalkLost> {
        if self.pin.as_ref().is_some_and(|pin| !store.pins.has(pin)) {
            return Err(WalkLost);
        }
        match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Head => {
                out.extend_from_slice(&MAGIC);
                out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
                self.record(&Record::Head(self.head), out);
                for QuotaView { prefix, quota, .. } in std::mem::take(&mut self.quotas) {
                    self.record(&Record::Quota { prefix: Raw(&prefix), quota }, out);
                }
                self.stage = Stage::Leases { after: Bound::Unbounded };
            }
            Stage::Leases { after } => {
                let mut last = None;
                let pin = self.lease_pin.clone();
                for terms in store.leases.at_pin(pin.as_ref(), after).take(LEASES_PER_STEP) {
                    last = Some(terms.id);
                    self.leases += 1;
                    let record = Record::Lease { id: terms.id, ttl_secs: terms.ttl_secs, grant: terms.grant };
                    self.record(&record, out);
                    if let Some(secs) = terms.remaining_secs {
                        self.record(&Record::Remaining { secs }, out);
                    }
                }
                self.stage = match last {
                    Some(id) => Stage::Leases { after: Bound::Excluded(id) },
                    None => {
                        self.lease_pin = None;
                        Stage::Keys { after: None }
                    }
                };
            }
            Stage::Keys { after } => self.stage = self.keys(store, after, out),
            Stage::Beside => {
                let auth = self.beside.auth.encode();
                let requests = self.beside.requests.head();
                self.record(&Record::Beside { auth: Raw(&auth), requests }, out);
                self.stage = Stage::Clients { written: 0, after: Bound::Unbounded };
            }
            Stage::Clients { written, after } => self.stage = self.clients(written, after, out),
            Stage::Done => return Ok(false),
        }
        Ok(true)
    }

    fn keys(&mut self, store: &Store, after: Option<(Key, Revision)>, out: &mut Vec<u8>) -> Stage {
        let Head { revision, compacted, .. } = self.head;
        let start = after.as_ref().map_or(Bound::Unbounded, |(key, _)| Bound::Included(&key[..]));
        let mut looked_at = 0;
        for (key, index) in store.index.range((start, Bound::Unbounded)) {
            let written = after.as_ref().filter(|(last, _)| last == key).map(|(_, version)| *version);
            let mut begun = written.is_some();
            let chunks = self.chunks;
            for version in index.retained(compacted) {
                if version.mod_revision > revision {
                    break;
                }
                if written.is_some_and(|written| version.mod_revision <= written) {
                    continue;
                }
                if !begun {
                    begun = true;
                    self.keys += 1;
                    self.record(&Record::Key(Raw(key)), out);
                }
                self.versions += 1;
                let sub = match version.mod_revision {
                    before if before < compacted => 0,
                    made => store.changes.sub_revision(made, key),
                };
                let live = version.is_live().then(|| ImageLive {
                    create_revision: version.create_revision,
                    version: version.version,
                    lease: version.lease,
                    value: Raw(version.value.as_slice()),
                });
                let record = ImageVersion { mod_revision: version.mod_revision, sub, live };
                self.record(&Record::Version(record), out);
                if self.chunks != chunks {
                    return Stage::Keys { after: Some((key.clone(), version.mod_revision)) };
                }
            }
            looked_at += 1;
            if looked_at == KEYS_PER_STEP {
                return Stage::Keys { after: Some((key.clone(), Revision::MAX)) };
            }
        }
        Stage::Beside
    }

    fn clients(&mut self, mut written: u64, after: Bound<u64>, out: &mut Vec<u8>) -> Stage {
        let requests = self.beside.requests.clone();
        let chunks = self.chunks;
        for (id, client) in requests.encoded_from(after) {
            written += 1;
            self.record(&Record::Client(id, Raw(&client)), out);
            if self.chunks != chunks {
                return Stage::Clients { written, after: Bound::Excluded(id) };
            }
        }
        let Self { leases, keys, versions, .. } = *self;
        self.record(&Record::End { leases, keys, versions, clients: written }, out);
        self.flush(out);
        self.beside = Beside::default();
        Stage::Done
    }

    fn record(&mut self, record: &Record<'_>, out: &mut Vec<u8>) {
        postcard::serialize_with_flavor(record, Append(&mut self.payload))
            .expect("a vector takes any record of plain fields");
        if self.payload.len() >= CHUNK_BYTES {
            self.flush(out);
        }
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        out.reserve(CHUNK_HEADER_BYTES + self.payload.len());
        out.extend_from_slice(&(self.payload.len() as u32).to_le_bytes());
        out.extend_from_slice(&checksum(self.chunks, &self.payload).to_le_bytes());
        out.append(&mut self.payload);
        self.chunks += 1;
    }
}
