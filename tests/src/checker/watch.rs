//! What watchers were told, against what happened.
//!
//! [`Truth`] is the list of all changes, read once more when the run is over and itself checked against the history of
//! writes. A [`Watcher`] is then followed message by message: from the revision its stream began at, every change of its
//! range must come once, whole revisions in order. Violations name the anomaly: W01 gap, W02 duplicate, W03 order, W04
//! and W07 a revision before the stream's start, W05 progress ahead of events, W10 seen before it could be read, W12
//! wrong previous value.

#[cfg(test)]
mod tests;
mod truth;

use crate::checker::kv::{Key, Value};
use crate::checker::revision::Reading;
use crate::history::Moment;

pub use truth::{Contradiction, Truth};

/// A change of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Which key.
    pub key: Key,
    /// Its new value; none: it was deleted.
    pub value: Option<Value>,
    /// The store's revision of the change.
    pub revision: i64,
}

/// A change as a watcher was told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The change.
    pub change: Change,
    /// The value before it, if the watch asked for it: none if there was no key.
    pub previous: Option<Option<Value>>,
}

/// One message to a watcher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A stream begins, and owes everything from this revision on.
    Opened {
        /// First revision of interest.
        from: i64,
    },
    /// Changes.
    Events {
        /// The changes.
        events: Vec<Event>,
        /// More of the last revision follows.
        fragment: bool,
    },
    /// Everything up to this revision has been told.
    Progress {
        /// That revision.
        revision: i64,
    },
    /// The stream ended since its next revision is compacted. The watcher owes nothing for what is missing then.
    Compacted,
}

/// A watcher and all it was told.
#[derive(Debug, Clone)]
pub struct Watcher {
    /// For messages about it.
    pub name: String,
    /// First key of the range.
    pub start: Key,
    /// End of the range, outside it; none: the one key.
    pub end: Option<Key>,
    /// Messages in order.
    pub told: Vec<(Moment, Message)>,
}

/// What a watcher was told wrongly.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Violation {
    #[error("W01: {watcher} was not told {missing:?} before {then}")]
    Gap { watcher: String, missing: Change, then: String },
    #[error("W02: {watcher} was told {again:?} again")]
    Duplicate { watcher: String, again: Change },
    #[error("W03: {watcher} was told {told:?} where {expected:?} was due")]
    Order { watcher: String, told: Change, expected: Option<Change> },
    #[error("W04, W07: {watcher} was told {told:?}, but its stream begins at revision {from}")]
    BeforeStart { watcher: String, told: Change, from: i64 },
    #[error("W05: {watcher} was told that all is said up to revision {progress}, but not {missing:?}")]
    Progress { watcher: String, progress: i64, missing: Change },
    #[error("W10: revision {revision} was told at {at:?}, but a read that began later saw only {reading:?}")]
    NotReadable { revision: i64, at: Moment, reading: Reading },
    #[error("W12: {watcher} was told {told:?}, but the value before was {was:?}")]
    Previous { watcher: String, told: Event, was: Option<Value> },
    #[error("{watcher} was told {told:?}, which never happened")]
    Invented { watcher: String, told: Change },
}

impl Watcher {
    fn covers(&self, key: &Key) -> bool {
        match &self.end {
            Some(end) => *key >= self.start && key < end,
            None => *key == self.start,
        }
    }

    /// Follows the messages. Answers the first revision that is still owed.
    ///
    /// # Errors
    /// The first wrong message.
    pub fn check(&self, truth: &Truth) -> Result<i64, Violation> {
        let mut follow = Follow { watcher: self, truth, begun: 0, next: 0, partial: Vec::new() };
        for (_, message) in &self.told {
            follow.message(message)?;
        }
        Ok(follow.next)
    }

    /// As `check`, for a watcher that had time to hear everything: nothing up to `until` may be missing.
    ///
    /// # Errors
    /// The first wrong message, or what was never told.
    pub fn check_complete(&self, truth: &Truth, until: i64) -> Result<(), Violation> {
        let next = self.check(truth)?;
        let mut owed = truth.between(next, until + 1).iter().filter(|change| self.covers(&change.key));
        match owed.next() {
            None => Ok(()),
            Some(missing) => Err(Violation::Gap {
                watcher: self.name.clone(),
                missing: missing.clone(),
                then: "the end".to_owned(),
            }),
        }
    }

    /// Revisions and when they were told.
    pub fn sightings(&self) -> impl Iterator<Item = (Moment, i64)> + '_ {
        self.told.iter().filter_map(|(moment, message)| match message {
            Message::Events { events, .. } => Some((*moment, events.last()?.change.revision)),
            _ => None,
        })
    }
}

