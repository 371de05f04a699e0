//! Reading an image as its bytes come.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    Beside, CHUNK_HEADER_BYTES, FORMAT_VERSION, HEADER_BYTES, Head, ImageError, ImageVersion, LogPosition,
    MAGIC, PAYLOAD_BYTES_MAX, Record, checksum, inconsistent,
};
use crate::{
    auth::AuthState,
    command::{Quota, Revision},
    defect::{Defect, planted},
    lease::LeaseTerms,
    requests::Requests,
    store::{
        key::Key,
        key_index::{KeyIndex, Version},
        key_map::KeyMap,
        mvcc::Store,
    },
};

/// Checks the framing and the checksums of an image without building its state.
#[derive(Debug, Default)]
pub struct ImageCheck {
    frames: Frames,
}

impl ImageCheck {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// As soon as something is wrong with what came so far.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        self.frames.feed(bytes, |_, _| Ok(()))
    }

    /// There are no more bytes.
    ///
    /// # Errors
    /// If there should be.
    pub fn finish(self) -> Result<(), ImageError> {
        self.frames.finish()
    }
}

/// Builds the state from an image. [`crate::machine::Machine::from_loader`] ends it.
#[derive(Debug, Default)]
pub struct ImageLoader {
    frames: Frames,
    build: Build,
}

impl ImageLoader {
    /// Nothing was read yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// As soon as something is wrong with what came so far.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        let Self { frames, build } = self;
        frames.feed(bytes, |record, is_last| build.record(record, is_last))
    }

    /// Whether the image's end has come: further bytes do not belong to it.
    pub fn is_complete(&self) -> bool {
        self.frames.ended
    }

    pub(crate) fn finish(self) -> Result<(Store, Beside, LogPosition), ImageError> {
        self.frames.finish()?;
        self.build.finish()
    }
}

/// Finds chunks and records in bytes that come in pieces of any size.
#[derive(Debug, Default)]
struct Frames {
    /// What came and is not a whole chunk yet.
    pending: Vec<u8>,
    seen: u64,
    begun: bool,
    chunks: u32,
    ended: bool,
}

