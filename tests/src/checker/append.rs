//! Lists that transactions append to and read, several at once: the whole store as one object.
//!
//! A read shows the order of all appends before it, so lost updates, dirty reads (A03), circular information flow (A04)
//! and write skew (A05) all show as histories without an order. The operations are those of a client, however many
//! requests it needed for each: one whose compare failed had no effect and is recorded as refused.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::checker::model::Model;

/// A list's name.
pub type Key = Arc<str>;

/// One step of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Op {
    Append(Key, u64),
    Read(Key),
}

/// Steps that happen together, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Txn(pub Vec<Op>);

/// What was read, one list for each `Read` of the transaction in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lists(pub Vec<Vec<u64>>);

/// Empty lists at first.
#[derive(Debug, Clone, Copy, Default)]
pub struct AppendModel;

/// All lists that are not empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct State(BTreeMap<Key, Arc<Vec<u64>>>);

impl Model for AppendModel {
    type Call = Txn;
    type Answer = Lists;
    type State = State;
    type Key = Key;

    fn initial(&self) -> State {
        State::default()
    }

    fn step(&self, state: &State, _id: u32, call: &Txn, answer: Option<&Lists>, next: &mut Vec<State>) {
        let mut state = state.clone();
        let mut lists = answer.map(|lists| lists.0.iter());
        for op in &call.0 {
            match op {
                Op::Append(key, value) => Arc::make_mut(state.0.entry(key.clone()).or_default()).push(*value),
                Op::Read(key) => {
                    let is = state.0.get(key).map_or(&[][..], |list| list);
                    if lists.as_mut().is_some_and(|lists| lists.next().map(Vec::as_slice) != Some(is)) {
                        return;
                    }
                }
            }
        }
        next.push(state);
    }

    fn keys(&self, call: &Txn) -> Vec<Key> {
        call.0.iter().map(|(Op::Append(key, _) | Op::Read(key))| key.clone()).collect()
    }

    fn is_read(&self, call: &Txn) -> bool {
        call.0.iter().all(|op| matches!(op, Op::Read(_)))
    }
}

impl fmt::Display for Txn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, op) in self.0.iter().enumerate() {
            f.write_str(if i == 0 { "" } else { "; " })?;
            match op {
                Op::Append(key, value) => write!(f, "append {value} to {key}")?,
                Op::Read(key) => write!(f, "read {key}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Lists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lists: Vec<_> = self.0.iter().map(|list| format!("{list:?}")).collect();
        f.write_str(if lists.is_empty() { "done" } else { "" })?;
        f.write_str(&lists.join(", "))
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lists: Vec<_> = self.0.iter().map(|(key, list)| format!("{key}={list:?}")).collect();
        f.write_str(if lists.is_empty() { "nothing" } else { "" })?;
        f.write_str(&lists.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::checker::linear::check;
    use crate::history::{History, Process};

    fn append(key: &str, value: u64) -> Op {
        Op::Append(key.into(), value)
    }

    fn read(key: &str) -> Op {
        Op::Read(key.into())
    }

    /// What each read of a transaction answered; none: it was refused.
    type Refusable = Option<Vec<Vec<u64>>>;

    /// Transactions that all overlap; a missing answer is a refusal.
    fn at_once(all: Vec<(Vec<Op>, Refusable)>) -> History<Txn, Lists> {
        let mut history = History::default();
        let called: Vec<_> = all
            .into_iter()
            .enumerate()
            .map(|(i, (txn, answer))| {
                (history.invoke(Process(i as u32), Duration::ZERO, Txn(txn)), answer.map(Lists))
            })
            .collect();
        for (id, answer) in called {
            match answer {
                Some(answer) => history.ok(id, Duration::ZERO, answer),
                None => history.fail(id, Duration::ZERO),
            }
        }
        history
    }

    #[test]
    fn transactions_that_have_an_order_pass() {
        let history = at_once(vec![
            (vec![append("x", 1), read("y")], Some(vec![vec![2]])),
            (vec![append("y", 2), read("x")], Some(vec![vec![]])),
            (vec![read("x"), read("y")], Some(vec![vec![1], vec![2]])),
        ]);
        check(&AppendModel, &history).unwrap();
    }

    #[test]
    fn a_write_skew_is_found() {
        // A05: each decided on what the other had not written yet.
        let history = at_once(vec![
            (vec![read("x"), append("y", 1)], Some(vec![vec![]])),
            (vec![read("y"), append("x", 2)], Some(vec![vec![]])),
        ]);
        assert!(check(&AppendModel, &history).is_violation());
    }

    #[test]
    fn circular_information_flow_is_found() {
        // A04: each has seen the other's append.
        let history = at_once(vec![
            (vec![append("x", 1), read("y")], Some(vec![vec![2]])),
            (vec![append("y", 2), read("x")], Some(vec![vec![1]])),
        ]);
        assert!(check(&AppendModel, &history).is_violation());
    }

    #[test]
    fn a_read_of_a_refused_append_is_found() {
        // A03: the append was aborted, and its value was read.
        let history = at_once(vec![(vec![append("x", 1)], None), (vec![read("x")], Some(vec![vec![1]]))]);
        assert!(check(&AppendModel, &history).is_violation());
    }

    #[test]
    fn half_of_a_transaction_is_found() {
        let history = at_once(vec![
            (vec![append("x", 1), append("y", 1)], Some(vec![])),
            (vec![read("x"), read("y")], Some(vec![vec![1], vec![]])),
        ]);
        assert!(check(&AppendModel, &history).is_violation());
    }
}
