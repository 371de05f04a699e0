//! Segment files that wait for a use, so that going on in a new segment needs no space and no time.
//!
//! ```text
//!   made of zeros ──▶ spare ──▶ segment ──▶ purged
//!                       ▲                     │
//!                       └── renamed, as it is ┘        (more than SPARES_MAX of them are deleted)
//! ```
//! One spare, the *reserve*, is there from the start. Another one is made when the current segment is half
//! full. If it cannot be made the log is *full*: from then on only what frees space should be written, and for
//! that the rest of the segment and the reserve are left. Whoever makes spares tries again until it succeeds.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::{Condvar, Mutex};

use super::{
    disk::{Disk, out_of_space},
    segment,
};

/// Spares that purged segments are kept as. A snapshot frees several at once, and the log is about as long again
/// before the next one; but a log that was long once must not hold its space for ever.
const SPARES_MAX: usize = 4;

/// The reserve's part of a segment: enough for some ten thousand deletes.
const RESERVE_PART: u64 = 4;

/// Smallest reserve, in bytes.
const RESERVE_BYTES_MIN: u64 = 256;

/// How soon a spare is tried again after there was no space.
const RETRY: Duration = Duration::from_millis(500);

/// Extension of a file that is being made; one that is found at start is removed.
const UNFINISHED: &str = "tmp";

/// A spare file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spare {
    pub(super) number: u64,
    pub(super) bytes: u64,
}

impl Spare {
    pub(super) fn name(&self) -> String {
        segment::spare_name(self.number)
    }
}

/// What became of an attempt to have as many spares as wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// They are there.
    Enough,
    /// One was made; ask again.
    Made,
    /// There is no space for one.
    Full,
}

/// The spares of a log. The log's writer takes and gives, one thread makes.
pub struct Spares {
    disk: Arc<dyn Disk>,
    segment_bytes: u64,
    /// Covers no disk access.
    state: Mutex<State>,
    changed: Condvar,
    full: AtomicBool,
    made: AtomicU64,
    reused: AtomicU64,
}

#[derive(Default)]
struct State {
    free: Vec<Spare>,
    wanted: usize,
    next_number: u64,
    closed: bool,
}

impl Spares {
    /// Those that are on the disk. Removes what a crash left unfinished.
    pub fn open(disk: Arc<dyn Disk>, segment_bytes: u64) -> io::Result<Self> {
        let mut state = State { wanted: 1, ..State::default() };
        for name in disk.list()? {
            if name.strip_suffix(UNFINISHED).is_some_and(|stem| stem.ends_with(".spare.")) {
                disk.remove(&name)?;
            } else if let Some(number) = segment::parse_spare_name(&name) {
                state.next_number = state.next_number.max(number.saturating_add(1));
                state.free.push(Spare { number, bytes: disk.len(&name)? });
            }
        }
        Ok(Self {
            disk,
            segment_bytes,
            state: Mutex::new(state),
            changed: Condvar::new(),
            full: AtomicBool::new(false),
            made: AtomicU64::new(0),
            reused: AtomicU64::new(0),
        })
    }

    /// Whether a wanted spare could not be made.
    pub fn is_full(&self) -> bool {
        self.full.load(Relaxed)
    }

    /// Bytes of all spares.
    pub fn bytes(&self) -> u64 {
        self.state.lock().free.iter().map(|s| s.bytes).sum()
    }

    /// Files made since start.
    pub fn made(&self) -> u64 {
        self.made.load(Relaxed)
    }

    /// Segment files used again since start.
    pub fn reused(&self) -> u64 {
        self.reused.load(Relaxed)
    }

    /// The largest one, which is the caller's to rename.
    pub(super) fn take(&self) -> Option<Spare> {
        let mut state = self.state.lock();
        let largest = (0..state.free.len()).max_by_key(|at| state.free[*at].bytes)?;
        let spare = state.free.swap_remove(largest);
        self.changed.notify_all();
        Some(spare)
    }

    /// Gives one back that was taken and not renamed.
    pub(super) fn put_back(&self, spare: Spare) {
        self.state.lock().free.push(spare);
        self.changed.notify_all();
        self.settle();
    }

