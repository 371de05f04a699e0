//! What is asked of those who call a service.

use weft_xds_proto::resource::guard::Guard;

use super::authz::Policies;
use super::jwt::Tokens;
use crate::jwks::Sources;
use crate::tls::live::Certificates;

/// See the module.
#[derive(Debug)]
pub(crate) struct Gate {
    pub policies: Policies,
    /// Whose tokens are taken, if any are.
    pub tokens: Option<Tokens>,
}

impl Gate {
    /// For a service.
    pub fn new(service: &str, guard: &Guard, certificates: &Certificates, keys: &Sources) -> Self {
        let policies = Policies::new(&guard.policies).unwrap_or_else(|why| {
            // Cannot be: networks were checked with their documents.
            tracing::error!(service, why, "policies cannot be used; nobody is let in");
            Policies::closed()
        });
        Self { policies, tokens: Tokens::new(service, &guard.tokens, certificates, keys) }
    }
}
