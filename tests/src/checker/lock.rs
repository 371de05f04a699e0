//! A lock or semaphore whose every grant carries a fencing token, and the writes that it guards.
//!
//! Sessions end by themselves, so their end is an operation too: record [`Call::End`] when the session was last known to
//! live (its end is unknown until somebody is told), or when it is revoked. L01: two holders whose guarded writes are
//! both accepted; L02: a grant for a session that has ended; L05: more grants than permits; L11: a fence that is not
//! larger than all before it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::checker::model::Model;

/// A lock's name.
pub type Key = Arc<str>;

/// Who holds locks: one lease.
pub type SessionId = i64;

/// A call on one lock.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Call {
    /// Waits for a permit, or asks whether there is one.
    Acquire { lock: Key, session: SessionId },
    /// Gives the permit back.
    Release { lock: Key, session: SessionId },
    /// The session ends, on this lock; later uses of the session are refused.
    End { lock: Key, session: SessionId },
    /// A write that is done only if `fence` is that of a present holder.
    Guarded { lock: Key, fence: i64 },
}

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Answer {
    Granted {
        fence: i64,
    },
    /// None was free (acquire), it held none (release), or the fence is not that of a holder (guarded).
    No,
    /// Released, ended, or written.
    Done,
    /// Released or ended, if there was anything to release or to end.
    Over,
}

/// A lock with so many permits.
#[derive(Debug, Clone, Copy)]
pub struct LockModel {
    /// Holders at one time, at most; 1 for a lock.
    pub permits: usize,
}

/// Holders with their fences, if known; the largest fence; who has ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct State {
    holders: BTreeMap<SessionId, Option<i64>>,
    last_fence: i64,
    ended: BTreeSet<SessionId>,
}

impl Model for LockModel {
    type Call = Call;
    type Answer = Answer;
    type State = State;
    type Key = Key;

    fn initial(&self) -> State {
        State::default()
    }

    fn step(&self, state: &State, _id: u32, call: &Call, answer: Option<&Answer>, next: &mut Vec<State>) {
        next.extend(self.run(state, call, answer.copied()).ok());
    }

    fn keys(&self, call: &Call) -> Vec<Key> {
        match call {
            Call::Acquire { lock, .. }
            | Call::Release { lock, .. }
            | Call::End { lock, .. }
            | Call::Guarded { lock, .. } => vec![lock.clone()],
        }
    }

    fn is_read(&self, call: &Call) -> bool {
        matches!(call, Call::Guarded { .. })
    }

    fn order_hint(&self, answer: &Answer) -> Option<i64> {
        match answer {
            Answer::Granted { fence } => Some(*fence),
            Answer::No | Answer::Done | Answer::Over => None,
        }
    }

    fn explain(&self, state: &State, call: &Call, answer: &Answer) -> String {
        self.run(state, call, Some(*answer))
            .err()
            .unwrap_or("possible here, but what follows then is not")
            .to_owned()
    }
}

impl LockModel {
    fn run(&self, state: &State, call: &Call, answer: Option<Answer>) -> Result<State, &'static str> {
        let mut next = state.clone();
        match (call, answer) {
            (Call::Acquire { session, .. }, Some(Answer::Granted { fence })) => {
                if state.ended.contains(session) {
                    return Err("the session has ended (L02)");
                }
                match state.holders.get(session) {
                    // Asked again: the same grant. One whose answer was lost is told now.
                    Some(Some(held)) if *held == fence => return Ok(next),
                    Some(Some(_)) => return Err("this session holds it with another fence"),
                    None if state.holders.len() >= self.permits => {
                        return Err("all permits are taken (L01, L05)");
                    }
                    Some(None) | None => {}
                }
                if fence <= state.last_fence {
                    return Err("its fence is not larger than all before it (L11)");
                }
                next.last_fence = fence;
                next.holders.insert(*session, Some(fence));
            }
            (Call::Acquire { session, .. }, None) => {
                if !state.ended.contains(session) && state.holders.len() < self.permits {
                    next.holders.entry(*session).or_insert(None);
                }
            }
            (Call::Acquire { session, .. }, Some(Answer::No)) => {
                let free = state.holders.len() < self.permits && !state.ended.contains(session);
                if free && !state.holders.contains_key(session) {
                    return Err("a permit is free");
                }
            }
            (Call::Release { session, .. }, answer) => {
                let held = next.holders.remove(session).is_some();
                match answer {
                    Some(Answer::Done) if !held => return Err("the session holds nothing"),
                    Some(Answer::No) if held => return Err("the session holds it"),
                    Some(Answer::Granted { .. }) => return Err("a release grants nothing"),
                    _ => {}
                }
            }
            (Call::End { session, .. }, _) => {
                next.holders.remove(session);
                next.ended.insert(*session);
            }
            (Call::Guarded { .. }, None) => {}
            (Call::Guarded { fence, .. }, Some(answer)) => {
                let known = state.holders.values().any(|held| *held == Some(*fence));
                let maybe = state.holders.values().any(Option::is_none) && *fence > state.last_fence;
                match answer {
                    Answer::Done if !known && !maybe => return Err("no holder has this fence (L01)"),
                    Answer::No if known => return Err("a holder has this fence"),
                    Answer::Granted { .. } | Answer::Over => return Err("a write is done or not"),
                    _ => {}
                }
            }
            (Call::Acquire { .. }, Some(Answer::Done | Answer::Over)) => {
                return Err("an acquire is granted or not");
            }
        }
        Ok(next)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Acquire { lock, session } => write!(f, "acquire {lock} for session {session:x}"),
            Self::Release { lock, session } => write!(f, "release {lock} of session {session:x}"),
            Self::End { lock, session } => write!(f, "session {session:x} ends at {lock}"),
            Self::Guarded { lock, fence } => write!(f, "write under {lock} with fence {fence}"),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Granted { fence } => write!(f, "granted, fence {fence}"),
            Self::No => f.write_str("no"),
            Self::Done => f.write_str("done"),
            Self::Over => f.write_str("over"),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let holders: Vec<_> = self
            .holders
            .iter()
            .map(|(session, fence)| {
                format!(
                    "session {session:x} with fence {}",
                    fence.map_or("?".to_owned(), |fence| fence.to_string())
                )
            })
            .collect();
        let holders = if holders.is_empty() { "nobody".to_owned() } else { holders.join(", ") };
        write!(f, "held by {holders}; largest fence {}", self.last_fence)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::checker::linear::{Verdict, check};
    use crate::history::{History, OpId, Process};

