//! The service registry (the CP half of the catalogue) and the mesh's per-service settings.
//!
//! ```text
//! weft/registry/SERVICE/INSTANCE_ID       the instance as JSON; hangs on its lease
//! weft/mesh/load-balancing/SERVICE        {"policy":"round-robin"}
//! ```

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    command::{Event, KeyValue, LeaseId, Register, RegisteredInstance, Revision},
    error::StoreError,
    lease,
    recipes::{json, name},
    store::Store,
};

/// A registered instance as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// What was registered; shared, not copied.
    pub instance: Arc<RegisteredInstance>,
    /// The lease that heartbeats renew.
    pub lease: LeaseId,
    /// Revision of the last registration.
    pub mod_revision: Revision,
}

/// Registered instances by service and instance id. A service without instances is not in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Registry {
    services: BTreeMap<String, BTreeMap<String, Registered>>,
}

impl Registry {
    /// Stores the instance and answers its lease: the given one, newly granted, or the one that an earlier
    /// registration of the same instance has, with the new time to live.
    ///
    /// # Errors
    /// `NameOutOfRange`, `LeaseTtlOutOfRange`; `LeaseExists` if a new instance would share a lease.
    pub(crate) fn register(
        &mut self,
        store: &mut Store,
        events: &mut Vec<Event>,
        register: &Register,
    ) -> Result<LeaseId, StoreError> {
        let instance = &register.instance;
        name::check(&instance.service)?;
        name::check(&instance.instance_id)?;
        lease::check_ttl(register.ttl_secs)?;
        let lease = match self.get(&instance.service, &instance.instance_id) {
            Some(earlier) => earlier.lease,
            None if register.lease == 0 => return Err(StoreError::LeaseNotFound { id: 0 }),
            None if store.leases.contains(register.lease) => {
                return Err(StoreError::LeaseExists { id: register.lease });
            }
            None => register.lease,
        };
        store.leases.set(lease, register.ttl_secs);
        let mod_revision = store.revise(events, |writer| {
            writer.set(instance_key(&instance.service, &instance.instance_id), json(instance), lease);
            writer.revision()
        });
        let registered = Registered { instance: Arc::new(instance.clone()), lease, mod_revision };
        self.insert(instance.service.clone(), instance.instance_id.clone(), registered);
        Ok(lease)
    }

    pub(crate) fn get(&self, service: &str, instance_id: &str) -> Option<&Registered> {
        self.services.get(service)?.get(instance_id)
    }

    /// Instances of one service or of all.
    pub(crate) fn iter<'r>(&'r self, service: Option<&str>) -> Box<dyn Iterator<Item = &'r Registered> + 'r> {
        match service {
            Some(service) => Box::new(self.services.get(service).into_iter().flat_map(BTreeMap::values)),
            None => Box::new(self.services.values().flat_map(BTreeMap::values)),
        }
    }

    /// A key went with its lease.
    pub(crate) fn key_gone(&mut self, service: &str, instance_id: &str) {
        if let Some(instances) = self.services.get_mut(service) {
            instances.remove(instance_id);
            if instances.is_empty() {
                self.services.remove(service);
            }
        }
    }

    /// Takes in a stored key; none if its value is not one of ours.
    pub(crate) fn load(&mut self, service: String, instance_id: String, kv: &KeyValue) -> Option<()> {
        let instance = Arc::new(serde_json::from_slice(&kv.value).ok()?);
        let registered = Registered { instance, lease: kv.lease, mod_revision: kv.mod_revision };
        self.insert(service, instance_id, registered);
        Some(())
    }

    fn insert(&mut self, service: String, instance_id: String, registered: Registered) {
        self.services.entry(service).or_default().insert(instance_id, registered);
    }
}

/// Sets how proxies balance over a service.
///
/// # Errors
/// `NameOutOfRange`
pub(crate) fn set_load_balancing(
    store: &mut Store,
    events: &mut Vec<Event>,
    service: &str,
    policy: &str,
) -> Result<(), StoreError> {
    name::check(service)?;
    let value = json(&LoadBalancing { policy: policy.to_owned() });
    store.revise(events, |writer| {
        writer.set(load_balancing_key(service), value, 0);
    });
    Ok(())
}

/// The policy set for a service.
pub(crate) fn load_balancing(store: &Store, service: &str) -> Option<String> {
    let version = store.current(&load_balancing_key(service))?;
    let stored: LoadBalancing = serde_json::from_slice(version.value.as_slice()).ok()?;
    Some(stored.policy)
}

pub(crate) fn instance_key(service: &str, instance_id: &str) -> Bytes {
    Bytes::from(format!("weft/registry/{}/{}", name::encode(service), name::encode(instance_id)))
}

pub(crate) fn load_balancing_key(service: &str) -> Bytes {
    Bytes::from(format!("weft/mesh/load-balancing/{}", name::encode(service)))
}

#[derive(Serialize, Deserialize)]
struct LoadBalancing {
    policy: String,
}
