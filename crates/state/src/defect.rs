//! Defects planted on purpose, to prove that the simulation of whole groups would find them.
//!
//! Each stands at one place in the code as `if planted(Defect::…)`. None is planted unless a simulation does so, for its
//! own thread; a build without debug assertions, which every release is, does not contain them.

use std::cell::Cell;
use std::fmt;

/// A mistake that somebody could make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// A leader answers reads without asking a majority whether it still leads.
    StaleRead,
    /// An entry is acknowledged when it is handed to the disk, not when the disk has it.
    LostWrite,
    /// A sync of the log does nothing.
    SkippedSync,
    /// A vote is given before it is on disk.
    ForgottenVote,
    /// A command whose outcome is unknown is proposed again.
    DuplicateApply,
    /// A new leader gives leases half of their time.
    EarlyRevoke,
    /// A lease that runs out leaves its keys behind.
    KeyOutlivesLease,
    /// Watchers go on behind a snapshot without what it brought.
    WatchGap,
    /// A watch that starts at the oldest readable revision is not told that revision's own changes.
    CompactionLosesDelete,
    /// A state read from a snapshot is one revision behind.
    RevisionAfterRestore,
}

impl Defect {
    /// All of them.
    pub const ALL: [Defect; 10] = [
        Defect::StaleRead,
        Defect::LostWrite,
        Defect::SkippedSync,
        Defect::ForgottenVote,
        Defect::DuplicateApply,
        Defect::EarlyRevoke,
        Defect::KeyOutlivesLease,
        Defect::WatchGap,
        Defect::CompactionLosesDelete,
        Defect::RevisionAfterRestore,
    ];

    /// What to call it on a command line: `stale-read`.
    pub fn name(self) -> &'static str {
        match self {
            Defect::StaleRead => "stale-read",
            Defect::LostWrite => "lost-write",
            Defect::SkippedSync => "skipped-sync",
            Defect::ForgottenVote => "forgotten-vote",
            Defect::DuplicateApply => "duplicate-apply",
            Defect::EarlyRevoke => "early-revoke",
            Defect::KeyOutlivesLease => "key-outlives-lease",
            Defect::WatchGap => "watch-gap",
            Defect::CompactionLosesDelete => "compaction-loses-delete",
            Defect::RevisionAfterRestore => "revision-after-restore",
        }
    }
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

thread_local! {
    static PLANTED: Cell<Option<Defect>> = const { Cell::new(None) };
}

/// Plants one on this thread, in place of another. False: this build cannot.
pub fn plant(defect: Option<Defect>) -> bool {
    PLANTED.set(defect);
    cfg!(debug_assertions) || defect.is_none()
}

/// Whether it is planted on this thread; a constant in a release.
#[inline]
pub fn planted(defect: Defect) -> bool {
    cfg!(debug_assertions) && PLANTED.get() == Some(defect)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_planted_unless_asked_for_and_on_no_other_thread() {
        assert!(!Defect::ALL.into_iter().any(planted));
        plant(Some(Defect::WatchGap));
        assert_eq!(planted(Defect::WatchGap), cfg!(debug_assertions));
        assert!(!planted(Defect::StaleRead));
        assert!(!std::thread::spawn(|| planted(Defect::WatchGap)).join().expect("does not panic"));
    }
}
