//! Which requests were carried out already, so that a repeated one is answered and not done again (Raft thesis
//! §6.3; P14, A06).
//!
//! ```text
//! unknown client ──request──► carried out, answer kept ──repeated──► the kept answer
//!       │                            │ WINDOW newer ones                    │ client forgotten
//!       ▼                            ▼                                      ▼
//!  refused, if it may have     refused: too late to know         refused: too late to know
//!  been forgotten
//! ```
//! A client is a random number that a program draws once; a request is a number that it counts up. What was
//! refused changed nothing and is not kept: it may be asked again, until the client says that it was answered
//! ([`RequestId::answered`]).
//!
//! The table is bounded in bytes. When it is full the client that was idle for longest is forgotten, on every replica
//! alike. A request of a client that is not known is then ambiguous: it is either its first, or a late repetition.
//! To tell these apart the table remembers how far the log was when it last saw any client that it forgot, and a request
//! says how far the log was before it was first sent ([`RequestId::after`]). If the latter is not smaller, the request
//! cannot have been carried out and forgotten; else it is refused, and whoever has not sent it before asks again with
//! a later position. It is never carried out twice.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    command::{Command, KeyValue, Response, Revision, TxnOpResponse, TxnResponse},
    error::StoreError,
    store::digest::Digest,
};

/// Answers kept for one client that does not say what was answered ([`RequestId::answered`]). A client that has more calls
/// under way than this may hear that it is too late to know about the oldest.
pub const WINDOW: usize = 1024;

/// Answers kept for one client that does: as many requests as it may have under way, with a stream of writes in large
/// messages in mind.
pub const OUTSTANDING_MAX: usize = 32_768;

/// Bytes that all clients and their kept answers may take, as counted by this module.
pub const TABLE_BYTES_MAX: usize = 32 << 20;

/// A larger answer is not kept: a repetition then hears that the request was carried out, and at which revision.
pub const ANSWER_BYTES_MAX: usize = 16 << 10;

/// What an entry takes beside the variable parts, roughly.
const ANSWER_BYTES: usize = 96;
const CLIENT_BYTES: usize = 192;

/// Names a request for good, however often it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestId {
    /// Random, drawn once by the program that asks.
    pub client: u64,
    /// Counted up by it; from 1.
    pub seq: u64,
    /// An index that the log had reached before the request was first sent, 0 if none is known. The same in each
    /// repetition.
    pub after: u64,
    /// Requests with a number below this were answered to the client and will not be sent again; 0 or 1: it does not say.
    /// Their answers are dropped.
    pub answered: u64,
}

/// An answer that is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Kept {
    /// Of the command, to notice two requests of one name.
    command: u64,
    revision: Revision,
    /// None: it was too large.
    response: Option<Response>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Client {
    /// Which use of the table was this client's last: the smallest is forgotten first.
    used: u64,
    /// The log index of that use.
    used_at: u64,
    /// Answers up to this one are not kept any more.
    forgotten_seq: u64,
    /// [`Requests::forgotten_at`] when this entry was made: the client may have been known and forgotten before.
    known_from: u64,
    kept: BTreeMap<u64, Kept>,
}

/// All clients that are remembered. Ordered, so that every replica forgets alike. A copy, which an image that is being
/// written needs, shares the answers.
#[derive(Debug, Clone)]
pub(crate) struct Requests {
    clients: BTreeMap<u64, Arc<Client>>,
    by_use: BTreeMap<u64, u64>,
    uses: u64,
    bytes: usize,
    bytes_max: usize,
    /// The largest log index at which a client was used that is not remembered any more.
    forgotten_at: u64,
    /// Sum of the hashes of all kept answers.
    digest: u64,
}

/// What the table knows of a request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Seen {
    /// Nothing: carry it out.
    New,
    /// It was carried out and answered so.
    Before(Revision, Response),
}

