//! The `weft` binary: words and wiring, no logic of its own.
//!
//! - [`cli`]: one module for each command.
//! - [`flags`]: what `server`, `proxy` and `dev` are told: flag, then variable, then file, then default.
//! - [`descriptors`]: the limit of open files.
//! - [`notify`]: words to a supervisor.
//! - [`output`]: tables for people, JSON with stable field names for scripts.
//! - [`start_pages`]: memory of the program's own file, once it has started.
//! - [`signals`]: a graceful end at the first signal, an immediate one at the second.
//! - [`dev`]: the demo mesh of `weft dev`.

#[cfg(test)]
mod any_input;
mod cli;
mod descriptors;
mod dev;
mod failure;
mod flags;
mod notify;
mod output;
mod signals;
mod start_pages;

use std::process::ExitCode;

use clap::Parser;

/// Servers and proxies allocate in many small pieces from several threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Before anything can ask for TLS: rustls takes the first provider that is installed.
    weft_core::tls::install_provider();
    match cli::run(cli::Cli::parse()) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("error: {failure}");
            failure.exit_code()
        }
    }
}
