//! Flags of `weft dev`.

use std::path::PathBuf;

use clap::Args;

/// A whole mesh in one process, with demo services: try it in a minute
///
/// Runs a server, a sidecar, three instances of the service `hello`, and `greeter`, which calls `hello`
/// through the sidecar. Prints its addresses and what to try. Ctrl-C stops all of it.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct DevFlags {
    /// Keep the data in this folder; default: a temporary one, removed at the end
    #[arg(long, env = "WEFT_DATA_DIR", value_name = "FOLDER")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Add this to every default port, for a second mesh on this machine; default: 0
    #[arg(long, env = "WEFT_PORT_OFFSET", value_name = "N", conflicts_with = "ephemeral")]
    pub(crate) port_offset: Option<u16>,
    /// Use any free ports
    #[arg(long)]
    pub(crate) ephemeral: bool,
    /// What is logged to stderr: error, warn, info, debug or trace; default: warn
    #[arg(long, env = "WEFT_LOG_LEVEL", value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
}