impl Default for Requests {
    fn default() -> Self {
        Self::with_room(TABLE_BYTES_MAX)
    }
}

impl Requests {
    pub(crate) fn with_room(bytes_max: usize) -> Self {
        Self {
            clients: BTreeMap::new(),
            by_use: BTreeMap::new(),
            uses: 0,
            bytes: 0,
            bytes_max,
            forgotten_at: 0,
            digest: 0,
        }
    }

    /// # Errors
    /// `TooLateToKnow` if it may have been carried out; `AnswerNotKept` if it was; `RequestReused` if
    /// another command was.
    pub(crate) fn look_up(&self, id: RequestId, command: &Command) -> Result<Seen, StoreError> {
        let client = self.clients.get(&id.client);
        let known_from = client.map_or(self.forgotten_at, |client| client.known_from);
        match client.and_then(|client| client.kept.get(&id.seq)) {
            Some(kept) if kept.command != fingerprint(command) => {
                Err(StoreError::RequestReused { client: id.client, seq: id.seq })
            }
            Some(Kept { revision, response: Some(response), .. }) => {
                Ok(Seen::Before(*revision, response.clone()))
            }
            Some(Kept { revision, response: None, .. }) => {
                Err(StoreError::AnswerNotKept { revision: *revision })
            }
            None if id.after < known_from || client.is_some_and(|client| id.seq <= client.forgotten_seq) => {
                Err(StoreError::TooLateToKnow { known_from: self.forgotten_at })
            }
            None => Ok(Seen::New),
        }
    }

    /// Keeps the answer to a request that [`Requests::look_up`] called new, and makes room for it.
    pub(crate) fn keep(
        &mut self,
        index: u64,
        id: RequestId,
        command: &Command,
        revision: Revision,
        response: &Response,
    ) {
        let response = (bytes_of(response) <= ANSWER_BYTES_MAX).then(|| response.clone());
        let kept = Kept { command: fingerprint(command), revision, response };
        self.uses += 1;
        let client = self.clients.entry(id.client).or_insert_with(|| {
            self.bytes += CLIENT_BYTES;
            Arc::new(Client { known_from: self.forgotten_at, ..Client::default() })
        });
        let client = Arc::make_mut(client);
        self.by_use.remove(&client.used);
        self.by_use.insert(self.uses, id.client);
        (client.used, client.used_at) = (self.uses, index);
        self.bytes += kept.bytes();
        self.digest = self.digest.wrapping_add(kept.digest(id.client, id.seq));
        client.kept.insert(id.seq, kept);
        let window = if id.answered > 1 { OUTSTANDING_MAX } else { WINDOW };
        while let Some((seq, _)) = client.kept.first_key_value()
            && (*seq < id.answered.min(id.seq) || client.kept.len() > window)
        {
            let Some((seq, kept)) = client.kept.pop_first() else { break };
            client.forgotten_seq = client.forgotten_seq.max(seq);
            self.bytes -= kept.bytes();
            self.digest = self.digest.wrapping_sub(kept.digest(id.client, seq));
        }
        // A copy that is still on its way somewhere, of a request that was refused, is late from here on as well.
        client.forgotten_seq = client.forgotten_seq.max(id.answered.min(id.seq).saturating_sub(1));
        while self.bytes > self.bytes_max && self.clients.len() > 1 {
            self.forget_the_idlest();
        }
    }

    fn forget_the_idlest(&mut self) {
        let Some((_, id)) = self.by_use.pop_first() else { return };
        let Some(client) = self.clients.remove(&id) else { return };
        self.forgotten_at = self.forgotten_at.max(client.used_at);
        self.bytes -= CLIENT_BYTES;
        for (seq, kept) in &client.kept {
            self.bytes -= kept.bytes();
            self.digest = self.digest.wrapping_sub(kept.digest(id, *seq));
        }
    }

