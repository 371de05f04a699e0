//! The service registry (the CP half of the catalogue) and the mesh's per-service settings.

use std::sync::Arc;

use crate::command::{LeaseId, RegisteredInstance, Revision};

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