    /// Keeps the file of a segment that is no longer needed, or removes it.
    pub(super) fn recycle(&self, segment: u64, bytes: u64) -> io::Result<()> {
        let name = segment::file_name(segment);
        // One that a large group made long would hold its space for ever; a short one is soon full.
        let fits = (self.reserve_bytes()..=2 * self.segment_bytes).contains(&bytes);
        let number = {
            let mut state = self.state.lock();
            (fits && state.free.len() < SPARES_MAX).then(|| state.number())
        };
        let Some(number) = number else { return self.disk.remove(&name) };
        let spare = Spare { number, bytes };
        self.disk.rename(&name, &spare.name())?;
        self.reused.fetch_add(1, Relaxed);
        self.put_back(spare);
        Ok(())
    }

    /// How many there should be from now on.
    pub(super) fn want(&self, wanted: usize) {
        let mut state = self.state.lock();
        if state.wanted == wanted {
            return;
        }
        state.wanted = wanted;
        drop(state);
        self.changed.notify_all();
        self.settle();
    }

    /// Waits for a change, or for a time.
    pub(super) fn wait(&self, at_most: Duration) {
        self.changed.wait_for(&mut self.state.lock(), at_most);
    }

    /// Makes one if some are missing.
    ///
    /// # Errors
    /// Those of the disk but for a lack of space.
    pub fn fill_once(&self) -> io::Result<Filled> {
        let (number, bytes) = {
            let mut state = self.state.lock();
            if state.free.len() >= state.wanted {
                return Ok(Filled::Enough);
            }
            let whole = state.wanted > 1 && !state.free.iter().any(|s| s.bytes >= self.segment_bytes);
            (state.number(), if whole { self.segment_bytes } else { self.reserve_bytes() })
        };
        match self.make(number, bytes) {
            Ok(spare) => {
                self.put_back(spare);
                Ok(Filled::Made)
            }
            Err(error) if out_of_space(&error) => {
                if !self.full.swap(true, Relaxed) {
                    tracing::warn!(
                        folder = %self.disk.path("").display(), %error,
                        "the disk of the log is full: writes that need space are refused until there is some; \
                         deletes, compaction and what the group itself needs go on"
                    );
                }
                Ok(Filled::Full)
            }
            Err(error) => Err(error),
        }
    }

    /// A file of whole segment size, made at once.
    pub(super) fn make_whole(&self) -> io::Result<Spare> {
        let number = self.state.lock().number();
        self.make(number, self.segment_bytes)
    }

    /// Makes what is wanted until [`Spares::close`]. Blocks.
    pub(super) fn run(&self) {
        loop {
            let filled = self.fill_once();
            let mut state = self.state.lock();
            if state.closed {
                return;
            }
            match filled {
                Ok(Filled::Made) => {}
                Ok(Filled::Enough) => {
                    if state.free.len() >= state.wanted {
                        self.changed.wait(&mut state);
                    }
                }
                Ok(Filled::Full) => {
                    self.changed.wait_for(&mut state, RETRY);
                }
                // Nothing depends on it yet. Whatever it is, the log's own writes will meet it too.
                Err(error) => {
                    tracing::warn!(folder = %self.disk.path("").display(), %error, "cannot make a spare segment");
                    self.changed.wait_for(&mut state, 10 * RETRY);
                }
            }
        }
    }

    /// Ends [`Spares::run`].
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }

    fn make(&self, number: u64, bytes: u64) -> io::Result<Spare> {
        let spare = Spare { number, bytes };
        let unfinished = format!("{}.{UNFINISHED}", spare.name());
        self.disk.create(&unfinished, bytes)?;
        self.disk.rename(&unfinished, &spare.name())?;
        self.made.fetch_add(1, Relaxed);
        Ok(spare)
    }

    fn settle(&self) {
        let enough = {
            let state = self.state.lock();
            state.free.len() >= state.wanted
        };
        if enough && self.full.swap(false, Relaxed) {
            tracing::info!("the disk of the log has space again: writes are accepted");
        }
    }

    fn reserve_bytes(&self) -> u64 {
        (self.segment_bytes / RESERVE_PART).max(RESERVE_BYTES_MIN)
    }
}

impl State {
    fn number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }
}
