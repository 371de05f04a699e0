//! A cluster: its endpoints, their health, and the choice among them.
//!
//! Endpoints with their health are ONE immutable [`endpoint_set::EndpointSet`], built anew on each change and read
//! without a lock. What must survive a change (requests in flight, failures, ejection, place in the rotation) lives in
//! atomics that old and new sets share: [`endpoint::EndpointState`], [`rotation::Rotation`].
//!
//! Time and randomness are arguments everywhere but in `health_check` and `expiry`, which drive checks and timers.

pub mod breaker;
pub mod check;
pub mod compare;
pub mod endpoint;
pub mod endpoint_set;
pub(crate) mod expiry;
pub mod gradient;
pub mod hashed;
pub(crate) mod health_check;
pub mod latency;
pub(crate) mod learnt;
pub mod least_connections;
pub mod levels;
pub mod outlier;
pub mod picker;
pub mod probe;
pub mod random;
pub mod rotation;
pub mod round_robin;
pub mod security;
pub mod state;
pub mod two_choices;
pub mod zones;
