//! `weft simulate` without the rest of the binary, for tests.

use clap::Parser;

fn main() -> std::process::ExitCode {
    weft_sim::cli::main(&weft_sim::cli::Args::parse())
}
