//! Revisions of answers: they never go back and are never given twice (A08), and who has seen one never sees an older
//! one (A11).

use std::collections::BTreeMap;
use std::fmt;

use crate::checker::kv::{Answer, Call, Op, Seen};
use crate::history::{End, History, Moment, Process};

/// The revision that one answer told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Who was told.
    pub process: Process,
    /// When it asked.
    pub invoked: Moment,
    /// When it was told.
    pub ended: Moment,
    /// The store's revision.
    pub revision: i64,
    /// Whether the operation took this revision for its own write.
    pub wrote: bool,
}

/// Two answers that contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Two writes have the same revision.
    #[error("A08: two writes have one revision: {} and {}", Told(.0), Told(.1))]
    Repeated(Reading, Reading),
    /// An operation that began after another had ended tells an older revision, or writes one not above it.
    #[error("A08: revision goes back: {} was over before {}", Told(.0), Told(.1))]
    Decreased(Reading, Reading),
    /// A process is told an older revision than before.
    #[error("A11: a process is told an older revision than before: {} and then {}", Told(.0), Told(.1))]
    Session(Reading, Reading),
}

struct Told<'a>(&'a Reading);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Reading { process, invoked, ended, revision, wrote } = self.0;
        let what = if *wrote { "wrote" } else { "read at" };
        let (from, to) = (invoked.at.as_secs_f64(), ended.at.as_secs_f64());
        write!(f, "[{from:.3}..{to:.3}] {process} {what} revision {revision}")
    }
}

/// The revisions that the answers of a history tell.
pub fn readings(history: &History<Call, Answer>) -> Vec<Reading> {
    let of = |op: &crate::history::Operation<Call, Answer>| {
        let End::Ok { moment, answer } = &op.end else { return None };
        let branch = op.call.branch(answer.succeeded?);
        let wrote = match &answer.seen {
            Some(seen) => seen.iter().any(|seen| matches!(seen, Seen::Put | Seen::Deleted(1..))),
            None => branch.iter().any(|op| matches!(op, Op::Put(..))),
        };
        let revision = answer.revision?;
        Some(Reading { process: op.process, invoked: op.invoked, ended: *moment, revision, wrote })
    };
    history.operations().iter().filter_map(of).collect()
}

/// Checks linearizable readings: in real time revisions do not decrease, and no write's revision comes twice.
///
/// # Errors
/// The first contradiction, in the order of answers.
pub fn check(readings: &[Reading]) -> Result<(), Violation> {
    let mut writes: BTreeMap<i64, Reading> = BTreeMap::new();
    for reading in readings.iter().filter(|reading| reading.wrote) {
        if let Some(other) = writes.insert(reading.revision, *reading) {
            return Err(Violation::Repeated(other, *reading));
        }
    }
    let mut by_call: Vec<&Reading> = readings.iter().collect();
    let mut by_end = by_call.clone();
    by_call.sort_by_key(|reading| reading.invoked.seq);
    by_end.sort_by_key(|reading| reading.ended.seq);
    let mut ended = by_end.into_iter().peekable();
    let mut highest: Option<Reading> = None;
    for reading in by_call {
        while let Some(before) = ended.next_if(|before| before.ended.seq < reading.invoked.seq) {
            if highest.is_none_or(|highest| highest.revision < before.revision) {
                highest = Some(*before);
            }
        }
        if let Some(highest) = highest
            && (reading.revision < highest.revision || reading.wrote && reading.revision == highest.revision)
        {
            return Err(Violation::Decreased(highest, *reading));
        }
    }
    Ok(())
}

/// Checks readings that promise no more than to go forward for each process.
///
/// # Errors
/// The first step back.
pub fn check_sessions(readings: &[Reading]) -> Result<(), Violation> {
    let mut last: BTreeMap<Process, Reading> = BTreeMap::new();
    let mut by_end: Vec<&Reading> = readings.iter().collect();
    by_end.sort_by_key(|reading| reading.ended.seq);
    for reading in by_end {
        match last.insert(reading.process, *reading) {
            Some(before) if before.revision > reading.revision => {
                return Err(Violation::Session(before, *reading));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn reading(process: u32, from: u64, to: u64, revision: i64, wrote: bool) -> Reading {
        let moment = |seq| Moment { seq, at: Duration::from_secs(seq) };
        Reading { process: Process(process), invoked: moment(from), ended: moment(to), revision, wrote }
    }

    #[test]
    fn operations_that_overlap_may_tell_revisions_in_any_order() {
        let fine = [reading(1, 0, 3, 5, true), reading(2, 1, 2, 6, true), reading(1, 4, 5, 6, false)];
        assert_eq!(check(&fine), Ok(()));
    }

    #[test]
    fn a_revision_that_goes_back_in_real_time_is_found() {
        let (a, b) = (reading(1, 0, 1, 6, true), reading(2, 2, 3, 5, false));
        assert_eq!(check(&[b, a]), Err(Violation::Decreased(a, b)));
        let text = Violation::Decreased(a, b).to_string();
        assert!(text.contains("[0.000..1.000] p1 wrote revision 6"), "{text}");
    }

    #[test]
    fn a_revision_that_is_given_twice_is_found() {
        let (a, b) = (reading(1, 0, 3, 6, true), reading(2, 1, 2, 6, true));
        assert_eq!(check(&[a, b]), Err(Violation::Repeated(a, b)));
        // One after the other is as bad, also if the first was only read.
        let (read, write) = (reading(1, 0, 1, 6, false), reading(2, 2, 3, 6, true));
        assert_eq!(check(&[read, write]), Err(Violation::Decreased(read, write)));
    }

    #[test]
    fn only_the_process_that_saw_a_revision_must_not_go_behind_it() {
        let (a, b, c) = (reading(1, 0, 1, 6, false), reading(2, 2, 3, 5, false), reading(1, 4, 5, 5, false));
        assert_eq!(check_sessions(&[a, b]), Ok(()));
        assert_eq!(check_sessions(&[a, b, c]), Err(Violation::Session(a, c)));
    }
}
