//! Which services of the registry changed, noticed where commands are applied.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use tokio::sync::Notify;
use weft_state::command::Event;
use weft_state::machine::Machine;
use weft_state::recipes::name;
use weft_state::store::RESERVED_PREFIX;

use crate::raft::ApplyObserver;

/// More changed services than this are no longer listed: everything is read again instead.
const SERVICES_LISTED_MAX: usize = 1_024;

/// Collects changed services until somebody takes them. Applying never waits for the taker.
#[derive(Debug, Default)]
pub struct RegistryChanges {
    /// Held for one insertion or one take.
    dirty: Mutex<Dirty>,
    notify: Notify,
}

/// What changed since the last take.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Anything may have changed.
    pub all: bool,
    /// Services with a changed registration or setting.
    pub services: BTreeSet<String>,
}

impl RegistryChanges {
    /// Takes what changed.
    pub(super) fn take(&self) -> Dirty {
        std::mem::take(&mut *self.dirty.lock())
    }

    /// Waits until something changed; a change before the call counts.
    pub(super) async fn changed(&self) {
        self.notify.notified().await;
    }

    pub(super) fn mark_all(&self) {
        *self.dirty.lock() = Dirty { all: true, services: BTreeSet::new() };
        self.notify.notify_one();
    }
}

impl ApplyObserver for RegistryChanges {
    fn applied(&self, _machine: &Machine, events: &[Event]) {
        let mut touched = events.iter().filter_map(|e| touched(&e.kv.key)).peekable();
        if touched.peek().is_none() {
            return;
        }
        let mut dirty = self.dirty.lock();
        for service in touched {
            if !dirty.all && !dirty.services.contains(&service) {
                dirty.services.insert(service);
            }
        }
        if dirty.services.len() > SERVICES_LISTED_MAX {
            *dirty = Dirty { all: true, services: BTreeSet::new() };
        }
        drop(dirty);
        self.notify.notify_one();
    }

    fn restored(&self, _machine: &Machine) {
        self.mark_all();
    }
}

/// Keys of registrations are `weft/registry/SERVICE/ID`, those of settings `weft/mesh/SETTING/SERVICE`.
fn touched(key: &[u8]) -> Option<String> {
    let rest = key.strip_prefix(RESERVED_PREFIX)?;
    let rest = rest.strip_prefix(b"registry/").or_else(|| rest.strip_prefix(b"mesh/load-balancing/"))?;
    let service = rest.split(|b| *b == b'/').next()?;
    name::decode(std::str::from_utf8(service).ok()?)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use weft_state::command::{EventKind, KeyValue};

    use super::*;

    fn apply(changes: &RegistryChanges, keys: &[&str]) {
        let event = |key: &&str| Event {
            kind: EventKind::Put,
            kv: KeyValue { key: Bytes::copy_from_slice(key.as_bytes()), ..KeyValue::default() },
            prev_kv: None,
        };
        changes.applied(&Machine::new(), &keys.iter().map(event).collect::<Vec<_>>());
    }

    #[test]
    fn registrations_and_settings_name_their_service_and_other_keys_nothing() {
        let changes = RegistryChanges::default();
        apply(&changes, &["a", "weft/semaphore/x/limit", "weft/registry/web/1", "registry/no/1"]);
        apply(&changes, &["weft/mesh/load-balancing/api", "weft/registry/web/2"]);
        let dirty = changes.take();
        assert!(!dirty.all);
        assert_eq!(dirty.services.into_iter().collect::<Vec<_>>(), ["api", "web"]);
        assert_eq!(changes.take(), Dirty::default());
    }

    #[test]
    fn too_many_changed_services_become_all() {
        let changes = RegistryChanges::default();
        for n in 0..=SERVICES_LISTED_MAX {
            apply(&changes, &[&format!("weft/registry/s{n}/1")]);
        }
        assert!(changes.take().all);
    }

    #[tokio::test]
    async fn a_change_before_the_wait_is_not_lost() {
        let changes = RegistryChanges::default();
        apply(&changes, &["weft/registry/web/1"]);
        changes.changed().await;
        assert_eq!(changes.take().services.len(), 1);
    }
}
