//! Elections.
//!
//! ```text
//! weft/election/NAME/leader                       {"lease":…,"value":…,"attempt":…}
//! weft/election/NAME/candidate/JOINED-LEASE       the same
//! ```
//!
//! Ids are 16 hex digits; JOINED is the revision at which the candidate joined, so that key order is queue
//! order. A value that is not UTF-8 text stands as hex digits under `value_hex`. The leader's fencing token
//! is the create revision of the leader key; a proclamation keeps it, and so does a repeated campaign, whose
//! attempt replaces that of the earlier call.
//!
//! Invariant: if there is a candidate there is a leader.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    command::{Acquired, Campaign, Event, EventKind, Grant, KeyValue, LeaseId, Proclaim, Resign, Revision},
    error::StoreError,
    recipes::{json, name, queue::Queue},
    store::Store,
};

/// Longest queue of candidates of one election; `Full` beyond it.
pub const CANDIDATES_MAX: usize = 65_536;

/// An election as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElectionView {
    /// Who leads, with its value.
    pub leader: Option<(Grant, Bytes)>,
    /// Who waits, head first.
    pub candidates: Vec<ElectionCandidate>,
}

/// A session that waits to lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElectionCandidate {
    /// Its session.
    pub lease: LeaseId,
    /// The value it will lead with.
    pub value: Bytes,
    /// The key that stands for its place.
    pub candidate_key: Bytes,
}

/// Under which all keys of election `name` are.
pub fn prefix(name: &str) -> String {
    format!("weft/election/{}/", name::encode(name))
}

/// The key that stands for leadership of election `name`: what observers watch.
pub fn leader_key(name: &str) -> Bytes {
    Bytes::from(format!("weft/election/{}/leader", name::encode(name)))
}

/// What a leader key's value says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderValue {
    /// The leader's session.
    pub lease: LeaseId,
    /// The value it campaigned with or proclaimed last.
    pub value: Bytes,
}

/// Reads the value of a leader key or of a candidate's key; none if it is not one.
pub fn decode_leader(value: &[u8]) -> Option<LeaderValue> {
    let (lease, Candidacy { value, .. }) = StoredValue::decode(value)?;
    Some(LeaderValue { lease, value })
}

/// Whether an event of a leader key is news to observers. False when only a repeated campaign of the
/// leader took over from its earlier call. The event has its previous value.
pub fn is_news(event: &Event) -> bool {
    let Some(before) = &event.prev_kv else { return true };
    if event.kind == EventKind::Delete || before.create_revision != event.kv.create_revision {
        return true;
    }
    // A proclamation is told even if it says the same again; it never changes the attempt.
    match (StoredValue::decode(&before.value), StoredValue::decode(&event.kv.value)) {
        (Some((_, before)), Some((_, after))) => before.attempt == after.attempt,
        _ => true,
    }
}

/// All elections that have a leader.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Elections {
    by_name: BTreeMap<String, Election>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Election {
    leader: Option<Leader>,
    candidates: Queue<LeaseId, Candidacy>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Leader {
    lease: LeaseId,
    fence: Revision,
    candidacy: Candidacy,
}

/// What a session stands or leads with.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidacy {
    value: Bytes,
    /// The newest call of the campaign: the only one whose undo counts.
    attempt: u64,
}

impl Elections {
    /// # Errors
    /// `NameOutOfRange`, `LeaseNotFound`, `Full`.
    pub(crate) fn campaign(
        &mut self,
        store: &mut Store,
        events: &mut Vec<Event>,
        campaign: &Campaign,
    ) -> Result<Acquired, StoreError> {
        let Campaign { name, lease, value, attempt } = campaign;
        name::check(name)?;
        if !store.leases.contains(*lease) {
            return Err(StoreError::LeaseNotFound { id: *lease });
        }
        let waiting = match self.by_name.get_mut(name) {
            Some(election) => {
                if let Some(known) = election.known(name, *lease) {
                    election.take_over(store, events, name, *lease, *attempt);
                    return Ok(known);
                }
                election.candidates.len()
            }
            None => 0,
        };
        if waiting >= CANDIDATES_MAX {
            let what = format!("queue of election {name}");
            return Err(StoreError::Full { what, limit: CANDIDATES_MAX as u64 });
        }
        let candidacy = Candidacy { value: value.clone(), attempt: *attempt };
        let election = self.by_name.entry(name.clone()).or_default();
        if election.leader.is_none() {
            return Ok(Acquired::Granted(election.lead(store, events, name, *lease, candidacy, None)));
        }
        let stored = json(&StoredValue::new(*lease, &candidacy));
        let (joined, waiter_key) = store.revise(events, |writer| {
            let joined = writer.revision();
            let key = candidate_key(name, joined, *lease);
            writer.set(key.clone(), stored, *lease);
            (joined, key)
        });
        let position = election.candidates.len() as u64;
        election.candidates.join(joined, *lease, candidacy);
        Ok(Acquired::Queued { key: leader_key(name), waiter_key, position })
    }