impl Frames {
    fn feed(
        &mut self,
        bytes: &[u8],
        mut record: impl FnMut(Record<'_>, bool) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        self.seen += bytes.len() as u64;
        self.pending.extend_from_slice(bytes);
        let mut rest = &self.pending[..];
        if !self.begun {
            if !rest.starts_with(&MAGIC[..rest.len().min(MAGIC.len())]) {
                return Err(ImageError::NotAnImage { seen: rest[..rest.len().min(8)].to_vec() });
            }
            if rest.len() < HEADER_BYTES {
                return Ok(());
            }
            match u32_at(rest, 8) {
                FORMAT_VERSION => {}
                0 => return Err(inconsistent("format version 0 was never written")),
                seen => return Err(ImageError::NewerVersion { seen, supported: FORMAT_VERSION }),
            }
            self.begun = true;
            rest = &rest[HEADER_BYTES..];
        }
        while rest.len() >= CHUNK_HEADER_BYTES && !self.ended {
            let (length, stored) = (u32_at(rest, 0) as usize, u32_at(rest, 4));
            if length > PAYLOAD_BYTES_MAX {
                return Err(inconsistent(&format!(
                    "chunk {} of {length} bytes, allowed are {PAYLOAD_BYTES_MAX}",
                    self.chunks
                )));
            }
            let Some(payload) = rest.get(CHUNK_HEADER_BYTES..CHUNK_HEADER_BYTES + length) else { break };
            let computed = checksum(self.chunks, payload);
            if stored != computed {
                return Err(ImageError::Checksum { chunk: self.chunks, stored, computed });
            }
            self.ended = records(payload, &mut record)?;
            self.chunks += 1;
            rest = &rest[CHUNK_HEADER_BYTES + length..];
        }
        if self.ended && !rest.is_empty() {
            return Err(ImageError::TrailingBytes { extra: rest.len() as u64 });
        }
        let taken = self.pending.len() - rest.len();
        self.pending.drain(..taken);
        Ok(())
    }

    fn finish(&self) -> Result<(), ImageError> {
        if self.ended { Ok(()) } else { Err(ImageError::Truncated { seen: self.seen }) }
    }
}

/// True if the end was among them.
fn records(
    mut payload: &[u8],
    record: &mut impl FnMut(Record<'_>, bool) -> Result<(), ImageError>,
) -> Result<bool, ImageError> {
    while !payload.is_empty() {
        let (next, rest) = postcard::take_from_bytes::<Record<'_>>(payload)
            .map_err(|error| inconsistent(&format!("unreadable record: {error}")))?;
        let is_end = matches!(next, Record::End { .. });
        record(next, rest.is_empty())?;
        if is_end {
            return Ok(true);
        }
        payload = rest;
    }
    Ok(false)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

/// The state so far.
#[derive(Debug, Default)]
struct Build {
    head: Option<Head>,
    quotas: Vec<(Bytes, Quota)>,
    store: Store,
    leases: u64,
    versions: u64,
    /// In order, so that the tree can be built whole.
    keys: Vec<(Key, Box<KeyIndex>)>,
    /// The key whose versions are being read.
    current: Option<(Key, Option<Box<KeyIndex>>)>,
    /// By key, to be ordered by revision.
    changes: Vec<(Revision, u32, Key)>,
    beside: Option<(AuthState, Requests)>,
    ended: bool,
}

impl Build {
    fn record(&mut self, record: Record<'_>, is_last: bool) -> Result<(), ImageError> {
        match (record, self.head) {
            (Record::Head(head), None) => {
                self.head = Some(head);
                self.store.revision = head.revision;
                self.store.compacted = head.compacted;
                self.store.leases.load_last_grant(head.last_grant);
                if head.revision < 1 || !(0..=head.revision).contains(&head.compacted) {
                    return Err(inconsistent("revisions that no state has"));
                }
            }
            (Record::Quota { prefix, quota }, Some(_))
                if self.leases == 0 && self.keys.is_empty() && self.current.is_none() =>
            {
                if self.quotas.last().is_some_and(|(last, _)| last[..] >= *prefix.0) {
                    return Err(inconsistent("quotas out of order"));
                }
                self.quotas.push((Bytes::copy_from_slice(prefix.0), quota));
            }
            (Record::Lease { id, ttl_secs, grant }, Some(_))
                if self.keys.is_empty() && self.current.is_none() =>
            {
                self.leases += 1;
                if !self.store.leases.load(LeaseTerms { id, ttl_secs, grant, remaining_secs: None }) {
                    return Err(inconsistent("a lease out of order or with a grant that was never made"));
                }
            }
            (Record::Remaining { secs }, Some(_)) if self.keys.is_empty() && self.current.is_none() => {
                if !self.store.leases.load_remaining(secs) {
                    return Err(inconsistent("a time left that its lease cannot have"));
                }
            }
            (Record::Key(key), Some(_)) if self.beside.is_none() => {
                self.complete_key()?;
                if self.keys.last().is_some_and(|(last, _)| last[..] >= *key.0) {
                    return Err(inconsistent("keys out of order"));
                }
                self.current = Some((Key::from(key.0), None));
            }
            (Record::Version(version), Some(head)) => self.version(&head, version)?,
            (Record::Beside { auth, requests }, Some(_)) if self.beside.is_none() => {
                self.complete_key()?;
                let auth = AuthState::decode(auth.0).map_err(|what| inconsistent(&what))?;
                self.beside = Some((auth, Requests::begin_load(requests)));
            }
            (Record::Client(id, client), Some(_)) => {
                let Some((_, requests)) = &mut self.beside else {
                    return Err(inconsistent("records out of order"));
                };
                requests.load(id, client.0).map_err(|what| inconsistent(&what))?;
            }
            (Record::End { leases, keys, versions, clients }, Some(_))
                if is_last && self.beside.is_some() =>
            {
                let read = self.beside.as_ref().map_or(0, |(_, requests)| requests.len() as u64);
                let counted = (self.leases, self.keys.len() as u64, self.versions, read);
                if (leases, keys, versions, clients) != counted {
                    return Err(inconsistent("another number of records than announced"));
                }
                self.ended = true;
            }
            _ => return Err(inconsistent("records out of order")),
        }
        Ok(())
    }

    fn version(&mut self, head: &Head, version: ImageVersion<'_>) -> Result<(), ImageError> {
        let Some((key, index)) = &mut self.current else { return Err(inconsistent("a version of no key")) };
        let last = index.as_ref().map_or(0, |index| index.latest().mod_revision);
        if version.mod_revision <= last || version.mod_revision > head.revision {
            return Err(inconsistent("versions out of order"));
        }
        self.versions += 1;
        if version.mod_revision >= head.compacted {
            self.changes.push((version.mod_revision, version.sub, key.clone()));
        }
        let made = match version.live {
            None => Version::tombstone(version.mod_revision),
            Some(live) if live.version < 1 => return Err(inconsistent("a version below 1")),
            Some(live) => {
                let life = (live.create_revision, live.version);
                Version::live(key, live.value.0, live.lease, life, version.mod_revision)
            }
        };
        self.store.data_bytes += made.value_bytes();
        match index {
            None => *index = Some(Box::new(KeyIndex::new(made))),
            Some(index) => index.push(made),
        }
        Ok(())
    }

    fn complete_key(&mut self) -> Result<(), ImageError> {
        let Some((key, index)) = self.current.take() else { return Ok(()) };
        let index = index.ok_or_else(|| inconsistent("a key without versions"))?;
        let store = &mut self.store;
        store.data_bytes += key.len() as u64;
        store.past_bytes += index.older_bytes();
        if let Some(current) = index.current() {
            store.live += 1;
            store.digest = store.digest.wrapping_add(current.digest);
            if current.lease != 0 && !store.leases.contains(current.lease) {
                return Err(inconsistent("a key of a lease that does not exist"));
            }
            store.leases.attach(current.lease, key.clone());
        }
        self.keys.push((key, index));
        Ok(())
    }

    fn finish(mut self) -> Result<(Store, Beside, LogPosition), ImageError> {
        let head = self.head.filter(|_| self.ended).ok_or_else(|| inconsistent("no head or no end"))?;
        let mut store = self.store;
        store.index = KeyMap::from_sorted(self.keys);
        self.changes.sort_unstable_by_key(|(revision, sub, _)| (*revision, *sub));
        let mut previous = (0, 0);
        for (revision, sub, key) in self.changes {
            let expected = if revision == previous.0 { previous.1 + 1 } else { 0 };
            if sub != expected {
                return Err(inconsistent("changes of one revision that do not follow each other"));
            }
            previous = (revision, sub);
            store.changes.push(revision, key);
        }
        for (prefix, quota) in self.quotas {
            store
                .set_quota(&prefix, Some(quota))
                .map_err(|error| inconsistent(&format!("a quota that cannot be: {error}")))?;
        }
        if store.hash() != head.hash {
            return Err(inconsistent("the content's hash differs from the one written with it"));
        }
        if planted(Defect::RevisionAfterRestore) {
            store.revision -= 1;
        }
        let (auth, requests) = self.beside.unwrap_or_default();
        Ok((store, Beside { auth: Arc::new(auth), requests: Arc::new(requests) }, head.position))
    }
}