/// Checks that what was told could be read from then on, linearizably. Sightings and readings are of one history.
///
/// # Errors
/// The first reading that saw less than had been told before it began.
pub fn check_readable(
    sightings: impl Iterator<Item = (Moment, i64)>,
    readings: &[Reading],
) -> Result<(), Violation> {
    let mut sightings: Vec<_> = sightings.collect();
    sightings.sort_by_key(|(moment, _)| moment.seq);
    let mut readings: Vec<&Reading> = readings.iter().collect();
    readings.sort_by_key(|reading| reading.invoked.seq);
    let mut sightings = sightings.into_iter().peekable();
    let mut highest: Option<(Moment, i64)> = None;
    for reading in readings {
        while let Some(told) = sightings.next_if(|(moment, _)| moment.seq < reading.invoked.seq) {
            highest = highest.filter(|(_, revision)| *revision >= told.1).or(Some(told));
        }
        if let Some((at, revision)) = highest
            && reading.revision < revision
        {
            return Err(Violation::NotReadable { revision, at, reading: *reading });
        }
    }
    Ok(())
}

struct Follow<'a> {
    watcher: &'a Watcher,
    truth: &'a Truth,
    /// First revision of the present stream.
    begun: i64,
    /// First revision that is owed.
    next: i64,
    /// What was told of the revision `next` by messages that another follows.
    partial: Vec<Event>,
}

impl Follow<'_> {
    fn message(&mut self, message: &Message) -> Result<(), Violation> {
        match message {
            Message::Opened { from } => {
                self.begun = *from;
                self.next = *from;
                self.partial.clear();
            }
            Message::Events { events, fragment } => {
                self.partial.extend(events.iter().cloned());
                let mut told = std::mem::take(&mut self.partial);
                while let Some(first) = told.first() {
                    let revision = first.change.revision;
                    let rest = told.iter().position(|event| event.change.revision != revision);
                    if rest.is_none() && *fragment {
                        self.partial = told;
                        break;
                    }
                    let rest = told.split_off(rest.unwrap_or(told.len()));
                    self.revision(revision, &told)?;
                    told = rest;
                }
            }
            Message::Progress { revision } => {
                if let Some(missing) = self.owed(*revision + 1).next() {
                    let (watcher, missing) = (self.name(), missing.clone());
                    return Err(Violation::Progress { watcher, progress: *revision, missing });
                }
                self.next = self.next.max(revision + 1);
            }
            Message::Compacted => self.partial.clear(),
        }
        Ok(())
    }

    /// All events of one revision.
    fn revision(&mut self, revision: i64, told: &[Event]) -> Result<(), Violation> {
        let first = &told[0].change;
        if revision < self.next {
            let again = revision >= self.begun && self.truth.at(revision).contains(first);
            return Err(if again {
                Violation::Duplicate { watcher: self.name(), again: first.clone() }
            } else {
                Violation::BeforeStart { watcher: self.name(), told: first.clone(), from: self.begun }
            });
        }
        if let Some(missing) = self.owed(revision).next() {
            let then = format!("{first:?}");
            return Err(Violation::Gap { watcher: self.name(), missing: missing.clone(), then });
        }
        let mut due = self.truth.at(revision).iter().filter(|change| self.watcher.covers(&change.key));
        for event in told {
            let expected = due.next();
            if expected != Some(&event.change) {
                return Err(self.unexpected(&event.change, expected));
            }
            let was = self.truth.before(&event.change.key, revision);
            // As in etcd, the value before a change of the compacted revision is gone.
            let gone = event.previous == Some(None) && self.truth.was_compacted_to(revision);
            if event.previous.as_ref().is_some_and(|previous| *previous != was) && !gone {
                return Err(Violation::Previous { watcher: self.name(), told: event.clone(), was });
            }
        }
        if let Some(missing) = due.next() {
            let then = format!("what follows revision {revision}");
            return Err(Violation::Gap { watcher: self.name(), missing: missing.clone(), then });
        }
        self.next = revision + 1;
        Ok(())
    }

    fn unexpected(&self, told: &Change, expected: Option<&Change>) -> Violation {
        let watcher = self.name();
        if !self.truth.at(told.revision).contains(told) {
            return Violation::Invented { watcher, told: told.clone() };
        }
        match expected {
            Some(_) => Violation::Order { watcher, told: told.clone(), expected: expected.cloned() },
            None => Violation::Duplicate { watcher, again: told.clone() },
        }
    }

    fn owed(&self, until: i64) -> impl Iterator<Item = &Change> {
        self.truth.between(self.next, until).iter().filter(|change| self.watcher.covers(&change.key))
    }

    fn name(&self) -> String {
        self.watcher.name.clone()
    }
}
