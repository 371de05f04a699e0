//! CPU time of the measured processes, as the scheduler counts it.

use anyhow::Context;

/// Nanoseconds that all threads of these processes have run. Threads that ended in between are lost, so
/// measure processes whose threads stay.
pub fn nanos(pids: &[u32]) -> anyhow::Result<u64> {
    let mut sum = 0;
    for pid in pids {
        let tasks =
            std::fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid}"))?;
        for task in tasks {
            let file = task?.path().join("schedstat");
            // A thread may end between the listing and the reading.
            let Ok(text) = std::fs::read_to_string(&file) else { continue };
            let first = text.split_ascii_whitespace().next().context("an empty schedstat")?;
            sum += first.parse::<u64>()?;
        }
    }
    Ok(sum)
}
