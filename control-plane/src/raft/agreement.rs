//! Whether the servers of the group hold the same state, which equal logs should give them (A09, P12).
//!
//! ```text
//! every server notes the hash of its state at every 64th entry
//! leader, every 10 s:  hash at entry N? ─► all others ─► what most voters have is right
//!                      whoever has something else is told, looks for itself, and goes into quarantine
//! ```
//! A state that differs comes of a broken machine or of a mistake of ours, and nothing that the server would answer or
//! lead to could be trusted. So it marks its data folder, ends, and does not start again; the others go on. Without a
//! majority for one state nobody can say who is right: then it is logged and nobody ends.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures::future::join_all;
use tokio::time::{sleep, timeout};

use super::{
    driver::Node,
    forward::{Answer, Question, Refusal},
    retired::Retired,
};

/// Entries between two noted hashes. They cost a few multiplications.
const NOTE_EVERY: u64 = 64;

/// Hashes that are kept: enough for servers to be compared while the slowest is 16,000 entries behind.
const NOTES_MAX: usize = 256;

/// Between two comparisons.
const COMPARE_EVERY: Duration = Duration::from_secs(10);

/// How long a server may take to get to the entry that is compared.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// The hashes of this server's state at past entries.
#[derive(Debug, Default)]
pub struct Notes {
    newest_last: VecDeque<(u64, u64)>,
}

impl Notes {
    /// Whether the state after this entry is one to note.
    pub fn wants(index: u64) -> bool {
        index.is_multiple_of(NOTE_EVERY)
    }

    /// Notes the hash after an entry.
    pub fn note(&mut self, index: u64, hash: u64) {
        if self.newest_last.len() == NOTES_MAX {
            self.newest_last.pop_front();
        }
        self.newest_last.push_back((index, hash));
    }

    /// The hash after this entry, if it was noted and is kept still.
    pub fn at(&self, index: u64) -> Option<u64> {
        self.newest_last.iter().rev().find(|(noted, _)| *noted == index).map(|(_, hash)| *hash)
    }

    /// The last entry that was noted.
    pub fn newest(&self) -> Option<u64> {
        self.newest_last.back().map(|(index, _)| *index)
    }
}

/// What a comparison says.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All that answered have the same, and they are a majority of the voters.
    Agreed,
    /// Fewer than a majority of the voters have the same; too few answered, or nobody can say who is right.
    Unsure {
        /// At least two have different ones.
        differ: bool,
    },
    /// These have something else than most voters.
    Wrong {
        /// The hash that most voters have.
        right: u64,
        /// Servers with another one.
        servers: Vec<u64>,
    },
}

/// Judges the hashes of one entry, by server; `voters` are all that vote, whether they answered or not.
pub fn judge(voters: &[u64], hashes: &BTreeMap<u64, u64>) -> Verdict {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    for voter in voters {
        if let Some(hash) = hashes.get(voter) {
            *counts.entry(*hash).or_default() += 1;
        }
    }
    let right = counts.iter().find(|(_, count)| **count * 2 > voters.len()).map(|(hash, _)| *hash);
    let Some(right) = right else {
        let mut seen = hashes.values();
        let first = seen.next();
        return Verdict::Unsure { differ: seen.any(|hash| Some(hash) != first) };
    };
    let servers: Vec<u64> = hashes.iter().filter(|(_, hash)| **hash != right).map(|(id, _)| *id).collect();
    if servers.is_empty() { Verdict::Agreed } else { Verdict::Wrong { right, servers } }
}

impl Node {
    /// Compares the servers' states while this one leads.
    pub(super) async fn compare_states(self: Arc<Self>) {
        loop {
            sleep(COMPARE_EVERY).await;
            let newest = self.replica.notes().lock().newest();
            if let Some(index) = newest.filter(|index| self.leads() && *index > self.agreed.load(Relaxed)) {
                self.compare_states_at(index).await;
            }
        }
    }

    pub(super) async fn compare_states_at(self: &Arc<Self>, index: u64) {
        let membership = self.membership();
        let voters: Vec<u64> = membership.voter_ids().collect();
        let others = membership.nodes().filter(|(id, _)| **id != self.id.0);
        let asked = others.map(|(id, peer)| {
            let (id, addr) = (*id, self.peers.address(*id, peer.addr));
            async move {
                match self.link().ask_any(id, addr, Question::HashAt(index), ANSWER_MAX).await {
                    Answer::HashAt(Some(hash)) => Some((id, hash)),
                    _ => None,
                }
            }
        });
        let mut hashes: BTreeMap<u64, u64> = join_all(asked).await.into_iter().flatten().collect();
        let own = self.replica.notes().lock().at(index);
        hashes.extend(own.map(|hash| (self.id.0, hash)));
        match judge(&voters, &hashes) {
            Verdict::Agreed => self.agreed.store(index, Relaxed),
            Verdict::Unsure { differ: false } => {}
            Verdict::Unsure { differ: true } => {
                tracing::error!(
                    index,
                    ?hashes,
                    "the servers' states differ, and no majority has the same: restore the group from a backup"
                );
            }
            Verdict::Wrong { right, servers } => {
                tracing::error!(
                    index,
                    ?servers,
                    right = format!("{right:016x}"),
                    "servers have another state than the majority; they go into quarantine"
                );
                for id in servers.iter().filter(|id| **id != self.id.0) {
                    let Some(peer) = membership.get_node(id) else { continue };
                    let addr = self.peers.address(*id, peer.addr);
                    // Whoever does not hear it is told at the next comparison.
                    let _ =
                        self.link().ask_any(*id, addr, Question::Differs { index, right }, ANSWER_MAX).await;
                }
                if servers.contains(&self.id.0) {
                    self.quarantine(index, right).await;
                }
            }
        }
    }

