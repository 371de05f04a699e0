//! `deploy/demo/run`, in short: three services with sidecars under load, while instances are killed, slowed, made to fail
//! and replaced, and sidecars upgraded. The script itself judges what the caller saw.

use std::process::Command;

use weft_tests::process::{weft_bin, workspace};

#[test]
fn the_demo_keeps_its_bounds() {
    let load = weft_bin().with_file_name("weft-load");
    let demo = workspace().join("deploy/demo/run");
    let output = Command::new(demo)
        .args(["2", "50"])
        .env("WEFT_BIN", weft_bin())
        .env("WEFT_LOAD_BIN", load)
        .output()
        .expect("the script runs");
    let (said, why) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{why}");
    let phases: Vec<&str> = said.lines().filter(|line| line.contains(" failures ")).collect();
    assert_eq!(phases.len(), 6, "{said}");
    for calm in ["calm", "are replaced", "are upgraded in place"] {
        assert!(
            phases.iter().any(|phase| phase.contains(calm) && phase.contains("failures 0 ")),
            "{calm}: {said}"
        );
    }
}