    /// Clients that are remembered.
    pub(crate) fn len(&self) -> usize {
        self.clients.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn digest(&self) -> u64 {
        Digest::new(DIGEST_DOMAIN).word(self.digest).word(self.forgotten_at).finish()
    }

    pub(crate) fn head(&self) -> RequestsHead {
        RequestsHead { uses: self.uses, forgotten_at: self.forgotten_at }
    }

    /// Clients from one on, by id, as they stand in an image.
    pub(crate) fn encoded_from(&self, after: Bound<u64>) -> impl Iterator<Item = (u64, Vec<u8>)> {
        let encode = |client: &Client| {
            postcard::to_allocvec(client).expect("a vector takes any record of plain fields")
        };
        self.clients.range((after, Bound::Unbounded)).map(move |(id, client)| (*id, encode(client)))
    }

    /// A table without its clients yet.
    pub(crate) fn begin_load(head: RequestsHead) -> Self {
        Self { uses: head.uses, forgotten_at: head.forgotten_at, ..Self::default() }
    }

    /// Takes in the next client of an image.
    ///
    /// # Errors
    /// Says what does not fit.
    pub(crate) fn load(&mut self, id: u64, encoded: &[u8]) -> Result<(), String> {
        let client: Client = postcard::from_bytes(encoded)
            .map_err(|error| format!("unreadable client of requests: {error}"))?;
        if self.clients.last_key_value().is_some_and(|(last, _)| *last >= id) {
            return Err("clients of requests out of order".to_owned());
        }
        if client.used > self.uses || self.by_use.insert(client.used, id).is_some() {
            return Err("a client with a use that was never made".to_owned());
        }
        self.bytes += CLIENT_BYTES;
        for (seq, kept) in &client.kept {
            self.bytes += kept.bytes();
            self.digest = self.digest.wrapping_add(kept.digest(id, *seq));
        }
        self.clients.insert(id, Arc::new(client));
        Ok(())
    }
}

/// What an image says of the table as a whole.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct RequestsHead {
    uses: u64,
    forgotten_at: u64,
}

impl Kept {
    fn bytes(&self) -> usize {
        ANSWER_BYTES + self.response.as_ref().map_or(0, bytes_of)
    }

    fn digest(&self, client: u64, seq: u64) -> u64 {
        Digest::new(DIGEST_DOMAIN).word(client).word(seq).word(self.command).int(self.revision).finish()
    }
}

fn fingerprint(command: &Command) -> u64 {
    let encoded = postcard::to_allocvec(command).expect("a vector takes any record of plain fields");
    Digest::new(DIGEST_DOMAIN).bytes(&encoded).finish()
}

/// Variable bytes of an answer. The values of keys are shared with the store as long as that keeps them, and are
/// counted as if they were not.
fn bytes_of(response: &Response) -> usize {
    match response {
        Response::Put { prev_kv } => prev_kv.iter().map(kv_bytes).sum(),
        Response::DeleteRange { prev_kvs, .. } => prev_kvs.iter().map(kv_bytes).sum(),
        Response::Txn(txn) => txn_bytes(txn),
        _ => 0,
    }
}

fn kv_bytes(kv: &KeyValue) -> usize {
    size_of::<KeyValue>() + kv.key.len() + kv.value.len()
}

fn txn_bytes(txn: &TxnResponse) -> usize {
    let op = |op: &TxnOpResponse| {
        size_of::<TxnOpResponse>()
            + match op {
                TxnOpResponse::Range(range) => range.kvs.iter().map(kv_bytes).sum(),
                TxnOpResponse::Put { prev_kv } => prev_kv.iter().map(kv_bytes).sum(),
                TxnOpResponse::DeleteRange { prev_kvs, .. } => prev_kvs.iter().map(kv_bytes).sum(),
                TxnOpResponse::Txn(txn) => txn_bytes(txn),
            }
    };
    txn.responses.iter().map(op).sum()
}

const DIGEST_DOMAIN: u64 = 12;

#[cfg(test)]
mod tests;