    const LOCK: LockModel = LockModel { permits: 1 };

    fn acquire(session: SessionId) -> Call {
        Call::Acquire { lock: "l".into(), session }
    }

    fn release(session: SessionId) -> Call {
        Call::Release { lock: "l".into(), session }
    }

    fn end(session: SessionId) -> Call {
        Call::End { lock: "l".into(), session }
    }

    fn guarded(fence: i64) -> Call {
        Call::Guarded { lock: "l".into(), fence }
    }

    fn granted(fence: i64) -> Option<Answer> {
        Some(Answer::Granted { fence })
    }

    /// One after the other; without an answer an operation stays open.
    fn in_turn(calls: Vec<(Call, Option<Answer>)>) -> Verdict {
        let mut history = History::default();
        for (i, (call, answer)) in calls.into_iter().enumerate() {
            let id: OpId = history.invoke(Process(i as u32), Duration::ZERO, call);
            if let Some(answer) = answer {
                history.ok(id, Duration::ZERO, answer);
            }
        }
        check(&LOCK, &history)
    }

    #[test]
    fn a_lock_that_passes_on_is_fine() {
        let steps = vec![
            (acquire(1), granted(5)),
            (acquire(2), Some(Answer::No)),
            (guarded(5), Some(Answer::Done)),
            (release(1), Some(Answer::Done)),
            (acquire(2), granted(9)),
            (guarded(5), Some(Answer::No)),
        ];
        in_turn(steps).unwrap();
    }

    #[test]
    fn two_holders_are_found() {
        // L01, L05
        assert!(in_turn(vec![(acquire(1), granted(5)), (acquire(2), granted(6))]).is_violation());
    }

    #[test]
    fn a_holder_whose_session_may_have_ended_may_be_replaced() {
        in_turn(vec![(acquire(1), granted(5)), (end(1), None), (acquire(2), granted(6))]).unwrap();
    }

    #[test]
    fn a_write_of_a_former_holder_that_is_accepted_is_found() {
        // L01: the session ended, another holds the lock, and the old fence still opens.
        let steps = vec![
            (acquire(1), granted(5)),
            (end(1), None),
            (acquire(2), granted(6)),
            (guarded(5), Some(Answer::Done)),
        ];
        assert!(in_turn(steps).is_violation());
    }

    #[test]
    fn a_grant_for_an_ended_session_is_found() {
        // L02
        assert!(in_turn(vec![(end(1), Some(Answer::Done)), (acquire(1), granted(5))]).is_violation());
    }

    #[test]
    fn a_fence_that_goes_back_is_found() {
        // L11
        let steps =
            vec![(acquire(1), granted(5)), (release(1), Some(Answer::Done)), (acquire(2), granted(4))];
        assert!(in_turn(steps).is_violation());
    }

    #[test]
    fn a_refusal_while_a_permit_is_free_is_found() {
        assert!(in_turn(vec![(acquire(1), Some(Answer::No))]).is_violation());
        in_turn(vec![(acquire(2), None), (acquire(1), Some(Answer::No))]).unwrap();
    }
}
