//! A simulation that never failed proves nothing: each planted mistake is found within a stated number of seeds. The
//! table in the README is this one.

use std::process::{Command, Stdio};

/// Plants a mistake and says in which of the first seeds it is found, if in any.
fn found_in(arguments: &str, seeds: u64) -> Option<u64> {
    (1..=seeds).find(|seed| {
        let status = Command::new(env!("CARGO_BIN_EXE_weft-simulate"))
            .arg("--defect")
            .args(arguments.split(' '))
            .args(["--seed", &seed.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("the simulator was built with this test");
        !status.success()
    })
}

macro_rules! found {
    ($($test:ident: $defect:literal within $seeds:literal,)*) => {
        $(#[test]
        fn $test() {
            let found = found_in($defect, $seeds);
            assert!(found.is_some(), "{} was not found in seeds 1 to {}", $defect, $seeds);
        })*
    };
}

found! {
    a_stale_read_is_found: "stale-read" within 16,
    a_lost_write_is_found: "lost-write" within 8,
    a_skipped_sync_is_found: "skipped-sync" within 8,
    a_command_applied_twice_is_found: "duplicate-apply" within 8,
    a_key_that_outlives_its_lease_is_found: "key-outlives-lease" within 8,
    a_lease_that_ends_early_is_found: "early-revoke" within 16,
    a_change_lost_to_compaction_is_found: "compaction-loses-delete" within 8,
    a_wrong_revision_after_restore_is_found: "revision-after-restore" within 8,
    a_gap_in_what_watchers_are_told_is_found: "watch-gap --plot left-behind" within 4,
    a_vote_that_is_forgotten_is_found: "forgotten-vote --plot vote-cut-short" within 4,
}
