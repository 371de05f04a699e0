//! The catalogue: what all owners say about their instances, merged. Pure.

use std::collections::BTreeMap;
use std::time::Instant;

use weft_core::id::NodeId;

use crate::instance::{InstanceRecord, RecordVersion};

/// One instance as this process sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogInstance {
    /// As its owner said, but with the effective health: `Passing` becomes `Suspect` while its owner is suspected.
    pub record: InstanceRecord,
    /// The member that advertises it.
    pub owner: NodeId,
    /// The owner's label, for people.
    pub owner_name: String,
    /// Version of the owner's advertisement.
    pub version: RecordVersion,
    /// When it appeared here or last changed.
    pub since: Instant,
}

/// All instances of all owners that are up, at one moment. Immutable: hold it as long as needed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CatalogView {
    services: BTreeMap<String, Vec<CatalogInstance>>,
}

impl CatalogView {
    /// Names of services with at least one instance, sorted.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.services.keys().map(String::as_str)
    }

    /// Instances of a service, sorted by instance id and owner; empty if it is unknown.
    pub fn instances(&self, service: &str) -> &[CatalogInstance] {
        self.services.get(service).map_or(&[], Vec::as_slice)
    }

    /// All instances, sorted by service, instance id and owner.
    pub fn all(&self) -> impl Iterator<Item = &CatalogInstance> {
        self.services.values().flatten()
    }
}
