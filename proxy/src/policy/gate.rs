//! What is asked of those who call a service.

use http::HeaderMap;
use http::header::AUTHORIZATION;
use weft_xds_proto::resource::guard::Guard;

use super::authz::Policies;
use super::jwt::{TokenError, Tokens, Verified};
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

    /// The token of a request, if it has one and any are taken. One that the app is not to see is taken out before policies look
    /// at the fields. `now` in seconds of the Unix epoch.
    ///
    /// # Errors
    /// If it has one that does not hold.
    pub fn token(
        &self,
        headers: &mut HeaderMap,
        now: impl FnOnce() -> u64,
    ) -> Result<Option<Verified>, TokenError> {
        let Some(tokens) = &self.tokens else { return Ok(None) };
        let token = tokens.verify(headers, now())?;
        if token.as_ref().is_some_and(|token| !token.forward) {
            headers.remove(AUTHORIZATION);
        }
        Ok(token)
    }

    /// Whether a request that policies refuse is asked for a token: with one it might be another matter.
    pub fn asks_for_token(&self, token: Option<&Verified>) -> bool {
        token.is_none() && self.tokens.is_some()
    }
}
