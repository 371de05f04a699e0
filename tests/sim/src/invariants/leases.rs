//! A lease lives as long as it was promised, ends soon after, and takes its key along (S01 to S04, S06, S07).

use std::collections::BTreeMap;
use std::time::Duration;

use weft_tests::checker::lease::{self, Bounds, Fact, Note};

use super::Finished;

/// How far the clocks of servers are made to differ from the clients', in thousandths of their speed.
const SKEW_PERMILLE: u32 = 55;

/// How late a lease may end while all is well: one round of the log, and the election that healing may bring.
const LATE_MAX: Duration = Duration::from_secs(4);

pub(crate) fn check(run: &Finished) -> Result<(), String> {
    let mut by_lease: BTreeMap<i64, Vec<Note>> = BTreeMap::new();
    for note in &run.notes {
        by_lease.entry(note.lease).or_default().push(*note);
    }
    by_lease.values().try_for_each(|notes| {
        let renewed = notes.iter().filter(|note| matches!(note.fact, Fact::Renewed(_)));
        let well = renewed.filter_map(|note| note.answered).all(|answered| answered.at > run.healed);
        // While there is no majority a lease can end neither in time nor too early.
        let late = if well { LATE_MAX } else { run.healed + LATE_MAX };
        let bounds = Bounds { late, skew_permille: SKEW_PERMILLE };
        lease::check(notes, bounds).map_err(|wrong| wrong.to_string())
    })
}
