//! Locks, semaphores, elections and the service registry, on ordinary keys under `weft/`.

pub mod election;
pub mod name;
pub mod registry;
pub mod semaphore;

/// What `apply` keeps beside the store to run the recipes fast. Derived from the keys under `weft/`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recipes {}
