//! `weft completions SHELL`.

use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::output;

/// Print a completion script for your shell
///
/// For bash: weft completions bash > ~/.local/share/bash-completion/completions/weft
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self) -> ExitCode {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::Cli::command(), "weft", &mut script);
        output::print(script);
        ExitCode::SUCCESS
    }
}
