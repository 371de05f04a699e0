//! Our own encoding of what openraft stores and sends, so that neither the files nor the wire depend on
//! the layout of its types. Everything is `postcard`; fields and variants are only ever appended.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::{
    EntryPayload,
    entry::RaftEntry,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, StreamAppendResult,
        TransferLeaderRequest, VoteRequest, VoteResponse,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::types::{
    Batch, Entry, LogId, Membership, Payload, Peer, SnapshotMeta, StoredMembership, TypeConfig, Vote, log_id,
};
use crate::wal;

/// Bytes that another server sent or that the disk held do not say what they should.
#[derive(Debug, thiserror::Error)]
#[error("{what} cannot be decoded: {reason}")]
pub struct CodecError {
    what: &'static str,
    reason: String,
}

/// Encodes; every type of ours can be.
pub fn encode<T: Serialize>(value: &T) -> Bytes {
    postcard::to_allocvec(value).expect("our types are encodable").into()
}

/// Decodes; `what` names the thing in the error.
pub fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, CodecError> {
    postcard::from_bytes(bytes).map_err(|e| CodecError { what, reason: e.to_string() })
}

/// A log id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    term: u64,
    index: u64,
}

impl From<&LogId> for Position {
    fn from(id: &LogId) -> Self {
        Self { term: id.committed_leader_id().term, index: id.index() }
    }
}

impl From<Position> for LogId {
    fn from(position: Position) -> Self {
        log_id(position.term, position.index)
    }
}

/// For the log on disk.
pub fn to_wal(id: &LogId) -> wal::LogPosition {
    wal::LogPosition { term: id.committed_leader_id().term, index: id.index() }
}

/// From the log on disk.
pub fn from_wal(position: wal::LogPosition) -> LogId {
    log_id(position.term, position.index)
}

fn position(id: &Option<LogId>) -> Option<Position> {
    id.as_ref().map(Position::from)
}

/// A vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ballot {
    term: u64,
    node: u64,
    committed: bool,
}

impl From<&Vote> for Ballot {
    fn from(vote: &Vote) -> Self {
        Self { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
    }
}

impl From<Ballot> for Vote {
    fn from(ballot: Ballot) -> Self {
        if ballot.committed {
            Vote::new_committed(ballot.term, ballot.node)
        } else {
            Vote::new(ballot.term, ballot.node)
        }
    }
}

/// For the log on disk.
pub fn vote_to_wal(vote: &Vote) -> wal::Vote {
    let ballot = Ballot::from(vote);
    wal::Vote { term: ballot.term, node: ballot.node, committed: ballot.committed }
}

/// From the log on disk.
pub fn vote_from_wal(vote: wal::Vote) -> Vote {
    Ballot { term: vote.term, node: vote.node, committed: vote.committed }.into()
}

/// The group's members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    /// One set of voters; two while the group changes from one to the other.
    configs: Vec<BTreeSet<u64>>,
    /// Everyone, learners included.
    nodes: BTreeMap<u64, Peer>,
}

impl From<&Membership> for Members {
    fn from(membership: &Membership) -> Self {
        Self {
            configs: membership.get_joint_config().clone(),
            nodes: membership.nodes().map(|(id, peer)| (*id, peer.clone())).collect(),
        }
    }
}

impl TryFrom<Members> for Membership {
    type Error = CodecError;
    fn try_from(members: Members) -> Result<Self, CodecError> {
        if members.configs.is_empty() {
            return Ok(Membership::default());
        }
        Membership::new(members.configs, members.nodes)
            .map_err(|e| CodecError { what: "membership", reason: e.to_string() })
    }
}

/// Content of a log entry.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Content {
    Blank,
    Batch(Bytes),
    Members(Members),
}

impl From<&Payload> for Content {
    fn from(payload: &Payload) -> Self {
        match payload {
            EntryPayload::Blank => Content::Blank,
            EntryPayload::Normal(batch) => Content::Batch(batch.bytes().clone()),
            EntryPayload::Membership(membership) => Content::Members(membership.into()),
        }
    }
}

