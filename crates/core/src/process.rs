//! What the system knows of this process.

/// Resident memory in bytes; none where the system does not tell.
pub fn resident_bytes() -> Option<u64> {
    // Linux only; elsewhere the file is not there.
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    resident_in(&status)
}

fn resident_in(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_from_the_line_that_has_it() {
        assert_eq!(resident_in("Name:\tweft\nVmRSS:\t    1234 kB\nThreads:\t5\n"), Some(1234 * 1024));
        for broken in ["", "VmRSS:\n", "VmRSS:\tmany kB\n", "VmRSS:\t12 MB\n"] {
            assert_eq!(resident_in(broken), None, "{broken:?}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_resident_memory() {
        assert!(resident_bytes().is_some_and(|bytes| bytes > 1024 * 1024));
    }
}
