//! When leases and their keys ended, against what their owners were told.
//!
//! A renewal that was sent at `s` and acknowledged keeps the lease until `s + ttl` at least, measured at the client, since
//! the server received it no earlier. It ends within a stated time after the last renewal that can have reached it. S01: a
//! lease ends while renewals are acknowledged; S02, S03: it ends too late; S04: lease and key do not end together.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::history::Moment;

/// What was asked about a lease, or seen of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fact {
    /// Granted or renewed: the answer told this time to live. The answer may be missing.
    Renewed(Duration),
    /// Its end was asked for.
    Revoked,
    /// A server said that there is no such lease.
    Gone,
    /// Its key was read, linearizably, and was there.
    KeyThere,
    /// Its key was read, linearizably, and was not there. Nobody but the lease deletes it.
    KeyGone,
}

/// One fact about one lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Note {
    /// The lease.
    pub lease: i64,
    /// What.
    pub fact: Fact,
    /// When the request was sent.
    pub sent: Moment,
    /// When the answer had arrived; none: it never did.
    pub answered: Option<Moment>,
}

/// What is allowed.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How long after its time to live a lease may still be there. Includes an election or as many as there were.
    pub late: Duration,
    /// By how much of a time to live server and client clocks may differ in rate, in thousandths.
    pub skew_permille: u32,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Violation {
    #[error(
        "S01: lease {lease:x} was seen to have ended ({seen:?}), but {renewal:?} keeps it until {until:?}"
    )]
    Early { lease: i64, seen: Note, renewal: Note, until: Duration },
    #[error("S02, S03: {seen:?} at {at:?}, but lease {lease:x} had to be over at {until:?}")]
    Late { lease: i64, seen: Note, at: Duration, until: Duration },
    #[error("S04: the key of lease {lease:x} was there ({seen:?}) after the lease was gone ({gone:?})")]
    KeySurvives { lease: i64, seen: Note, gone: Note },
    #[error("S04, S06: lease {lease:x} was renewed ({renewal:?}) after it was seen to be gone ({gone:?})")]
    Revived { lease: i64, renewal: Note, gone: Note },
}

/// Checks all notes. Ids of leases are not used twice.
///
/// # Errors
/// The first violation, by lease.
pub fn check(notes: &[Note], bounds: Bounds) -> Result<(), Violation> {
    let mut by_lease: BTreeMap<i64, Vec<Note>> = BTreeMap::new();
    for note in notes {
        by_lease.entry(note.lease).or_default().push(*note);
    }
    by_lease.into_iter().try_for_each(|(lease, notes)| of_one(lease, &notes, bounds))
}

fn of_one(lease: i64, notes: &[Note], bounds: Bounds) -> Result<(), Violation> {
    let scaled = |ttl: Duration, permille: u32| ttl * permille / 1000;
    let revoked = notes.iter().filter(|note| note.fact == Fact::Revoked).map(|note| note.sent.seq).min();
    let ends = |note: &&Note| matches!(note.fact, Fact::Gone | Fact::KeyGone) && note.answered.is_some();
    for note in notes {
        let Fact::Renewed(ttl) = note.fact else { continue };
        if note.answered.is_none() {
            continue;
        }
        let until = note.sent.at + scaled(ttl, 1000 - bounds.skew_permille);
        for seen in notes.iter().filter(ends) {
            let at = seen.answered.expect("filtered");
            let by_request = revoked.is_some_and(|revoked| revoked < at.seq);
            if at.at < until && !by_request && at.seq > note.sent.seq {
                return Err(Violation::Early { lease, seen: *seen, renewal: *note, until });
            }
        }
    }
    check_end(lease, notes)?;
    // A renewal whose answer was lost may have arrived at any time, so nothing can be said about lateness.
    let renewals = notes.iter().filter_map(|note| match note.fact {
        Fact::Renewed(ttl) => Some(note.answered.map(|at| at.at + scaled(ttl, 1000 + bounds.skew_permille))),
        _ => None,
    });
    let Some(Some(until)) = renewals.collect::<Option<Vec<_>>>().map(|all| all.into_iter().max()) else {
        return Ok(());
    };
    let until = until + bounds.late;
    let late = |note: &&Note| note.fact == Fact::KeyThere && note.answered.is_some() && note.sent.at > until;
    match notes.iter().find(late) {
        Some(seen) => Err(Violation::Late { lease, seen: *seen, at: seen.sent.at, until }),
        None => Ok(()),
    }
}

