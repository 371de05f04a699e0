//! A network of its own for a test: hosts in network namespaces, joined by a switch in this process that loses, delays,
//! repeats and reorders packets and cuts links one way or both.
//!
//! - [`fabric`]: what happens to each packet (pure, seeded).
//! - [`switch`]: packets between the hosts' tunnel devices, and [`tun`], such a device.
//! - [`host`]: a network namespace, and the processes in it.
//! - [`cluster`]: servers, each on a host of its own, and [`nemesis`], which torments them.
//!
//! A switch of our own does more than `tc netem` and the packet filter together (one-way cuts, one seed), and needs no
//! kernel module but tun, so it also works where those are missing.
//!
//! [`inside`] runs a test in a namespace of networks and processes in which all of it lives: when that ends, for whatever
//! reason, nothing of it is left.

pub mod cluster;
pub mod fabric;
pub mod host;
pub mod nemesis;
pub mod switch;
pub mod tun;

use std::process::{Command, Stdio};

/// Set in the process that runs in the namespace.
const INSIDE: &str = "WEFT_TEST_INSIDE_NETNS";
/// `waive` skips the tests that need namespaces, with a line that says so.
const WAIVER: &str = "WEFT_TEST_NETNS";

/// Runs `test` in namespaces of its own. `name` is the full name of the calling test, which is run again in there.
///
/// # Panics
/// If namespaces are not permitted here and that was not waived; if the test failed.
pub fn inside<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F) {
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        return runtime.expect("a runtime can be made").block_on(test());
    }
    if std::env::var(WAIVER).is_ok_and(|value| value == "waive") {
        eprintln!("SKIPPED {name}: {WAIVER}=waive");
        return;
    }
    if let Err(why) = permitted() {
        panic!(
            "network namespaces are not permitted here: {why}; run this as root with access to /dev/net/tun, or set \
             {WAIVER}=waive to leave out the tests that need them"
        );
    }
    let test = std::env::current_exe().expect("a running test has a path");
    // All processes in there end with the first one, and that ends with this one.
    let mut unshare = Command::new("setpriv");
    unshare.args(["--pdeathsig=KILL", "unshare"]);
    unshare.args(["--net", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--"]);
    unshare.arg(test).args([name, "--exact", "--nocapture"]).env(INSIDE, "1").stdin(Stdio::null());
    let ended = unshare.status().expect("unshare can be started: it was a moment ago");
    assert!(ended.success(), "{name} failed in its namespaces ({ended}); its words are above");
}

fn permitted() -> Result<(), String> {
    let try_out = "ip link set lo up && ip tuntap add dev probe mode tun";
    let args = ["--net", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "sh", "-c", try_out];
    match Command::new("unshare").args(args).stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("unshare: {error}")),
    }
}
