//! The mark on the data of a server that must not be a member of its group any more.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use weft_core::fsio;

use super::{StartError, driver::Node};

const FILE: &str = "retired";

/// Why. JSON in the file, so that a person can read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Retired {
    /// Its state was another one than that of most servers (P12).
    Differs {
        /// After this entry.
        entry: u64,
        /// Hash of this server's state.
        ours: String,
        /// Hash of the others' state.
        theirs: String,
    },
    /// Somebody took it out of the group. Its votes of the time before must not count again, so it comes back as a
    /// new server or not at all.
    Removed,
}

impl fmt::Display for Retired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Differs { entry, ours, theirs } => write!(
                f,
                "this server's state after entry {entry} was {ours}, that of most servers {theirs}; keep a copy of the \
                 folder for those who look for the cause, remove this server from the group"
            ),
            Self::Removed => write!(f, "this server was removed from its group"),
        }
    }
}

/// Refuses a data folder that is marked.
pub fn check_folder(data_dir: &Path) -> Result<(), StartError> {
    let path = data_dir.join(FILE);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(StartError::Io { path, source }),
    };
    // A mark that cannot be read is a mark.
    let reason = serde_json::from_slice::<Retired>(&bytes)
        .map_or_else(|error| format!("the mark cannot be read ({error})"), |reason| reason.to_string());
    Err(StartError::Retired { path, reason })
}

impl Node {
    /// Marks the data and ends: this server must not answer, vote or lead again.
    pub(super) async fn retire(&self, reason: Retired) {
        let text = serde_json::to_vec(&reason).expect("our types are encodable");
        let path: PathBuf = self.data_dir.join(FILE);
        let written = fsio::write_atomic(&path, &text);
        tracing::error!(%reason, mark = %path.display(), ?written, "this server ends and will not start with this data again");
        self.end_now().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marked_folder_is_refused_with_the_reason_also_if_the_mark_is_cut_off() {
        let folder = tempfile::tempdir().expect("a folder");
        check_folder(folder.path()).expect("no mark");
        let whole = serde_json::to_vec(&Retired::Removed).expect("encodable");
        for (bytes, says) in [(&whole[..], "was removed from its group"), (&whole[..3], "cannot be read")] {
            std::fs::write(folder.path().join(FILE), bytes).expect("written");
            let refused = check_folder(folder.path()).expect_err("a mark").to_string();
            assert!(refused.contains(says), "{refused}");
        }
    }
}
