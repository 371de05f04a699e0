//! Starts, drains and stops a proxy.
