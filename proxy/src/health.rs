//! Checks of the services beside this sidecar, and what it advertises of them.