impl TryFrom<Content> for Payload {
    type Error = CodecError;
    fn try_from(content: Content) -> Result<Self, CodecError> {
        Ok(match content {
            Content::Blank => EntryPayload::Blank,
            Content::Batch(bytes) => EntryPayload::Normal(Batch::from_bytes(bytes)),
            Content::Members(members) => EntryPayload::Membership(members.try_into()?),
        })
    }
}

/// For the log on disk.
pub fn entry_to_wal(entry: &Entry) -> wal::Entry {
    wal::Entry { position: to_wal(&entry.log_id), payload: encode(&Content::from(&entry.payload)) }
}

/// From the log on disk.
pub fn entry_from_wal(entry: &wal::Entry) -> Result<Entry, CodecError> {
    let content: Content = decode("log entry", &entry.payload)?;
    Ok(Entry::new(from_wal(entry.position), content.try_into()?))
}

/// `AppendEntries`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Append {
    vote: Ballot,
    previous: Option<Position>,
    committed: Option<Position>,
    entries: Vec<(Position, Content)>,
}

impl From<&AppendEntriesRequest<TypeConfig>> for Append {
    fn from(request: &AppendEntriesRequest<TypeConfig>) -> Self {
        Self {
            vote: (&request.vote).into(),
            previous: position(&request.prev_log_id),
            committed: position(&request.leader_commit),
            entries: request.entries.iter().map(|e| ((&e.log_id).into(), (&e.payload).into())).collect(),
        }
    }
}

impl TryFrom<Append> for AppendEntriesRequest<TypeConfig> {
    type Error = CodecError;
    fn try_from(append: Append) -> Result<Self, CodecError> {
        // Entries must follow each other and `previous`: openraft relies on it (openraft #1795).
        let first = append.previous.map_or(0, |p| p.index.saturating_add(1));
        let mut entries = Vec::with_capacity(append.entries.len());
        for (expected, (at, content)) in (first..).zip(append.entries) {
            if at.index != expected {
                let reason = format!("entry {} where {expected} must follow", at.index);
                return Err(CodecError { what: "append", reason });
            }
            entries.push(Entry::new(at.into(), content.try_into()?));
        }
        Ok(Self {
            vote: append.vote.into(),
            prev_log_id: append.previous.map(Into::into),
            entries,
            leader_commit: append.committed.map(Into::into),
        })
    }
}

/// Answer to [`Append`].
#[derive(Debug, Serialize, Deserialize)]
pub enum AppendAnswer {
    Success,
    Partial(Option<Position>),
    Conflict,
    HigherVote(Ballot),
}

impl From<AppendEntriesResponse<TypeConfig>> for AppendAnswer {
    fn from(response: AppendEntriesResponse<TypeConfig>) -> Self {
        match response {
            AppendEntriesResponse::Success => Self::Success,
            AppendEntriesResponse::PartialSuccess(id) => Self::Partial(position(&id)),
            AppendEntriesResponse::Conflict => Self::Conflict,
            AppendEntriesResponse::HigherVote(vote) => Self::HigherVote((&vote).into()),
        }
    }
}

impl From<AppendAnswer> for AppendEntriesResponse<TypeConfig> {
    fn from(answer: AppendAnswer) -> Self {
        match answer {
            AppendAnswer::Success => Self::Success,
            AppendAnswer::Partial(id) => Self::PartialSuccess(id.map(Into::into)),
            AppendAnswer::Conflict => Self::Conflict,
            AppendAnswer::HigherVote(vote) => Self::HigherVote(vote.into()),
        }
    }
}

/// Answer to one message of a stream of [`Append`].
#[derive(Debug, Serialize, Deserialize)]
pub enum StreamAnswer {
    /// The logs match up to here.
    Matching(Option<Position>),
    /// They do not match at this entry.
    Conflict(Position),
    /// Another server leads.
    HigherVote(Ballot),
}

impl From<StreamAppendResult<TypeConfig>> for StreamAnswer {
    fn from(result: StreamAppendResult<TypeConfig>) -> Self {
        match result {
            Ok(id) => Self::Matching(position(&id)),
            Err(StreamAppendError::Conflict(id)) => Self::Conflict((&id).into()),
            Err(StreamAppendError::HigherVote(vote)) => Self::HigherVote((&vote).into()),
        }
    }
}