    /// # Errors
    /// `StaleToken` unless lease and token are the present leader's.
    pub(crate) fn proclaim(
        &mut self,
        store: &mut Store,
        events: &mut Vec<Event>,
        proclaim: &Proclaim,
    ) -> Result<(), StoreError> {
        let Proclaim { name, lease, fence, value } = proclaim;
        name::check(name)?;
        let leader = self.by_name.get_mut(name).and_then(|election| election.leader.as_mut());
        match leader {
            Some(leader) if leader.fence == *fence && leader.lease == *lease => {
                leader.candidacy.value = value.clone();
                let stored = json(&StoredValue::new(*lease, &leader.candidacy));
                store.revise(events, |writer| {
                    writer.set(leader_key(name), stored, *lease);
                });
                Ok(())
            }
            leader => {
                Err(StoreError::StaleToken { seen: *fence, current: leader.map_or(0, |leader| leader.fence) })
            }
        }
    }

    /// Gives up leadership or candidacy; false if the session has neither, or a newer call has it.
    pub(crate) fn resign(
        &mut self,
        store: &mut Store,
        events: &mut Vec<Event>,
        resign: &Resign,
    ) -> Result<bool, StoreError> {
        let Resign { name, lease, attempt } = resign;
        name::check(name)?;
        let Some(election) = self.by_name.get_mut(name) else { return Ok(false) };
        let Some((key, candidacy)) = election.candidacy(name, *lease) else { return Ok(false) };
        if attempt.is_some_and(|attempt| attempt != candidacy.attempt) {
            return Ok(false);
        }
        if election.candidates.leave(*lease).is_none() {
            election.leader = None;
        }
        store.revise(events, |writer| writer.delete(&key));
        self.settle(store, events, name);
        Ok(true)
    }

    /// Makes the head of the queue the leader if there is none.
    pub(crate) fn settle(&mut self, store: &mut Store, events: &mut Vec<Event>, name: &str) {
        let Some(election) = self.by_name.get_mut(name) else { return };
        if election.leader.is_some() {
            return;
        }
        match election.candidates.head().map(|(_, lease, _)| lease) {
            Some(lease) => {
                if let Some((joined, candidacy)) = election.candidates.leave(lease) {
                    election.lead(store, events, name, lease, candidacy, Some(joined));
                }
            }
            None => {
                self.by_name.remove(name);
            }
        }
    }

    /// A key went with its lease. [`Elections::settle`] is the caller's to call, after all are gone.
    pub(crate) fn key_gone(&mut self, name: &str, part: &KeyPart) {
        let Some(election) = self.by_name.get_mut(name) else { return };
        match part {
            KeyPart::Leader => election.leader = None,
            KeyPart::Candidate(_, lease) => {
                election.candidates.leave(*lease);
            }
        }
    }

    /// Takes in a stored key; none if its value is not one of ours.
    pub(crate) fn load(&mut self, name: String, part: KeyPart, kv: &KeyValue) -> Option<()> {
        let (lease, candidacy) = StoredValue::decode(&kv.value)?;
        let election = self.by_name.entry(name).or_default();
        match part {
            KeyPart::Leader => {
                election.leader = Some(Leader { lease, fence: kv.create_revision, candidacy });
            }
            KeyPart::Candidate(joined, lease) => election.candidates.join(joined, lease, candidacy),
        }
        Some(())
    }

    pub(crate) fn view(&self, name: &str) -> Option<ElectionView> {
        let election = self.by_name.get(name)?;
        Some(ElectionView {
            leader: election
                .leader
                .as_ref()
                .map(|leader| (leader.grant(name), leader.candidacy.value.clone())),
            candidates: election
                .candidates
                .iter()
                .map(|(joined, lease, candidacy)| ElectionCandidate {
                    lease,
                    value: candidacy.value.clone(),
                    candidate_key: candidate_key(name, joined, lease),
                })
                .collect(),
        })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.by_name.keys()
    }
}

impl Election {
    /// Where a session stands that campaigned before.
    fn known(&self, name: &str, lease: LeaseId) -> Option<Acquired> {
        if let Some(leader) = self.leader.as_ref().filter(|leader| leader.lease == lease) {
            return Some(Acquired::Granted(leader.grant(name)));
        }
        let joined = self.candidates.joined(lease)?;
        Some(Acquired::Queued {
            key: leader_key(name),
            waiter_key: candidate_key(name, joined, lease),
            position: self.candidates.ahead_of(joined),
        })
    }

    /// What a session stands or leads with, and the key that stands for it.
    fn candidacy(&mut self, name: &str, lease: LeaseId) -> Option<(Bytes, &mut Candidacy)> {
        if let Some(leader) = self.leader.as_mut().filter(|leader| leader.lease == lease) {
            return Some((leader_key(name), &mut leader.candidacy));
        }
        let (joined, candidacy) = self.candidates.waiting(lease)?;
        Some((candidate_key(name, joined, lease), candidacy))
    }

