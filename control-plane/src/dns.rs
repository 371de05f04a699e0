//! DNS answers from the catalogue: A, AAAA and SRV of healthy instances, over UDP and TCP.
//!
//! - [`records`]: pure; which records answer a question.
//! - [`wire`]: pure; decoding with care, and truncation.
//! - [`server`]: the sockets.

pub mod records;
pub mod server;
pub mod wire;

use std::sync::Arc;

use self::records::{Found, Target};
use crate::catalog::Catalog;
use crate::raft::Coordinator;

/// Answers from the catalogue's cached view: never waits, works without quorum. What a server that is new to its group does
/// not know may be there all the same.
pub fn source(catalog: Catalog, coordinator: Coordinator) -> server::Source {
    Arc::new(move |service| match catalog.service(service) {
        Some(view) => {
            Found::Instances(view.healthy().map(|c| Target { host: c.host.clone(), port: c.port }).collect())
        }
        None if coordinator.check_taken_in().is_err() => Found::NotYet,
        None => Found::Nothing,
    })
}
