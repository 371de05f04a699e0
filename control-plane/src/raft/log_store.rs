//! openraft's log, on [`crate::wal`], with every entry that is not purged also in memory.

use std::{
    collections::VecDeque,
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    sync::Arc,
};

use openraft::{
    LogState, OptionalSend, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
};
use parking_lot::RwLock;
use tokio::sync::oneshot;
use weft_state::defect::{Defect, planted};

use super::{
    codec,
    types::{Entry, LogId, Payload, TypeConfig, Vote},
};
use crate::wal::{Operation, Recovered, Wal};

/// Bytes of entries in one message to a follower: below the peers' message limit, and small enough that a
/// heartbeat on the same link is not late. One larger entry travels alone.
const APPEND_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Handle to the log; clones share it.
#[derive(Clone)]
pub struct LogStore {
    tail: Arc<RwLock<Tail>>,
    wal: Wal,
}

/// What is in memory. The lock covers no I/O.
#[derive(Default)]
struct Tail {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    /// Follow each other without gaps, the first follows `purged`.
    entries: VecDeque<Entry>,
    bytes: u64,
}

impl LogStore {
    /// From what recovery found.
    pub fn new(wal: Wal, recovered: Recovered) -> Result<Self, codec::CodecError> {
        let mut tail = Tail {
            vote: recovered.vote.map(codec::vote_from_wal),
            committed: recovered.committed.map(codec::from_wal),
            purged: recovered.purged.map(codec::from_wal),
            ..Tail::default()
        };
        for entry in &recovered.entries {
            tail.push(codec::entry_from_wal(entry)?);
        }
        Ok(Self { tail: Arc::new(RwLock::new(tail)), wal })
    }

    /// Bytes of the entries held in memory, about.
    pub fn bytes_in_memory(&self) -> u64 {
        self.tail.read().bytes
    }

    /// The last entry, purged ones included.
    pub fn last(&self) -> Option<LogId> {
        self.tail.read().last()
    }

    /// Last purged entry.
    pub fn purged(&self) -> Option<LogId> {
        self.tail.read().purged
    }

    /// Whether nothing was ever written: a server that has no group yet.
    pub fn is_pristine(&self) -> bool {
        let tail = self.tail.read();
        tail.entries.is_empty() && tail.purged.is_none() && tail.vote.is_none()
    }

    /// Whether a membership in the log, committed or not, has this server.
    pub fn knows_member(&self, id: u64) -> bool {
        let tail = self.tail.read();
        tail.entries.iter().any(|entry| match &entry.payload {
            Payload::Membership(membership) => membership.get_node(&id).is_some(),
            Payload::Normal(_) | Payload::Blank => false,
        })
    }

    async fn submit(&self, operation: Operation) -> io::Result<()> {
        if self.wal.submit(operation).await { Ok(()) } else { Err(ended()) }
    }
}

fn ended() -> io::Error {
    io::Error::other("the log's writer has ended")
}

impl Tail {
    fn last(&self) -> Option<LogId> {
        self.entries.back().map(|e| e.log_id).or(self.purged)
    }

    fn push(&mut self, entry: Entry) {
        self.bytes += weight(&entry);
        self.entries.push_back(entry);
    }

    fn slice(&self, range: &impl RangeBounds<u64>) -> impl Iterator<Item = &Entry> {
        let start = match range.start_bound() {
            Bound::Included(i) => *i,
            Bound::Excluded(i) => i + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(i) => i + 1,
            Bound::Excluded(i) => *i,
            Bound::Unbounded => u64::MAX,
        };
        let first = self.entries.front().map_or(u64::MAX, |e| e.log_id.index());
        let from = (start.saturating_sub(first) as usize).min(self.entries.len());
        let to = (end.saturating_sub(first) as usize).min(self.entries.len());
        self.entries.range(from..to.max(from))
    }
}