/// Once over, a lease and its key stay so.
fn check_end(lease: i64, notes: &[Note]) -> Result<(), Violation> {
    let over = |note: &&Note| matches!(note.fact, Fact::Gone | Fact::KeyGone);
    let gone = notes.iter().filter(over).filter_map(|note| Some((note.answered?.seq, *note)));
    let Some((since, gone)) = gone.min_by_key(|(seq, _)| *seq) else { return Ok(()) };
    for note in notes.iter().filter(|note| note.sent.seq > since && note.answered.is_some()) {
        match note.fact {
            Fact::KeyThere => return Err(Violation::KeySurvives { lease, seen: *note, gone }),
            Fact::Renewed(_) => return Err(Violation::Revived { lease, renewal: *note, gone }),
            Fact::Revoked | Fact::Gone | Fact::KeyGone => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { late: Duration::from_secs(2), skew_permille: 0 };
    const TTL: Fact = Fact::Renewed(Duration::from_secs(10));

    fn moment(at: u64) -> Moment {
        Moment { seq: at, at: Duration::from_secs(at) }
    }

    fn note(sent: u64, answered: u64, fact: Fact) -> Note {
        Note { lease: 7, fact, sent: moment(sent), answered: Some(moment(answered)) }
    }

    #[test]
    fn a_lease_that_ends_in_time_with_its_key_passes() {
        let notes = [
            note(0, 1, TTL),
            note(5, 6, TTL),
            note(15, 17, Fact::KeyThere),
            note(18, 19, Fact::KeyGone),
            note(20, 21, Fact::Gone),
        ];
        assert_eq!(check(&notes, BOUNDS), Ok(()));
    }

    #[test]
    fn an_end_while_renewals_are_acknowledged_is_found() {
        let notes = [note(0, 1, TTL), note(5, 6, TTL), note(11, 12, Fact::KeyGone)];
        assert!(matches!(check(&notes, BOUNDS), Err(Violation::Early { .. })));
        // Not if it was asked for.
        let notes = [note(0, 1, TTL), note(2, 3, Fact::Revoked), note(4, 5, Fact::KeyGone)];
        assert_eq!(check(&notes, BOUNDS), Ok(()));
    }

    #[test]
    fn a_renewal_without_an_answer_promises_nothing_and_allows_everything() {
        let lost = Note { answered: None, ..note(5, 5, TTL) };
        assert_eq!(check(&[note(0, 1, TTL), lost, note(11, 12, Fact::KeyGone)], BOUNDS), Ok(()));
        assert_eq!(check(&[note(0, 1, TTL), lost, note(90, 91, Fact::KeyThere)], BOUNDS), Ok(()));
    }

    #[test]
    fn a_key_that_is_there_too_late_is_found() {
        let notes = [note(0, 1, TTL), note(14, 15, Fact::KeyThere)];
        assert!(matches!(check(&notes, BOUNDS), Err(Violation::Late { .. })));
    }

    #[test]
    fn a_key_that_survives_its_lease_is_found() {
        let notes = [note(0, 1, TTL), note(11, 12, Fact::Gone), note(13, 14, Fact::KeyThere)];
        assert!(matches!(check(&notes, BOUNDS), Err(Violation::KeySurvives { .. })));
    }

    #[test]
    fn a_lease_that_comes_back_is_found() {
        let notes = [note(0, 1, TTL), note(11, 12, Fact::Gone), note(13, 14, TTL)];
        assert!(matches!(check(&notes, BOUNDS), Err(Violation::Revived { .. })));
    }

    #[test]
    fn clocks_that_differ_in_rate_are_allowed_for() {
        let notes = [note(0, 1, TTL), note(8, 9, Fact::KeyGone)];
        assert!(check(&notes, BOUNDS).is_err());
        assert_eq!(check(&notes, Bounds { skew_permille: 100, ..BOUNDS }), Ok(()));
    }
}
