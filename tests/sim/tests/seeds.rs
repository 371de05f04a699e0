//! A bounded number of seeds, each in a process of its own; more by hand: `weft simulate --seed N --count M`.

use std::process::{Command, Output};

fn simulate(arguments: &[&str]) -> (bool, String) {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_weft-simulate"))
        .args(arguments)
        .output()
        .expect("the simulator was built with this test");
    let text = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    (status.success(), text)
}

#[test]
fn the_same_seed_is_the_same_run() {
    let trace = |seed: &str| {
        let (ok, text) = simulate(&["--seed", seed, "--seconds", "3"]);
        assert!(ok, "{text}");
        text.split("trace ").nth(1).expect("is told")[..16].to_owned()
    };
    let first = trace("7");
    assert_eq!(first, trace("7"));
    assert_ne!(first, trace("8"));
}

#[test]
fn groups_keep_their_promises_whatever_goes_wrong() {
    let (ok, text) = simulate(&["--seed", "1", "--count", "3"]);
    assert!(ok, "{text}");
}
