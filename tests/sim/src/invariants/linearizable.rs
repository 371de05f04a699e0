//! All calls together are linearizable: reads are not stale (A01), updates not lost (A02), nothing dirty is read (A03).

use weft_tests::checker::kv::KvModel;
use weft_tests::checker::linear::{self, Verdict};

use super::Finished;

/// More than any run here needed; one that needs more is told, and is no violation.
const STEPS_MAX: u64 = 3_000_000;

pub(crate) fn check(run: &Finished) -> Result<(), String> {
    match linear::check_within(&KvModel::default(), &run.calls, STEPS_MAX) {
        Verdict::Linearizable { .. } => Ok(()),
        Verdict::Violation(counterexample) => Err(format!("A01, A02: not linearizable\n{counterexample}")),
        Verdict::Unknown { keys, operations, unknown, steps } => {
            println!(
                "linearizability was not decided within {steps} steps: {operations} operations on {keys}, {unknown} of \
                 them of unknown end"
            );
            Ok(())
        }
    }
}
