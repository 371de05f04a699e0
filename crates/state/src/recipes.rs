//! Locks, semaphores, elections and the service registry, on ordinary keys under `weft/`.
//!
//! Each operation is one command, executed inside `apply`. The keys are the truth, with JSON values, so
//! that any etcd client can look at them; the tables here are derived from them, to find the head of a
//! queue without a walk, and are built anew when an image is read.
//!
//! Rules that all recipes share:
//! - What a session holds and where it waits hangs on its lease. When the lease ends, its keys go in one
//!   revision and those who are next are granted in the same `apply`: nobody waits for a dead session.
//! - Queues are strictly first come, first served, and live here: one release wakes one waiter.
//! - A request may be repeated, by a client that lost its server. The newest call takes over what the request
//!   has (the key's `attempt` says which call that is), and the undo of an earlier one is a no-op: a server
//!   that learns late that its client went away takes nothing from the call that came after (L01, L06).
//! - Every grant is a revision of its own, so that the create revision of the key that stands for it, the
//!   fencing token, is larger than that of every earlier grant.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::{
    command::{Event, EventKind},
    recipes::{election::Elections, registry::Registry, semaphore::Semaphores},
    store::{KeyRange, RESERVED_PREFIX, Store},
};

pub mod election;
pub mod mesh_config;
pub mod name;
mod queue;
pub mod registry;
pub mod semaphore;

/// What `apply` keeps beside the store to run the recipes fast. Derived from the keys under `weft/`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Recipes {
    pub(crate) semaphores: Semaphores,
    pub(crate) elections: Elections,
    pub(crate) registry: Registry,
}

impl Recipes {
    /// Derives the tables from the keys of a store.
    ///
    /// # Errors
    /// Names the key that does not fit.
    pub(crate) fn load(store: &Store) -> Result<Self, String> {
        let mut recipes = Self::default();
        for (key, version) in store.live(KeyRange::Between(RESERVED_PREFIX, RESERVED_END)) {
            let Some(kv) = version.key_value(key.to_bytes()) else { continue };
            let known = match ReservedKey::parse(&kv.key) {
                Some(ReservedKey::Semaphore { name, part }) => recipes.semaphores.load(name, part, &kv),
                Some(ReservedKey::Election { name, part }) => recipes.elections.load(name, part, &kv),
                Some(ReservedKey::Registry { service, instance_id }) => {
                    recipes.registry.load(service, instance_id, &kv)
                }
                Some(ReservedKey::LoadBalancing | ReservedKey::MeshConfig) => Some(()),
                None => None,
            };
            known.ok_or_else(|| format!("key {:?} is not one that weft writes", kv.key))?;
        }
        Ok(recipes)
    }

    /// Takes note of keys that went with their leases (the events from `mark` on), then lets those move up
    /// who waited behind them.
    pub(crate) fn sessions_ended(&mut self, store: &mut Store, events: &mut Vec<Event>, mark: usize) {
        let (mut semaphores, mut elections) = (BTreeSet::new(), BTreeSet::new());
        for event in &events[mark..] {
            if event.kind != EventKind::Delete {
                continue;
            }
            match ReservedKey::parse(&event.kv.key) {
                Some(ReservedKey::Semaphore { name, part }) => {
                    self.semaphores.key_gone(&name, &part);
                    semaphores.insert(name);
                }
                Some(ReservedKey::Election { name, part }) => {
                    self.elections.key_gone(&name, &part);
                    elections.insert(name);
                }
                Some(ReservedKey::Registry { service, instance_id }) => {
                    self.registry.key_gone(&service, &instance_id);
                }
                Some(ReservedKey::LoadBalancing | ReservedKey::MeshConfig) | None => {}
            }
        }
        for name in semaphores {
            self.semaphores.settle(store, events, &name);
        }
        for name in elections {
            self.elections.settle(store, events, &name);
        }
    }
}

/// A key under `weft/`, taken apart.
#[derive(Debug, PartialEq, Eq)]
enum ReservedKey {
    Semaphore { name: String, part: semaphore::KeyPart },
    Election { name: String, part: election::KeyPart },
    Registry { service: String, instance_id: String },
    LoadBalancing,
    MeshConfig,
}

impl ReservedKey {
    fn parse(key: &[u8]) -> Option<Self> {
        let path = std::str::from_utf8(key.strip_prefix(RESERVED_PREFIX)?).ok()?;
        let (area, rest) = path.split_once('/')?;
        let (name, part) = rest.split_once('/')?;
        match area {
            "semaphore" => {
                let part = semaphore::KeyPart::parse(part)?;
                Some(Self::Semaphore { name: name::decode(name)?, part })
            }
            "election" => {
                Some(Self::Election { name: name::decode(name)?, part: election::KeyPart::parse(part)? })
            }
            "registry" => {
                Some(Self::Registry { service: name::decode(name)?, instance_id: name::decode(part)? })
            }
            "mesh" if name == "load-balancing" => Some(Self::LoadBalancing),
            "mesh" if name == "config" || name == "config-generation" => Some(Self::MeshConfig),
            _ => None,
        }
    }
}

/// A value of a key under `weft/`.
fn json(record: &impl serde::Serialize) -> Bytes {
    Bytes::from(serde_json::to_vec(record).expect("records have string keys and plain fields"))
}

/// First key behind those that start with `weft/`.
const RESERVED_END: &[u8] = b"weft0";
