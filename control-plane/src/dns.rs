//! DNS answers from the catalogue: A, AAAA and SRV of healthy instances, over UDP and TCP.
//!
//! - [`records`]: pure; which records answer a question.
//! - [`wire`]: pure; decoding with care, and truncation.
//! - [`server`]: the sockets.

pub mod records;
pub mod server;
pub mod wire;

use std::sync::Arc;

use crate::catalog::Catalog;

/// Answers from the catalogue's cached view: never waits, works without quorum.
pub fn source(catalog: Catalog) -> server::Source {
    Arc::new(move |service| {
        let view = catalog.service(service)?;
        Some(view.healthy().map(|c| records::Target { host: c.host.clone(), port: c.port }).collect())
    })
}
