//! Service instances carried by gossip: each has exactly one owner, the member whose sidecar it is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use weft_core::id::NodeId;
use weft_core::limits::{
    GOSSIP_ADVERTISEMENT_BYTES_MAX, GOSSIP_INSTANCES_PER_OWNER_MAX, INSTANCE_ID_BYTES_MAX,
    MEMBER_NAME_BYTES_MAX, SERVICE_NAME_BYTES_MAX,
};

use crate::wire;

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

impl Advertisement {
    /// Checks what every member relies on, at the owner and again at each receiver.
    ///
    /// # Errors
    /// Says what is out of range, and the range.
    pub(crate) fn check(&self) -> Result<(), AdvertiseError> {
        let too_long = |what, text: &str, limit| AdvertiseError::Length { what, seen: text.len(), limit };
        if self.owner_name.len() > MEMBER_NAME_BYTES_MAX {
            return Err(too_long("owner name", &self.owner_name, MEMBER_NAME_BYTES_MAX));
        }
        let count = self.instances.len();
        if count > GOSSIP_INSTANCES_PER_OWNER_MAX {
            return Err(AdvertiseError::TooMany { seen: count, limit: GOSSIP_INSTANCES_PER_OWNER_MAX });
        }
        let mut keys = BTreeSet::new();
        for i in &self.instances {
            if !(1..=SERVICE_NAME_BYTES_MAX).contains(&i.service.len()) {
                return Err(too_long("service name", &i.service, SERVICE_NAME_BYTES_MAX));
            }
            if !(1..=INSTANCE_ID_BYTES_MAX).contains(&i.instance_id.len()) {
                return Err(too_long("instance id", &i.instance_id, INSTANCE_ID_BYTES_MAX));
            }
            if !keys.insert((&i.service, &i.instance_id)) {
                return Err(AdvertiseError::Duplicate {
                    service: i.service.clone(),
                    instance_id: i.instance_id.clone(),
                });
            }
        }
        let seen = wire::encode(self).len();
        if seen > GOSSIP_ADVERTISEMENT_BYTES_MAX {
            return Err(AdvertiseError::TooLarge { seen, limit: GOSSIP_ADVERTISEMENT_BYTES_MAX });
        }
        Ok(())
    }
}

/// Why instances cannot be advertised. What was advertised before stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdvertiseError {
    /// More instances than one process may advertise.
    #[error("{seen} instances to advertise, the limit is {limit}")]
    TooMany {
        /// How many were given.
        seen: usize,
        /// The limit.
        limit: usize,
    },
    /// All together are too large.
    #[error("instances to advertise take {seen} bytes, the limit is {limit}; shorten their metadata")]
    TooLarge {
        /// Their size in bytes.
        seen: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A text is empty or too long.
    #[error("{what} has {seen} bytes, allowed are 1 to {limit}")]
    Length {
        /// Which text.
        what: &'static str,
        /// Its length in bytes.
        seen: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// Two instances have one name.
    #[error("instance {instance_id} of service {service} is given twice")]
    Duplicate {
        /// The service.
        service: String,
        /// The id that both have.
        instance_id: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::tests::{advertisement, record};

    #[test]
    fn advertisements_out_of_range_are_refused_with_the_range() {
        let error = |instances| advertisement(1, 1, 1, instances).check().unwrap_err();
        let twice = error(vec![record("web", "1"), record("web", "1")]);
        assert_eq!(twice.to_string(), "instance 1 of service web is given twice");
        let empty = error(vec![record("", "1")]);
        assert_eq!(empty.to_string(), "service name has 0 bytes, allowed are 1 to 63");
        let long = error(vec![record("web", &"i".repeat(INSTANCE_ID_BYTES_MAX + 1))]);
        assert!(matches!(long, AdvertiseError::Length { what: "instance id", .. }));
        let many = (0..=GOSSIP_INSTANCES_PER_OWNER_MAX).map(|i| record("web", &i.to_string())).collect();
        assert!(matches!(error(many), AdvertiseError::TooMany { .. }));
        let mut large = record("web", "1");
        large.metadata.insert("k".into(), "v".repeat(GOSSIP_ADVERTISEMENT_BYTES_MAX));
        assert!(matches!(error(vec![large]), AdvertiseError::TooLarge { .. }));
        assert_eq!(advertisement(1, 1, 1, vec![record("web", "1"), record("api", "1")]).check(), Ok(()));
    }
}
