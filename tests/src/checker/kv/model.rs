//! The sequential store of a few keys.

use std::collections::BTreeMap;
use std::fmt;

use crate::checker::kv::{Answer, Call, Expect, Key, Op, Seen, Value};
use crate::checker::model::Model;

/// The store, empty at `revision` before the first operation.
#[derive(Debug, Clone, Copy, Default)]
pub struct KvModel {
    /// The store's revision at the start, or less.
    pub revision: i64,
}

/// When something was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stamp {
    /// At this revision.
    At(i64),
    /// By this operation, at a revision after this one.
    After {
        /// Lower bound, not reached.
        revision: i64,
        /// Which operation.
        id: u32,
    },
}

/// A key that exists.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct Live {
    pub value: Value,
    pub created: Stamp,
    pub modified: Stamp,
    pub version: i64,
}

/// The keys of one part of a history.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    /// The store's revision is at least this.
    pub revision: i64,
    /// Keys that exist.
    pub keys: BTreeMap<Key, Live>,
}

/// Why an answer is not possible.
enum Mismatch {
    /// A read tells a revision below one that was there already.
    OldRevision { seen: i64, at_least: i64 },
    /// A write tells a revision that was there already.
    TakenRevision { seen: i64, at_least: i64 },
    /// The compares must have gone the other way.
    Branch { succeeded: bool },
    /// A key is not as it was seen.
    Key { key: Key, is: Option<Live> },
    /// As many answers as operations are needed.
    Shape,
}

impl Model for KvModel {
    type Call = Call;
    type Answer = Answer;
    type State = State;
    type Key = Key;

    fn initial(&self) -> State {
        State { revision: self.revision, keys: BTreeMap::new() }
    }

    fn step(&self, state: &State, id: u32, call: &Call, answer: Option<&Answer>, next: &mut Vec<State>) {
        let anything = Answer::default();
        let answer = answer.unwrap_or(&anything);
        for succeeded in [true, false] {
            if let Ok(state) = run(state, id, call, answer, succeeded) {
                next.push(state);
            }
        }
    }

    fn keys(&self, call: &Call) -> Vec<Key> {
        let ops = call.then.iter().chain(&call.otherwise);
        let of_ops = ops.map(|(Op::Get(key) | Op::Put(key, _) | Op::Delete(key))| key);
        call.compares.iter().map(|(key, _)| key).chain(of_ops).cloned().collect()
    }

    fn is_read(&self, call: &Call) -> bool {
        call.is_read()
    }

    fn order_hint(&self, answer: &Answer) -> Option<i64> {
        answer.revision
    }

    fn explain(&self, state: &State, call: &Call, answer: &Answer) -> String {
        let branch = answer.succeeded.unwrap_or(true);
        match run(state, u32::MAX, call, answer, branch) {
            Err(mismatch) => mismatch.to_string(),
            Ok(_) => "possible here, but what follows then is not".to_owned(),
        }
    }
}

/// The state after `call` if the branch `succeeded` says ran and `answer` is right.
fn run(state: &State, id: u32, call: &Call, answer: &Answer, succeeded: bool) -> Result<State, Mismatch> {
    if answer.succeeded.is_some_and(|seen| seen != succeeded) {
        return Err(Mismatch::Branch { succeeded });
    }
    let mut state = state.clone();
    let doubtful = compare(&mut state, call, succeeded)?;
    let ops = call.branch(succeeded);
    let before = state.revision;
    let stamp = match answer.revision {
        Some(revision) => Stamp::At(revision),
        None => Stamp::After { revision: before, id },
    };
    if answer.seen.as_ref().is_some_and(|seen| seen.len() != ops.len()) {
        return Err(Mismatch::Shape);
    }
    let mut wrote = false;
    let mut told = Vec::new();
    for (i, op) in ops.iter().enumerate() {
        let seen = answer.seen.as_ref().map(|seen| &seen[i]);
        wrote |= apply(&mut state, op, seen, stamp, &mut told)?;
    }
    if !doubtful.is_empty() && doubtful.iter().all(|one| told.contains(one)) {
        return Err(Mismatch::Branch { succeeded });
    }
    match (answer.revision, wrote) {
        (Some(seen), true) if seen <= state.revision => {
            Err(Mismatch::TakenRevision { seen, at_least: state.revision })
        }
        (Some(seen), false) if seen < state.revision => {
            Err(Mismatch::OldRevision { seen, at_least: state.revision })
        }
        (seen, wrote) => {
            state.revision = seen.unwrap_or(state.revision.max(before + i64::from(wrote)));
            Ok(state)
        }
    }
}

