//! What `server`, `proxy` and `dev` are told. Each value comes from its flag, else from its `WEFT_…`
//! variable, else from the `--config` file, else from a default.
//!
//! One struct per command is both the flags and the file, so that a key in the file is always spelt as
//! its flag. Clap reads flag and variable; [`ServerFlags::layered`] puts the file underneath.

mod address;
mod dev;
mod proxy;
mod server;

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Deserialize;
use serde::de::DeserializeOwned;

pub(crate) use address::{Listen, ServiceSpec};
pub(crate) use dev::DevFlags;
pub(crate) use proxy::{ADMIN, OUTBOUND, ProxyFlags, file as proxy_file};
pub(crate) use server::ServerFlags;

use crate::failure::Failure;

/// Puts one layer over another, field by field: what the upper one does not say, the lower one does.
macro_rules! layer {
    ($upper:expr, $lower:expr; $($field:ident),* $(,)?) => {
        $( $upper.$field = $upper.$field.take().or($lower.$field.take()); )*
    };
}
pub(crate) use layer;

/// See `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogFormat {
    /// Text
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

/// Starts logging at `level`, or at `default` if none is given.
pub(crate) fn start_logging(
    level: Option<&str>,
    format: Option<LogFormat>,
    default: &str,
) -> Result<(), Failure> {
    let level = level.unwrap_or(default);
    weft_core::telemetry::check_level(level).map_err(|error| Failure::new(format!("log-level: {error}")))?;
    weft_core::telemetry::init(level, format.unwrap_or_default() == LogFormat::Json);
    Ok(())
}

fn load<T: DeserializeOwned + Default>(file: Option<&Path>) -> Result<T, Failure> {
    match file {
        Some(path) => Ok(weft_core::config::load_yaml(path)?),
        None => Ok(T::default()),
    }
}

/// This machine's name, as a default label.
pub(crate) fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "weft".to_owned() } else { name }
}

/// Where a role keeps its data unless told otherwise: under the working folder, by role and name.
pub(crate) fn default_data_dir(role: &str, name: &str) -> PathBuf {
    // A name is a label and may hold anything; a folder's name may not.
    let safe =
        |letter: char| if letter.is_alphanumeric() || matches!(letter, '-' | '_') { letter } else { '_' };
    Path::new("weft-data").join(role).join(name.chars().map(safe).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_data_folder_stays_under_weft_data_whatever_the_name() {
        assert_eq!(default_data_dir("server", "s1"), Path::new("weft-data/server/s1"));
        assert_eq!(default_data_dir("proxy", "../../x"), Path::new("weft-data/proxy/______x"));
    }
}
