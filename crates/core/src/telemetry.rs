//! Log output: one line per event on stderr, as text or JSON.

use parking_lot::Mutex;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// Why a log level was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{seen:?} is not a log level: {reason}; write error, warn, info, debug or trace, or per module such as info,weft_gossip=debug"
)]
pub struct LevelError {
    /// What was given.
    pub seen: String,
    /// From the parser.
    pub reason: String,
}

/// Why a level could not be changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetLevelError {
    /// It is none.
    #[error(transparent)]
    Refused(#[from] LevelError),
    /// [`init`] was not called, or something else logs in this process.
    #[error("the log of this process was set up by something else, which alone can change it")]
    NotOurs,
}

/// The level in use, and how it is changed.
struct InUse {
    level: String,
    set: Box<dyn Fn(EnvFilter) -> bool + Send + Sync>,
}

/// Held while a level is read or changed; no event waits for it.
static IN_USE: Mutex<Option<InUse>> = Mutex::new(None);

/// The level in use; none if [`init`] did not set it.
pub fn level() -> Option<String> {
    IN_USE.lock().as_ref().map(|in_use| in_use.level.clone())
}

/// Changes the level for all events from now on.
///
/// # Errors
/// As [`check_level`]; and if [`init`] did not set up the log.
pub fn set_level(level: &str) -> Result<(), SetLevelError> {
    let filter = filter(level)?;
    let mut in_use = IN_USE.lock();
    let Some(in_use) = in_use.as_mut().filter(|in_use| (in_use.set)(filter)) else {
        return Err(SetLevelError::NotOurs);
    };
    level.clone_into(&mut in_use.level);
    Ok(())
}

/// Checks a level before [`init`], for `--log-level` and the configuration file.
///
/// # Errors
/// If [`init`] would not understand it.
pub fn check_level(level: &str) -> Result<(), LevelError> {
    filter(level).map(drop)
}

fn filter(level: &str) -> Result<EnvFilter, LevelError> {
    let error = |reason: String| LevelError { seen: level.to_owned(), reason };
    if level.trim().is_empty() {
        return Err(error("is empty".to_owned()));
    }
    // A bare word that is no level would be taken for the name of a module and silence everything else.
    let bare = level.split(',').map(str::trim).find(|part| !part.contains(['=', '[']) && !is_level(part));
    if let Some(part) = bare {
        return Err(error(format!("{part:?} is unknown")));
    }
    EnvFilter::try_new(with_quiet_parts(level)).map_err(|e| error(e.to_string()))
}

/// Libraries that tell at `info` what only their own developers need. They speak from `warn` on, unless the level
/// names them.
const QUIET_PARTS: [&str; 1] = ["openraft"];

fn with_quiet_parts(level: &str) -> String {
    let mut all = level.to_owned();
    for part in
        QUIET_PARTS.iter().filter(|part| !level.contains(**part) && !level.eq_ignore_ascii_case("off"))
    {
        all.push_str(&format!(
            ",{part}={}",
            if level.eq_ignore_ascii_case("error") { "error" } else { "warn" }
        ));
    }
    all
}

fn is_level(word: &str) -> bool {
    ["error", "warn", "info", "debug", "trace", "off"].iter().any(|level| level.eq_ignore_ascii_case(word))
}

/// Sends log events to stderr. The first call in a process wins; later ones do nothing, so tests and `weft dev` may
/// call it as often as they start something. A level that [`check_level`] refuses is reported and read as `info`.
pub fn init(level: &str, json: bool) {
    let (filter, refused) = match filter(level) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new(with_quiet_parts("info")), Some(error)),
    };
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(BoxMakeWriter::new(std::io::stderr));
    let set: Box<dyn Fn(EnvFilter) -> bool + Send + Sync>;
    let first = if json {
        let builder = builder.json().flatten_event(true).with_filter_reloading();
        let handle = builder.reload_handle();
        set = Box::new(move |filter| handle.reload(filter).is_ok());
        builder.try_init()
    } else {
        let builder = builder.with_ansi(is_terminal()).with_filter_reloading();
        let handle = builder.reload_handle();
        set = Box::new(move |filter| handle.reload(filter).is_ok());
        builder.try_init()
    };
    if first.is_err() {
        return;
    }
    let level = if refused.is_some() { "info" } else { level };
    *IN_USE.lock() = Some(InUse { level: level.to_owned(), set });
    if let Some(error) = refused {
        tracing::warn!("{error}; using info");
    }
}

fn is_terminal() -> bool {
    std::io::IsTerminal::is_terminal(&std::io::stderr())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_module_filters_are_accepted() {
        for level in ["info", "WARN", "off", "info,weft_gossip=debug", "weft=trace"] {
            check_level(level).unwrap();
        }
    }

    #[test]
    fn other_words_are_refused_with_what_is_allowed() {
        for level in ["", "verbose", "info,loud", "weft=loud"] {
            let error = check_level(level).unwrap_err();
            assert_eq!(error.seen, level);
            assert!(error.to_string().contains("info"));
        }
    }

    #[test]
    fn chatty_libraries_speak_from_warn_on_unless_the_level_names_them() {
        assert_eq!(with_quiet_parts("info"), "info,openraft=warn");
        assert_eq!(with_quiet_parts("error"), "error,openraft=error");
        assert_eq!(with_quiet_parts("off"), "off");
        assert_eq!(with_quiet_parts("info,openraft=debug"), "info,openraft=debug");
    }

    /// The one test that sets up the log of this process.
    #[test]
    fn the_first_setting_up_counts_and_its_level_can_be_changed() {
        assert_eq!(level(), None);
        assert_eq!(set_level("info"), Err(SetLevelError::NotOurs));
        init("error", true);
        init("nonsense", false);
        assert_eq!(level().as_deref(), Some("error"));
        assert!(!tracing::enabled!(tracing::Level::DEBUG));
        set_level("debug").unwrap();
        assert!(tracing::enabled!(tracing::Level::DEBUG), "at once");
        assert!(matches!(set_level("loud"), Err(SetLevelError::Refused(_))));
        assert_eq!(level().as_deref(), Some("debug"), "what is refused changes nothing");
    }
}
