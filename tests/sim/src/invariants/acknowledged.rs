//! No acknowledged write is lost (A07), none is applied that was refused or more often than it was asked for (A03, A06).

use super::Finished;

pub(crate) fn check(run: &Finished) -> Result<(), String> {
    run.truth.check_writes(&run.calls).map_err(|wrong| wrong.to_string())
}
