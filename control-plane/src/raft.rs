//! The one place that names openraft.

/// Proposes, reads, and tells who leads.
#[derive(Debug, Clone)]
pub struct Coordinator;
