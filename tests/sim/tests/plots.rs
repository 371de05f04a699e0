//! Scripted moments, for a seed or two each; more by hand: `weft simulate --plot NAME --seed N --count M`.

use std::process::{Command, Output};

fn play(plot: &str, seeds: u64) {
    for seed in 1..=seeds {
        let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_weft-simulate"))
            .args(["--plot", plot, "--seed", &seed.to_string()])
            .output()
            .expect("the simulator was built with this test");
        let text = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        assert!(status.success(), "{text}");
    }
}

/// R01, the scenario of openraft #1808: a snapshot replaces a log with a change of the group that was never committed.
#[test]
fn a_former_leader_does_not_keep_members_that_never_were() {
    play("stale-members", 1);
}

/// R04: a snapshot arrives while entries are written and applied, leaders change and power fails.
#[test]
fn what_a_late_snapshot_brings_has_no_gap() {
    play("late-snapshot", 1);
}

/// W01, W09.
#[test]
fn watchers_on_a_server_that_was_left_behind_miss_nothing() {
    play("left-behind", 1);
}

/// Raft §5.2.
#[test]
fn a_vote_that_was_given_outlives_a_loss_of_power() {
    play("vote-cut-short", 1);
}
