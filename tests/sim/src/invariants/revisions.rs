//! Revisions grow strictly with each write and never go back, for all clients together (A08) and for each (A11).

use weft_tests::checker::revision;

use super::Finished;

pub(crate) fn check(run: &Finished) -> Result<(), String> {
    revision::check(&run.readings).map_err(|wrong| wrong.to_string())?;
    revision::check_sessions(&run.readings).map_err(|wrong| wrong.to_string())
}