    /// What the session has is this call's from now on. A revision of the same key: place, value and fencing
    /// token stay.
    fn take_over(
        &mut self,
        store: &mut Store,
        events: &mut Vec<Event>,
        name: &str,
        lease: LeaseId,
        attempt: u64,
    ) {
        if let Some((key, candidacy)) = self.candidacy(name, lease)
            && candidacy.attempt != attempt
        {
            candidacy.attempt = attempt;
            let stored = json(&StoredValue::new(lease, candidacy));
            store.revise(events, |writer| {
                writer.set(key, stored, lease);
            });
        }
    }

    /// A new leader is one revision, which is its fencing token; its place in the queue goes in the same.
    fn lead(
        &mut self,
        store: &mut Store,
        events: &mut Vec<Event>,
        name: &str,
        lease: LeaseId,
        candidacy: Candidacy,
        joined: Option<Revision>,
    ) -> Grant {
        let stored = json(&StoredValue::new(lease, &candidacy));
        let fence = store.revise(events, |writer| {
            if let Some(joined) = joined {
                writer.delete(&candidate_key(name, joined, lease));
            }
            writer.set(leader_key(name), stored, lease);
            writer.revision()
        });
        self.leader.insert(Leader { lease, fence, candidacy }).grant(name)
    }
}

impl Leader {
    fn grant(&self, name: &str) -> Grant {
        Grant { fence: self.fence, lease: self.lease, key: leader_key(name) }
    }
}

/// What a key says behind the election's name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum KeyPart {
    Leader,
    Candidate(Revision, LeaseId),
}

impl KeyPart {
    pub(crate) fn parse(part: &str) -> Option<Self> {
        if part == "leader" {
            return Some(Self::Leader);
        }
        let (joined, lease) = part.strip_prefix("candidate/")?.split_once('-')?;
        Some(Self::Candidate(name::unhex(joined)?.cast_signed(), name::unhex(lease)?.cast_signed()))
    }
}

fn candidate_key(name: &str, joined: Revision, lease: LeaseId) -> Bytes {
    let (joined, lease) = (name::hex(joined.cast_unsigned()), name::hex(lease.cast_unsigned()));
    Bytes::from(format!("weft/election/{}/candidate/{joined}-{lease}", name::encode(name)))
}

/// JSON has no bytes: text stands as it is, anything else as hex digits.
#[derive(Serialize, Deserialize)]
struct StoredValue {
    lease: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_hex: Option<String>,
    attempt: String,
}

impl StoredValue {
    fn new(lease: LeaseId, candidacy: &Candidacy) -> Self {
        let Candidacy { value, attempt } = candidacy;
        let (value, value_hex) = match std::str::from_utf8(value) {
            Ok(text) => (Some(text.to_owned()), None),
            Err(_) => (None, Some(value.iter().map(|byte| format!("{byte:02x}")).collect())),
        };
        Self { lease: name::hex(lease.cast_unsigned()), value, value_hex, attempt: name::hex(*attempt) }
    }

    /// None if the bytes are not one.
    fn decode(value: &[u8]) -> Option<(LeaseId, Candidacy)> {
        let stored: Self = serde_json::from_slice(value).ok()?;
        let value = match (stored.value, stored.value_hex) {
            (Some(text), None) => Bytes::from(text),
            (None, Some(digits)) => decode_hex(&digits)?,
            _ => return None,
        };
        let candidacy = Candidacy { value, attempt: name::unhex(&stored.attempt)? };
        Some((name::unhex(&stored.lease)?.cast_signed(), candidacy))
    }
}

fn decode_hex(digits: &str) -> Option<Bytes> {
    let (pairs, []) = digits.as_bytes().as_chunks::<2>() else { return None };
    pairs.iter().map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_stands_in_the_key_as_it_is() {
        let candidacy = Candidacy { value: Bytes::from_static(b"node-1"), attempt: 0xa };
        let stored = json(&StoredValue::new(0x1f, &candidacy));
        let text = r#"{"lease":"000000000000001f","value":"node-1","attempt":"000000000000000a"}"#;
        assert_eq!(stored, text);
        assert_eq!(decode_leader(b"node-1"), None);
        assert_eq!(decode_leader(br#"{"lease":"000000000000001f","attempt":"000000000000000a"}"#), None);
    }

    proptest! {
        #[test]
        fn any_value_comes_back_as_it_was(lease: LeaseId, value: Vec<u8>, attempt: u64) {
            let candidacy = Candidacy { value: Bytes::from(value), attempt };
            let stored = json(&StoredValue::new(lease, &candidacy));
            prop_assert_eq!(StoredValue::decode(&stored), Some((lease, candidacy)));
        }
    }
}
