//! The registry API: register, heartbeat, deregister, discover.
