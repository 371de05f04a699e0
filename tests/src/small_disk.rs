//! A disk of its own, small enough to be filled: a tmpfs in a mount namespace that ends with the process in it.

use std::path::Path;
use std::process::Command;

use crate::mesh::strings;

const OWN_MOUNTS: [&str; 3] = ["unshare", "--mount", "--"];

/// What to put in front of a command so that it finds an empty disk of that size (as `mount` takes it) at `folder`,
/// which must exist. None if mount namespaces are not permitted and `WEFT_TEST_NETNS=waive` says to leave it at that.
///
/// # Panics
/// If they are not permitted and nobody waived the test.
pub fn prefix(folder: &Path, size: &str) -> Option<Vec<String>> {
    let mount = format!("mount -t tmpfs -o size={size} tmpfs {} && exec \"$0\" \"$@\"", folder.display());
    let mut prefix = strings(&OWN_MOUNTS);
    prefix.extend(strings(&["sh", "-c", &mount]));
    let tried = Command::new(&prefix[0]).args(&prefix[1..]).arg("true").output();
    if tried.is_ok_and(|output| output.status.success()) {
        return Some(prefix);
    }
    let waived = std::env::var("WEFT_TEST_NETNS").is_ok_and(|value| value == "waive");
    assert!(waived, "mount namespaces are not permitted here; WEFT_TEST_NETNS=waive leaves this test out");
    eprintln!("SKIPPED: WEFT_TEST_NETNS=waive");
    None
}
