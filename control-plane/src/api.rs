//! Every surface that clients talk to, apart from DNS and xDS.

pub mod etcd;
pub mod http;
pub mod probes;
pub mod registry;
pub mod status;
pub mod weft;