    /// The hash of this server's state after an entry; waits for the entry.
    pub(super) async fn hash_at(&self, index: u64, patience: Duration) -> Option<u64> {
        timeout(patience, self.replica.wait_applied(index)).await.ok()?;
        self.replica.notes().lock().at(index)
    }

    /// Somebody says that the state here is wrong. Believed only if it was another one indeed.
    pub(super) async fn told_to_differ(&self, index: u64, right: u64) -> Answer {
        match self.replica.notes().lock().at(index) {
            Some(ours) if ours != right => {}
            _ => return Answer::Refused(Refusal::Unknown("the state here is the same".to_owned())),
        }
        self.quarantine(index, right).await;
        Answer::Refused(Refusal::Stopping)
    }

    /// Never answers a client again from a state that is known to be wrong.
    async fn quarantine(&self, index: u64, right: u64) {
        let ours = self.replica.notes().lock().at(index).unwrap_or_default();
        let differs =
            Retired::Differs { entry: index, ours: format!("{ours:016x}"), theirs: format!("{right:016x}") };
        self.retire(differs).await;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hashes(of: &[(u64, u64)]) -> BTreeMap<u64, u64> {
        of.iter().copied().collect()
    }

    #[test]
    fn the_one_that_differs_from_a_majority_of_the_voters_is_wrong_whoever_leads() {
        let wrong = |servers: &[u64]| Verdict::Wrong { right: 7, servers: servers.to_vec() };
        assert_eq!(judge(&[1, 2, 3], &hashes(&[(1, 7), (2, 7), (3, 7)])), Verdict::Agreed);
        assert_eq!(judge(&[1, 2, 3], &hashes(&[(1, 9), (2, 7), (3, 7)])), wrong(&[1]));
        assert_eq!(judge(&[1, 2, 3], &hashes(&[(1, 7), (3, 7)])), Verdict::Agreed, "one does not answer");
        assert_eq!(judge(&[1, 2, 3], &hashes(&[(1, 7), (2, 7), (4, 9)])), wrong(&[4]), "a learner");
        assert_eq!(judge(&[1], &hashes(&[(1, 7), (2, 9), (3, 9)])), wrong(&[2, 3]), "learners have no say");
    }

    #[test]
    fn without_a_majority_for_one_state_nobody_is_wrong() {
        let differ = Verdict::Unsure { differ: true };
        assert_eq!(judge(&[1, 2], &hashes(&[(1, 7), (2, 9)])), differ);
        assert_eq!(judge(&[1, 2, 3], &hashes(&[(1, 7), (2, 8), (3, 9)])), differ);
        assert_eq!(judge(&[1, 2, 3, 4], &hashes(&[(1, 7), (2, 7), (3, 9), (4, 9)])), differ);
        assert_eq!(judge(&[1, 2, 3], &hashes(&[(1, 7)])), Verdict::Unsure { differ: false });
        assert_eq!(judge(&[1, 2, 3], &hashes(&[])), Verdict::Unsure { differ: false });
    }

    proptest! {
        /// However many differ, a majority never ends.
        #[test]
        fn most_voters_are_never_wrong(values in proptest::collection::vec(0_u64..3, 1..8)) {
            let voters: Vec<u64> = (1..=values.len() as u64).collect();
            let hashes: BTreeMap<u64, u64> = voters.iter().copied().zip(values).collect();
            if let Verdict::Wrong { right, servers } = judge(&voters, &hashes) {
                prop_assert!(servers.len() * 2 < voters.len());
                prop_assert!(servers.iter().all(|id| hashes[id] != right));
            }
        }
    }

    #[test]
    fn the_newest_notes_are_kept() {
        let mut notes = Notes::default();
        assert_eq!(notes.newest(), None);
        let last = NOTE_EVERY * (NOTES_MAX as u64 + 1);
        for index in (1..=last).filter(|index| Notes::wants(*index)) {
            notes.note(index, index + 1);
        }
        assert_eq!(notes.newest(), Some(last));
        assert_eq!(notes.at(last - NOTE_EVERY), Some(last - NOTE_EVERY + 1));
        assert_eq!(notes.at(NOTE_EVERY), None, "the oldest is gone");
        assert_eq!(notes.at(last - 1), None, "never noted");
    }
}
