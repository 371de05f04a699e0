//! Memory of the program's own file, once it has started.

use std::time::Duration;

/// After which the start is over: the group is formed or joined, the first configuration is there.
const START_TAKES: Duration = Duration::from_secs(10);

/// Lets go, a little later, of the pages of the program that only its start needed: command line, files, certificates,
/// joining. What is used afterwards is mapped again from the page cache, 64 KiB around each first use, so that a process
/// at rest has about what it works with. Does nothing where it does not know how.
pub(crate) fn let_go_after_start() {
    #[cfg(target_os = "linux")]
    tokio::spawn(async {
        tokio::time::sleep(START_TAKES).await;
        // Reading what is mapped takes a millisecond or two for each GiB in use.
        let _ = tokio::task::spawn_blocking(linux::let_go).await;
    });
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{fs, io};

    use rustix::mm::{Advice, madvise};

    /// A part of the program's file in memory.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Mapping {
        start: usize,
        len: usize,
    }

    pub(super) fn let_go() {
        let unmapped = (|| {
            let program = fs::read_link("/proc/self/exe")?;
            let maps = fs::read_to_string("/proc/self/smaps")?;
            clean(&maps, &program.to_string_lossy()).into_iter().try_for_each(unmap)
        })();
        if let Err(error) = unmapped {
            tracing::debug!(%error, "pages of the start stay mapped");
        }
    }

    #[allow(unsafe_code)]
    fn unmap(Mapping { start, len }: Mapping) -> io::Result<()> {
        let at = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: the mapping is of a file, not writable, and no page of it was ever written to, so that a page which is
        // dropped is read again with the same bytes, by whoever needs it and whenever.
        Ok(unsafe { madvise(at, len, Advice::LinuxDontNeed) }?)
    }

    /// The mappings of a file that cannot be written to and of which no page has been: what the linker relocated at the
    /// start was, and would be lost.
    fn clean(smaps: &str, file: &str) -> Vec<Mapping> {
        let mut found = Vec::new();
        let mut candidate = None;
        for line in smaps.lines() {
            if let Some(mapping) = head(line) {
                candidate = mapping.filter(|_| line.ends_with(file));
            } else if let Some(rest) = line.strip_prefix("Anonymous:").or_else(|| line.strip_prefix("Swap:"))
            {
                // Both lines must be there and say nothing; Swap is the later one.
                let is_clean = rest.trim() == "0 kB";
                candidate = candidate.filter(|_| is_clean);
                if line.starts_with("Swap:") {
                    found.extend(candidate.take());
                }
            }
        }
        found
    }

    /// The mapping that a line begins; none in it if it may be written to. None if it is no such line.
    fn head(line: &str) -> Option<Option<Mapping>> {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        let mapping = Mapping { start, len: end.checked_sub(start)? };
        let permissions = rest.split(' ').next()?;
        Some((permissions.starts_with('r') && permissions[1..].starts_with('-')).then_some(mapping))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        const SMAPS: &str = "\
55d0a000-55d0b000 r--p 00000000 fe:00 42                                 /usr/bin/weft
Rss:                   4 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd mr mw me
55d0b000-55d1b000 r-xp 00001000 fe:00 42                                 /usr/bin/weft
Anonymous:             0 kB
Swap:                  0 kB
55d1b000-55d1c000 r--p 00011000 fe:00 42                                 /usr/bin/weft
Anonymous:             4 kB
Swap:                  0 kB
55d1c000-55d1d000 r--p 00012000 fe:00 42                                 /usr/bin/weft
Anonymous:             0 kB
Swap:                  4 kB
55d1d000-55d1e000 rw-p 00013000 fe:00 42                                 /usr/bin/weft
Anonymous:             0 kB
Swap:                  0 kB
7f000000-7f001000 r-xp 00000000 fe:00 43                                 /usr/lib/libc.so.6
Anonymous:             0 kB
Swap:                  0 kB
";

        #[test]
        fn only_pages_of_the_program_that_nobody_wrote_to_are_let_go() {
            let found = clean(SMAPS, "/usr/bin/weft");
            let expected = [(0x55d0_a000, 0x1000), (0x55d0_b000, 0x1_0000)];
            assert_eq!(found, expected.map(|(start, len)| Mapping { start, len }));
        }

        #[test]
        fn the_program_has_such_pages_and_goes_on_without_them() {
            let program = fs::read_link("/proc/self/exe").expect("Linux has it");
            let maps = fs::read_to_string("/proc/self/smaps").expect("and this");
            let mappings = clean(&maps, &program.to_string_lossy());
            assert!(mappings.iter().any(|m| m.len > 1 << 20), "the code at least: {mappings:?}");
            let_go();
        }
    }
}
