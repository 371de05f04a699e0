//! What operators write: routes in the words of the Kubernetes Gateway API and policies for the traffic to services, and
//! what the mesh makes of them.
//!
//! ```text
//! YAML ─▶ [`yaml`]: nodes with places ─▶ [`shape`]: keys and types ─▶ [`document`]: typed ─▶ [`check`]: meaning
//!                                                                          └─▶ [`lower`]: RouteConfigurations
//!                                                          └─▶ [`policy`]: what Clusters say
//! ```
//! Pure. The command line, the servers and the proxies all use it, so that all of them accept the same; a check finds
//! every mistake at once, each with its place.

mod authz;
pub mod check;
pub mod document;
mod jwt;
pub mod lower;
pub mod policy;
pub mod schema;
pub mod set;
pub mod shape;
pub mod yaml;

pub use document::{Document, Kind};
pub use set::{MeshConfig, Stored};
pub use shape::Problem;

/// Documents that a mesh holds.
pub const DOCUMENTS_MAX: usize = 2_000;

/// Bytes of a document, as JSON.
pub const DOCUMENT_BYTES_MAX: usize = 256 * 1024;