fn weight(entry: &Entry) -> u64 {
    let payload = match &entry.payload {
        Payload::Normal(batch) => batch.bytes().len(),
        Payload::Blank | Payload::Membership(_) => 0,
    };
    payload as u64 + 100
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<R>(&mut self, range: R) -> Result<Vec<Entry>, io::Error>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        Ok(self.tail.read().slice(&range).cloned().collect())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let mut bytes = 0;
        let mut entries = Vec::new();
        let tail = self.tail.read();
        // A follower's stream may still ask for what the core has purged since. What is left would be sent as if it
        // followed what the follower has (R04; openraft #1795). Nothing is sent as a heartbeat, from whose answer the
        // core sees that a snapshot is due.
        if tail.entries.front().is_some_and(|first| start < first.log_id.index()) {
            return Ok(entries);
        }
        for entry in tail.slice(&(start..end)) {
            bytes += weight(entry) as usize;
            if bytes > APPEND_BYTES_MAX && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.tail.read().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let tail = self.tail.read();
        Ok(LogState { last_purged_log_id: tail.purged, last_log_id: tail.last() })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (done, durable) = oneshot::channel();
        let done = Box::new(move || {
            let _ = done.send(());
        });
        self.submit(Operation::Vote { vote: codec::vote_to_wal(vote), done }).await?;
        if planted(Defect::ForgottenVote) {
            self.tail.write().vote = Some(*vote);
            return Ok(());
        }
        durable.await.map_err(|_| ended())?;
        self.tail.write().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        if let Some(id) = committed {
            self.tail.write().committed = Some(id);
            self.submit(Operation::Committed(codec::to_wal(&id))).await?;
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.tail.read().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let records = {
            let mut tail = self.tail.write();
            let mut records = Vec::new();
            for entry in entries {
                let expected = tail.last().map_or(0, |id| id.index() + 1);
                assert_eq!(entry.log_id.index(), expected, "the log has no gaps");
                records.push(codec::entry_to_wal(&entry));
                tail.push(entry);
            }
            records
        };
        if planted(Defect::LostWrite) {
            callback.io_completed(Ok(()));
            return self.submit(Operation::Append { entries: records, done: Box::new(|| {}) }).await;
        }
        let done = Box::new(move || callback.io_completed(Ok(())));
        self.submit(Operation::Append { entries: records, done }).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from = last.map_or(0, |id| id.index() + 1);
        {
            let mut tail = self.tail.write();
            while let Some(entry) = tail.entries.back()
                && entry.log_id.index() >= from
            {
                tail.bytes -= weight(entry);
                tail.entries.pop_back();
            }
        }
        // Needs no wait: what is written later is behind it in the file.
        self.submit(Operation::TruncateFrom { index: from, done: Box::new(|| {}) }).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        {
            let mut tail = self.tail.write();
            tail.purged = tail.purged.max(Some(upto));
            while let Some(entry) = tail.entries.front()
                && entry.log_id.index() <= upto.index()
            {
                tail.bytes -= weight(entry);
                tail.entries.pop_front();
            }
        }
        self.submit(Operation::Purge { position: codec::to_wal(&upto), done: Box::new(|| {}) }).await
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::{
        super::types::{Membership, Peer},
        *,
    };
    use crate::wal::{LogPosition, WalOptions};

    /// In a folder that lives as long as the log, with entries 1 to `last` in memory.
    fn log(last: u64, payload: impl Fn(u64) -> Payload) -> (tempfile::TempDir, LogStore) {
        let folder = tempfile::tempdir().expect("a folder");
        let (wal, recovered) =
            Wal::open(&folder.path().join("wal"), WalOptions::default()).expect("an empty folder opens");
        let log = LogStore::new(wal, recovered).expect("nothing in it is unreadable");
        for index in 1..=last {
            let log_id = codec::from_wal(LogPosition { term: 1, index });
            log.tail.write().push(Entry { log_id, payload: payload(index) });
        }
        (folder, log)
    }

    fn indexes(entries: &[Entry]) -> Vec<u64> {
        entries.iter().map(|entry| entry.log_id.index()).collect()
    }

    /// R04: an append whose first entry does not follow what the follower has (openraft #1795) is never made.
    #[tokio::test]
    async fn entries_whose_beginning_was_purged_are_not_sent_as_if_they_began_later() {
        let (_folder, mut log) = log(10, |_| Payload::Blank);
        log.purge(codec::from_wal(LogPosition { term: 1, index: 6 })).await.expect("submitted");
        let mut read =
            async |start, end| indexes(&log.limited_get_log_entries(start, end).await.expect("reads memory"));
        assert_eq!(read(5, 11).await, [0; 0]);
        assert_eq!(read(6, 11).await, [0; 0]);
        assert_eq!(read(7, 11).await, [7, 8, 9, 10]);
    }

    #[tokio::test]
    async fn a_server_that_an_earlier_entry_has_and_the_last_has_not_is_known_to_have_been_a_member() {
        let peer = |id: u64| Peer { name: format!("s{id}"), addr: ([127, 0, 0, 1], 1).into() };
        let membership = |ids: &[u64]| {
            let nodes: BTreeMap<u64, Peer> = ids.iter().map(|id| (*id, peer(*id))).collect();
            let voters = vec![ids.iter().copied().collect::<BTreeSet<u64>>()];
            Payload::Membership(Membership::new(voters, nodes).expect("all voters are nodes"))
        };
        let (_folder, log) = log(2, |index| membership(if index == 1 { &[1, 2] } else { &[1] }));
        assert!(log.knows_member(2));
        assert!(!log.knows_member(3));
    }
}
