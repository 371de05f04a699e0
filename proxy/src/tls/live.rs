//! Values made of PEM, which are made anew when it changes, and the list of all of them.
//!
//! What cannot be used does not replace what can: the last good value stays. A value that was never good says why to whoever
//! asks for it, and is tried again with each look.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::Serialize;
use weft_core::reload::Stamps;
use weft_core::tls::About;
use weft_xds_proto::resource::cluster::tls::{DataSource, Secret};

/// Between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Secrets that the control plane has sent, by name.
pub type Secrets = HashMap<String, Arc<Secret>>;

/// One certificate of a value, for people.
#[derive(Debug, Clone, Serialize)]
pub struct Shown {
    /// `certificate` for what is shown to others, `ca` for who is trusted.
    pub role: &'static str,
    /// Where it comes from.
    pub source: String,
    /// What it says.
    #[serde(flatten)]
    pub about: About,
}

/// A value with the certificates that it was made of.
pub type Made<T> = Result<(T, Vec<Shown>), String>;
/// None: it is given by somebody else.
type Make<T> = Option<Box<dyn Fn(&Secrets) -> Made<T> + Send + Sync>>;

/// What is in use.
#[derive(Debug)]
pub struct InUse<T> {
    /// The value, or why there is none.
    pub value: Result<T, String>,
    /// No other value of this process has it.
    pub generation: u64,
    shown: Vec<Shown>,
    since: SystemTime,
}

/// See the module.
pub struct Live<T> {
    what: String,
    files: Vec<PathBuf>,
    /// Names of the secrets that it is made with.
    uses: Vec<String>,
    make: Make<T>,
    current: ArcSwap<InUse<T>>,
    /// Held while a value is made; never by requests.
    state: Mutex<State>,
}

struct State {
    seen: Stamps,
    /// Those that it was made with.
    secrets: Vec<Option<Arc<Secret>>>,
    complaint: Option<String>,
}

impl<T: Send + Sync> Live<T> {
    /// What is in use now.
    pub fn current(&self) -> Arc<InUse<T>> {
        self.current.load_full()
    }

    /// Takes a value that was made elsewhere.
    pub fn give(&self, made: Made<T>) {
        self.take(&mut self.state.lock(), made, None);
    }

    fn look(&self, all: &Secrets) {
        let Some(make) = &self.make else { return };
        let mut state = self.state.lock();
        let secrets = used(&self.uses, all);
        let seen = stamps(&self.files, &secrets);
        let same = seen == state.seen && secrets == state.secrets;
        let good = self.current.load().value.is_ok();
        if same && good && state.complaint.is_none() {
            return;
        }
        let made = make(all);
        self.take(&mut state, made, Some((seen, secrets)));
    }

    /// `of` are the files and secrets that it was made of, if these are ours to look at.
    fn take(&self, state: &mut State, made: Made<T>, of: Option<(Stamps, Vec<Option<Arc<Secret>>>)>) {
        let good = self.current.load().value.is_ok();
        match made {
            Ok((value, shown)) => {
                let same = of
                    .as_ref()
                    .is_some_and(|(seen, secrets)| *seen == state.seen && *secrets == state.secrets);
                if !good || !same {
                    let (files, secrets) = (&self.files, &self.uses);
                    tracing::info!(what = self.what, ?files, ?secrets, "certificates are in use");
                }
                self.current.store(Arc::new(InUse::new(Ok(value), shown)));
                state.complaint = None;
                if let Some((seen, secrets)) = of {
                    (state.seen, state.secrets) = (seen, secrets);
                }
            }
            // Perhaps only one file of a pair is there yet: the next look tries again.
            Err(error) => {
                if state.complaint.as_ref() != Some(&error) {
                    let stays = if good { "what was loaded before stays in use" } else { "there is none" };
                    tracing::error!(what = self.what, error, "certificates cannot be used; {stays}");
                    state.complaint = Some(error.clone());
                }
                if !good {
                    self.current.store(Arc::new(InUse::new(Err(error), Vec::new())));
                }
            }
        }
    }
}

