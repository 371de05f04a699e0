//! The order of a graceful stop.
