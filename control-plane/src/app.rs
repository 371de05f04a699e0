//! Starts and stops a server, in order.