/// Whether the compares may have come out as `succeeded` says; what that tells about unknown revisions is noted. Answers
/// unknown revisions of which at least one is not what it was compared with.
fn compare(state: &mut State, call: &Call, succeeded: bool) -> Result<Vec<(Stamp, i64)>, Mismatch> {
    let mut surely_failed = false;
    let mut doubtful = Vec::new();
    for (key, expect) in &call.compares {
        let live = state.keys.get(key);
        let stamp = |pick: fn(&Live) -> Stamp| live.map_or(Stamp::At(0), pick);
        let (is, expected) = match expect {
            Expect::Value(value) => {
                surely_failed |= live.is_none_or(|live| live.value != *value);
                continue;
            }
            Expect::Version(version) => {
                surely_failed |= live.map_or(0, |live| live.version) != *version;
                continue;
            }
            Expect::CreateRevision(revision) => (stamp(|live| live.created), *revision),
            Expect::ModRevision(revision) => (stamp(|live| live.modified), *revision),
        };
        match is {
            Stamp::At(is) => surely_failed |= is != expected,
            Stamp::After { .. } if succeeded => {
                let key = key.clone();
                state
                    .reveal(is, expected)
                    .map_err(|()| Mismatch::Key { is: state.keys.get(&key).cloned(), key })?;
            }
            Stamp::After { revision, .. } => {
                surely_failed |= expected <= revision;
                doubtful.push((is, expected));
            }
        }
    }
    match (succeeded, surely_failed) {
        (true, true) => Err(Mismatch::Branch { succeeded }),
        (false, false) if doubtful.is_empty() => Err(Mismatch::Branch { succeeded }),
        (false, false) => Ok(doubtful),
        (true, false) | (false, true) => Ok(Vec::new()),
    }
}

/// Applies one operation; answers whether it wrote. Unknown revisions that it shows go into `told`.
fn apply(
    state: &mut State,
    op: &Op,
    seen: Option<&Seen>,
    stamp: Stamp,
    told: &mut Vec<(Stamp, i64)>,
) -> Result<bool, Mismatch> {
    let mismatch =
        |state: &State, key: &Key| Mismatch::Key { key: key.clone(), is: state.keys.get(key).cloned() };
    match op {
        Op::Get(key) => {
            match (seen, state.keys.get(key)) {
                (None, _) | (Some(Seen::Got(None)), None) => {}
                (Some(Seen::Got(Some(kv))), Some(live))
                    if live.value == kv.value && live.version == kv.version =>
                {
                    let (created, modified) = (live.created, live.modified);
                    told.extend([(created, kv.create_revision), (modified, kv.mod_revision)]);
                    state.reveal(modified, kv.mod_revision).map_err(|()| mismatch(state, key))?;
                    let created = state.keys[key].created;
                    state.reveal(created, kv.create_revision).map_err(|()| mismatch(state, key))?;
                }
                _ => return Err(mismatch(state, key)),
            }
            Ok(false)
        }
        Op::Put(key, value) => {
            if !matches!(seen, None | Some(Seen::Put)) {
                return Err(Mismatch::Shape);
            }
            let before = state.keys.get(key);
            let live = Live {
                value: value.clone(),
                created: before.map_or(stamp, |live| live.created),
                modified: stamp,
                version: before.map_or(0, |live| live.version) + 1,
            };
            state.keys.insert(key.clone(), live);
            Ok(true)
        }
        Op::Delete(key) => {
            let was_there = state.keys.contains_key(key);
            match seen {
                None => {}
                Some(Seen::Deleted(count)) if *count == i64::from(was_there) => {}
                Some(_) => return Err(mismatch(state, key)),
            }
            state.keys.remove(key);
            Ok(was_there)
        }
    }
}

impl State {
    /// Notes that `stamp` is `revision`, everywhere.
    fn reveal(&mut self, stamp: Stamp, revision: i64) -> Result<(), ()> {
        let Stamp::After { revision: after, .. } = stamp else {
            return if stamp == Stamp::At(revision) { Ok(()) } else { Err(()) };
        };
        if revision <= after {
            return Err(());
        }
        self.revision = self.revision.max(revision);
        for live in self.keys.values_mut() {
            for one in [&mut live.created, &mut live.modified] {
                if *one == stamp {
                    *one = Stamp::At(revision);
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(revision) => write!(f, "{revision}"),
            Self::After { revision, .. } => write!(f, "after {revision}"),
        }
    }
}

impl fmt::Display for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { value, created, modified, version } = self;
        write!(f, "{value} (mod {modified}, create {created}, version {version})")
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "revision ≥ {}", self.revision)?;
        for (key, live) in &self.keys {
            write!(f, ", {key}={live}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OldRevision { seen, at_least } => {
                write!(f, "it tells revision {seen}, but the store was at {at_least} or later")
            }
            Self::TakenRevision { seen, at_least } => {
                write!(
                    f,
                    "it claims to have written revision {seen}, but the store was at {at_least} or later"
                )
            }
            Self::Branch { succeeded: true } => f.write_str("its compares cannot have held"),
            Self::Branch { succeeded: false } => f.write_str("its compares cannot have failed"),
            Self::Key { key, is: Some(live) } => write!(f, "{key} is {live}"),
            Self::Key { key, is: None } => write!(f, "{key} does not exist"),
            Self::Shape => f.write_str("the answer does not fit the call"),
        }
    }
}