impl From<StreamAnswer> for StreamAppendResult<TypeConfig> {
    fn from(answer: StreamAnswer) -> Self {
        match answer {
            StreamAnswer::Matching(id) => Ok(id.map(Into::into)),
            StreamAnswer::Conflict(id) => Err(StreamAppendError::Conflict(id.into())),
            StreamAnswer::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote.into())),
        }
    }
}

/// `RequestVote`, and the same for a pre-vote.
#[derive(Debug, Serialize, Deserialize)]
pub struct VoteAsked {
    vote: Ballot,
    last: Option<Position>,
    transfer: bool,
}

impl From<&VoteRequest<TypeConfig>> for VoteAsked {
    fn from(request: &VoteRequest<TypeConfig>) -> Self {
        Self {
            vote: (&request.vote).into(),
            last: position(&request.last_log_id),
            transfer: request.leadership_transfer,
        }
    }
}

impl From<VoteAsked> for VoteRequest<TypeConfig> {
    fn from(asked: VoteAsked) -> Self {
        let mut request = VoteRequest::new(asked.vote.into(), asked.last.map(Into::into));
        request.leadership_transfer = asked.transfer;
        request
    }
}

/// Answer to [`VoteAsked`].
#[derive(Debug, Serialize, Deserialize)]
pub struct VoteAnswer {
    vote: Ballot,
    granted: bool,
    last: Option<Position>,
}

impl From<VoteResponse<TypeConfig>> for VoteAnswer {
    fn from(response: VoteResponse<TypeConfig>) -> Self {
        Self {
            vote: (&response.vote).into(),
            granted: response.vote_granted,
            last: position(&response.last_log_id),
        }
    }
}

impl From<VoteAnswer> for VoteResponse<TypeConfig> {
    fn from(answer: VoteAnswer) -> Self {
        let vote: Vote = answer.vote.into();
        VoteResponse::new(vote, answer.last.map(Into::into), answer.granted)
    }
}

/// `TransferLeader`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Transfer {
    from: Ballot,
    to: u64,
    last: Option<Position>,
}

impl From<&TransferLeaderRequest<TypeConfig>> for Transfer {
    fn from(request: &TransferLeaderRequest<TypeConfig>) -> Self {
        Self {
            from: request.from_leader().into(),
            to: *request.to_node_id(),
            last: request.last_log_id().map(Position::from),
        }
    }
}

impl From<Transfer> for TransferLeaderRequest<TypeConfig> {
    fn from(transfer: Transfer) -> Self {
        TransferLeaderRequest::new(transfer.from.into(), transfer.to, transfer.last.map(Into::into))
    }
}

/// What a snapshot covers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotHead {
    last: Option<Position>,
    members_at: Option<Position>,
    members: Members,
}

impl From<&SnapshotMeta> for SnapshotHead {
    fn from(meta: &SnapshotMeta) -> Self {
        Self {
            last: position(&meta.last_log_id),
            members_at: position(meta.last_membership.log_id()),
            members: meta.last_membership.membership().into(),
        }
    }
}

impl TryFrom<SnapshotHead> for SnapshotMeta {
    type Error = CodecError;
    fn try_from(head: SnapshotHead) -> Result<Self, CodecError> {
        Ok(SnapshotMeta {
            last_log_id: head.last.map(Into::into),
            last_membership: StoredMembership::new(head.members_at.map(Into::into), head.members.try_into()?),
        })
    }
}

/// Which snapshot comes: with the first message of its stream, and when the leader asks how much of it is
/// there already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotOffer {
    /// The leader's vote.
    pub vote: Ballot,
    /// What it covers.
    pub head: SnapshotHead,
    /// Bytes of the file.
    pub bytes: u64,
    /// Its checksum (CRC-32, IEEE).
    pub checksum: u32,
}

/// A message and whom it is for: an address may have passed to another server since it was learnt.
#[derive(Debug, Serialize, Deserialize)]
pub struct Addressed<T> {
    /// Id of the server that it is for.
    pub to: u64,
    /// Id of the server that it is from.
    pub from: u64,
    /// The message.
    pub message: T,
}

#[cfg(test)]
mod tests;
