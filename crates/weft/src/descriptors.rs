//! File descriptors: each connection takes one, and so do the log and the snapshots of a server.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one. Common soft limits (1024) are made for programs that use
/// `select`; a server that runs out of descriptors cannot even open its next log segment. Only for processes that
/// serve: a command started by `weft lock` keeps the limit of its user.
pub(crate) fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => tracing::debug!(?current, ?maximum, "raised the limit of open files"),
        // macOS has a limit below the hard one that it does not tell; what there is has to do.
        Err(error) => tracing::warn!(%error, ?current, ?maximum, "the limit of open files stays as it is"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        raise_limit();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert_eq!(current, maximum);
    }
}