impl<T> InUse<T> {
    #[allow(clippy::disallowed_methods)]
    fn new(value: Result<T, String>, shown: Vec<Shown>) -> Self {
        static GENERATIONS: AtomicU64 = AtomicU64::new(1);
        let generation = GENERATIONS.fetch_add(1, Ordering::Relaxed);
        Self { value, generation, shown, since: SystemTime::now() }
    }
}

impl<T> std::fmt::Debug for Live<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("what", &self.what).field("files", &self.files).finish_non_exhaustive()
    }
}

fn used(names: &[String], all: &Secrets) -> Vec<Option<Arc<Secret>>> {
    names.iter().map(|name| all.get(name).cloned()).collect()
}

/// Of the files named, and of those that secrets name.
fn stamps(files: &[PathBuf], secrets: &[Option<Arc<Secret>>]) -> Stamps {
    let named = secrets.iter().flatten().flat_map(|secret| secret.sources()).filter_map(DataSource::file);
    Stamps::of(&files.iter().cloned().chain(named.map(Path::to_path_buf)).collect::<Vec<_>>())
}

/// What the list knows of an entry.
trait Entry: Send + Sync {
    fn look(&self, all: &Secrets);
    fn show(&self) -> Status;
}

/// One entry of the list, for people.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// What it is for.
    pub used_for: String,
    /// What it is made of.
    pub certificates: Vec<Shown>,
    /// Loaded then, in seconds of the Unix epoch.
    pub loaded_at: u64,
    /// Why there is none, or why what is there now cannot take its place.
    pub error: Option<String>,
}

impl<T: Send + Sync> Entry for Live<T> {
    fn look(&self, all: &Secrets) {
        Self::look(self, all);
    }

    fn show(&self) -> Status {
        let error = self.state.lock().complaint.clone();
        let current = self.current.load();
        Status {
            used_for: self.what.clone(),
            certificates: current.shown.clone(),
            loaded_at: current.since.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            error: current.value.as_ref().err().cloned().or(error),
        }
    }
}

/// All of a process.
#[derive(Default)]
pub struct Certificates {
    entries: Mutex<Vec<Weak<dyn Entry>>>,
    secrets: ArcSwap<Secrets>,
}

impl Certificates {
    /// Adds a value, and makes it for the first time. It is in the list for as long as somebody holds it.
    pub fn live<T: Send + Sync + 'static>(
        &self,
        what: String,
        files: Vec<PathBuf>,
        uses: Vec<String>,
        make: impl Fn(&Secrets) -> Made<T> + Send + Sync + 'static,
    ) -> Arc<Live<T>> {
        let secrets = self.secrets.load_full();
        // Before loading: a change in between is then seen as one.
        let used = used(&uses, &secrets);
        let seen = stamps(&files, &used);
        let made = make(&secrets);
        let state = State { seen, secrets: used, complaint: None };
        self.add(what, (files, uses), Some(Box::new(make)), made, state)
    }

    /// Adds a value that somebody else makes ([`Live::give`]); `why` there is none yet.
    pub fn given<T: Send + Sync + 'static>(&self, what: String, why: &str) -> Arc<Live<T>> {
        let state = State { seen: Stamps::of(&[]), secrets: Vec::new(), complaint: None };
        self.add(what, Default::default(), None, Err(why.to_owned()), state)
    }

    fn add<T: Send + Sync + 'static>(
        &self,
        what: String,
        (files, uses): (Vec<PathBuf>, Vec<String>),
        make: Make<T>,
        made: Made<T>,
        state: State,
    ) -> Arc<Live<T>> {
        let (value, shown) = match made {
            Ok((value, shown)) => (Ok(value), shown),
            Err(error) => (Err(error), Vec::new()),
        };
        let current = ArcSwap::from_pointee(InUse::new(value, shown));
        let live = Arc::new(Live { what, files, uses, make, current, state: Mutex::new(state) });
        let entry: Arc<dyn Entry> = live.clone();
        self.entries.lock().push(Arc::downgrade(&entry));
        live
    }

    /// Takes over what the control plane says now.
    pub fn set_secrets(&self, secrets: &Arc<Secrets>) {
        if !Arc::ptr_eq(secrets, &self.secrets.load()) {
            self.secrets.store(secrets.clone());
            self.look();
        }
    }

    /// Makes anew what has changed.
    pub fn look(&self) {
        let secrets = self.secrets.load_full();
        for entry in self.held() {
            entry.look(&secrets);
        }
    }

    /// All of them, for people.
    pub fn show(&self) -> Vec<Status> {
        let mut all: Vec<_> = self.held().iter().map(|entry| entry.show()).collect();
        all.sort_by(|a, b| a.used_for.cmp(&b.used_for));
        all
    }

    fn held(&self) -> Vec<Arc<dyn Entry>> {
        let mut entries = self.entries.lock();
        entries.retain(|entry| entry.strong_count() > 0);
        entries.iter().filter_map(Weak::upgrade).collect()
    }
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificates").field("entries", &self.entries.lock().len()).finish_non_exhaustive()
    }
}

