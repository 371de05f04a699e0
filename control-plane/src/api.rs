//! Every surface that clients talk to, apart from DNS and xDS.
//!
//! *A write starts here:* an API parses and validates its request into one
//! [`Command`](weft_state::command::Command), which the [`Coordinator`](crate::raft::Coordinator) carries
//! through the log; `apply` answers it and emits events for watchers.

pub mod about;
pub mod caller;
pub mod etcd;
pub mod front;
pub mod gateway;
pub mod http;
pub mod probes;
pub mod problem;
pub mod profile;
pub mod read;
pub mod registry;
pub mod status;
pub mod weft;
