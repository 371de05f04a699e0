//! A value that is made from files and made anew when they change: certificates and tokens are replaced while a
//! process runs, and restarting it for that would cost more than it protects.
//!
//! Whoever needs the value asks for it; at most once a second that looks at the files. There is no task and no
//! notification by the system: both fail silently where folders are mounted, and a look costs microseconds.

use std::{
    fmt, fs,
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;

/// Least time between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Makes the value from the files.
type Load<T> = Box<dyn Fn() -> Result<T, String> + Send + Sync>;

/// The value, and where it comes from.
pub struct Reloading<T> {
    what: &'static str,
    files: Vec<PathBuf>,
    load: Load<T>,
    state: Mutex<State<T>>,
}

struct State<T> {
    value: T,
    /// The files when `value` was made of them.
    seen: Stamps,
    looked: Instant,
    /// Why the files as they are now cannot be used, if that was logged.
    complaint: Option<String>,
}

/// Files as they are at one moment: equal if none was changed or replaced in between, links followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamps(Vec<Option<Stamp>>);

/// What tells that a file is not the one of before, also if it was replaced by one of the same length.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    file: u64,
}

impl<T: Clone> Reloading<T> {
    /// Loads it for the first time. `what` is for the log.
    ///
    /// # Errors
    /// Those of `load`; later ones are logged, and the last good value stays in use.
    pub fn new<E: fmt::Display>(
        what: &'static str,
        files: Vec<PathBuf>,
        load: impl Fn() -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<Self, E> {
        // Before loading: a change in between is then seen as one.
        let seen = Stamps::of(&files);
        let value = load()?;
        let state = Mutex::new(State { value, seen, looked: Instant::now(), complaint: None });
        let load = Box::new(move || load().map_err(|error| error.to_string()));
        Ok(Self { what, files, load, state })
    }

    /// The value of the files as they were at most a second ago, or the last good one.
    pub fn current(&self) -> T {
        self.as_of(Instant::now())
    }

    fn as_of(&self, now: Instant) -> T {
        let mut state = self.state.lock();
        if now.saturating_duration_since(state.looked) >= LOOK_EVERY {
            state.looked = now;
            let seen = Stamps::of(&self.files);
            if seen != state.seen {
                self.renew(&mut state, seen);
            }
        }
        state.value.clone()
    }

    fn renew(&self, state: &mut State<T>, seen: Stamps) {
        match (self.load)() {
            Ok(value) => {
                tracing::info!(what = self.what, files = ?self.files, "files have changed and are in use now");
                *state = State { value, seen, looked: state.looked, complaint: None };
            }
            // Perhaps only one file of a pair is there yet: `seen` stays, so the next look tries again.
            Err(error) => {
                if state.complaint.as_ref() != Some(&error) {
                    tracing::error!(
                        what = self.what,
                        error,
                        "files have changed and cannot be used; what was loaded before stays in use"
                    );
                    state.complaint = Some(error);
                }
            }
        }
    }
}

impl<T> fmt::Debug for Reloading<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloading").field("what", &self.what).field("files", &self.files).finish()
    }
}

impl Stamps {
    /// Looks at them; one that is not there is noted as such.
    pub fn of(files: &[PathBuf]) -> Self {
        let stamp = |path: &PathBuf| {
            let found = fs::metadata(path).ok()?;
            Some(Stamp { modified: found.modified().ok(), length: found.len(), file: number(&found) })
        };
        Self(files.iter().map(stamp).collect())
    }
}

/// Tells files apart of which one took the place of the other.
#[cfg(unix)]
fn number(found: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(found)
}

#[cfg(not(unix))]
fn number(_: &fs::Metadata) -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_in_use_a_second_later_and_a_bad_one_never() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        fs::write(&path, "1").unwrap();
        let read = path.clone();
        let load = move || fs::read_to_string(&read).unwrap_or_default().parse::<u32>();
        let number = Reloading::new("a number", vec![path.clone()], load).unwrap();
        let start = Instant::now();
        let after = |seconds| number.as_of(start + Duration::from_secs(seconds));

        crate::fsio::write_atomic(&path, b"2").unwrap();
        assert_eq!(number.as_of(start), 1, "no look within a second");
        assert_eq!(after(2), 2);
        crate::fsio::write_atomic(&path, b"two").unwrap();
        assert_eq!(after(4), 2, "the last good one stays");
        fs::remove_file(&path).unwrap();
        assert_eq!(after(6), 2);
        crate::fsio::write_atomic(&path, b"3").unwrap();
        assert_eq!(after(8), 3);
    }

    #[test]
    fn the_first_load_must_succeed() {
        let refused = Reloading::<u32>::new("a number", vec![], || Err("no number"));
        assert_eq!(refused.err(), Some("no number"));
    }
}
