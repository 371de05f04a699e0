//! Watchers are told every change of their range, once, in order, and never before it can be read (W01 to W05, W07, W10,
//! W12); in the end, all of them.

use weft_tests::checker::watch;

use super::Finished;

pub(crate) fn check(run: &Finished) -> Result<(), String> {
    for watcher in &run.watchers {
        watcher.check_complete(&run.truth, run.last).map_err(|wrong| wrong.to_string())?;
        watch::check_readable(watcher.sightings(), &run.readings).map_err(|wrong| wrong.to_string())?;
    }
    Ok(())
}
