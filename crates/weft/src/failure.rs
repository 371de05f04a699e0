//! How a command fails: one line on stderr and an exit code.

use std::fmt;
use std::process::ExitCode;

/// Ordinary failure.
pub(crate) const FAILED: u8 = 1;
/// The session that guarded a command was lost (`EX_TEMPFAIL` of sysexits.h).
pub(crate) const SESSION_LOST: u8 = 75;
/// A lock was not granted in time, as timeout(1) answers.
pub(crate) const NOT_GRANTED: u8 = 124;
/// A sidecar was not ready in time.
pub(crate) const NOT_STARTED: u8 = NOT_GRANTED;
/// The command cannot be executed, as shells answer.
pub(crate) const NOT_EXECUTABLE: u8 = 126;
/// The command was not found, as shells answer.
pub(crate) const NOT_FOUND: u8 = 127;

/// A message for people, and what the process exits with.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self::with_code(FAILED, message)
    }

    pub(crate) fn with_code(code: u8, message: impl Into<String>) -> Self {
        Self { message: message.into(), code }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<weft_client::Error> for Failure {
    fn from(error: weft_client::Error) -> Self {
        let code = if matches!(error, weft_client::Error::SessionLost(_)) { SESSION_LOST } else { FAILED };
        Self::with_code(code, error.to_string())
    }
}

impl From<weft_core::config::ConfigError> for Failure {
    fn from(error: weft_core::config::ConfigError) -> Self {
        Self::new(error.to_string())
    }
}
