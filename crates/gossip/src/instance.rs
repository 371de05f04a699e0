//! Service instances carried by gossip: each has exactly one owner, the member whose sidecar it is.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use weft_core::id::NodeId;

/// What a sidecar says of one local service instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// Service name: a DNS label.
    pub service: String,
    /// Unique within the service.
    pub instance_id: String,
    /// Where peers send traffic: the sidecar's inbound listener, or the app itself without one.
    pub address: SocketAddr,
    /// As its own sidecar sees it.
    pub health: InstanceHealth,
    /// Free-form labels, such as `version` and `region`.
    pub metadata: BTreeMap<String, String>,
}

/// Health of an instance. Only `Passing` ones get traffic; `Suspect` ones get less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum InstanceHealth {
    /// Its last checks passed.
    Passing,
    /// Its owner is suspected to be down.
    Suspect,
    /// Its checks fail, or none has passed yet (P28).
    Critical,
}

impl InstanceHealth {
    /// Lower-case word, as shown to people and in xDS metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Suspect => "suspect",
            Self::Critical => "critical",
        }
    }
}

/// Version of an owner's advertisement: a restarted owner (larger incarnation) wins over any `seq`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RecordVersion {
    /// The owner's incarnation (its process start).
    pub incarnation: u64,
    /// Grows with each change by the owner.
    pub seq: u64,
}

/// Everything one owner advertises: the unit that gossip carries and that replaces its predecessor whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advertisement {
    /// Owner.
    pub owner: NodeId,
    /// The owner's label, for people.
    pub owner_name: String,
    /// Larger wins.
    pub version: RecordVersion,
    /// All its instances; empty withdraws them.
    pub instances: Vec<InstanceRecord>,
}