/// Looks each second, until it is aborted.
pub(crate) async fn watch(certificates: Arc<Certificates>) {
    let mut tick = tokio::time::interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        certificates.look();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(certificates: &Certificates, path: PathBuf) -> Arc<Live<u32>> {
        certificates.live("a number".to_owned(), vec![path.clone()], Vec::new(), move |_| {
            let text = std::fs::read_to_string(&path).map_err(|e| e.to_string())?;
            Ok((text.parse().map_err(|_| format!("{text:?} is no number"))?, Vec::new()))
        })
    }

    #[test]
    fn a_changed_file_is_in_use_after_a_look_and_a_bad_one_never() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        let certificates = Certificates::default();
        let live = number(&certificates, path.clone());
        assert!(live.current().value.is_err(), "there is no file yet");
        let write = |text: &str| {
            weft_core::fsio::write_atomic(&path, text.as_bytes()).unwrap();
            certificates.look();
        };
        write("1");
        let first = live.current();
        assert_eq!(first.value, Ok(1));
        write("two");
        assert_eq!(live.current().value, Ok(1), "the last good one stays");
        assert_eq!(certificates.show()[0].error.as_deref(), Some("\"two\" is no number"));
        write("3");
        assert_eq!(live.current().value, Ok(3));
        assert_ne!(live.current().generation, first.generation);
        assert_eq!(certificates.show()[0].error, None);
        let generation = live.current().generation;
        certificates.look();
        assert_eq!(live.current().generation, generation, "nothing has changed");
    }

    /// As Kubernetes replaces mounted secrets: the files are links into a folder that is a link.
    #[test]
    fn a_swapped_symbolic_link_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (name, text) in [("1", "1"), ("2", "2")] {
            std::fs::create_dir(at(name)).unwrap();
            std::fs::write(at(name).join("number"), text).unwrap();
        }
        std::os::unix::fs::symlink("1", at("now")).unwrap();
        std::os::unix::fs::symlink("now/number", at("number")).unwrap();
        let certificates = Certificates::default();
        let live = number(&certificates, at("number"));
        assert_eq!(live.current().value, Ok(1));
        std::os::unix::fs::symlink("2", at("next")).unwrap();
        std::fs::rename(at("next"), at("now")).unwrap();
        certificates.look();
        assert_eq!(live.current().value, Ok(2));
    }

    #[test]
    fn what_nobody_holds_leaves_the_list() {
        let certificates = Certificates::default();
        let live = number(&certificates, "/nonexistent".into());
        assert_eq!(certificates.show().len(), 1);
        drop(live);
        assert_eq!(certificates.show().len(), 0);
    }
}
