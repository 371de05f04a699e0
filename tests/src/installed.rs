//! A program that is replaced while it runs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::process::weft_bin;

/// The binary under test, in a file of its own.
pub struct Installed {
    path: PathBuf,
}

impl Installed {
    /// Installs it in `folder`.
    pub fn new(folder: &Path) -> Self {
        let installed = Self { path: folder.join("weft") };
        installed.install();
        installed
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// As `install` does it: another file by the same name, whole from the first moment.
    pub fn install(&self) {
        self.replace(|new| {
            fs::copy(weft_bin(), new).expect("copied");
        });
    }

    /// Puts a shell script in its place, which finds the binary under test in `$weft`.
    pub fn install_script(&self, script: &str) {
        self.replace(|new| {
            let script = format!("#!/bin/sh\nweft={}\n{script}\n", weft_bin().display());
            fs::write(new, script).expect("written");
            fs::set_permissions(new, fs::Permissions::from_mode(0o755)).expect("executable");
        });
    }

    fn replace(&self, make: impl FnOnce(&Path)) {
        let new = self.path.with_extension("new");
        make(&new);
        fs::rename(new, &self.path).expect("renamed");
    }
}
