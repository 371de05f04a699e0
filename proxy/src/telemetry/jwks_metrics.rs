//! What is counted of fetches of issuers' keys: three series for each address, for as long as somebody wants it (P36).

use weft_core::metrics::{Counters, Gauges, Registry};
use weft_xds_proto::resource::guard::JwksUri;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct JwksMetrics {
    fetches: Counters,
    last_success: Gauges,
}

const SUCCESS: &str = "success";
const FAILURE: &str = "failure";

impl JwksMetrics {
    /// Registers them.
    pub fn new(registry: &Registry) -> Self {
        Self {
            fetches: registry.counters(
                "weft_proxy_jwks_fetches_total",
                "Fetches of issuers' keys, by address and how they ended",
                &["uri", "result"],
            ),
            last_success: registry.gauges(
                "weft_proxy_jwks_last_success_timestamp_seconds",
                "When issuers' keys were last fetched, in seconds of the Unix epoch; 0: not yet",
                &["uri"],
            ),
        }
    }

    /// An address is wanted: what has not happened yet can be seen too.
    pub fn wanted(&self, uri: &JwksUri) {
        let uri = uri.to_string();
        self.last_success.with(&[&uri]);
        for result in [SUCCESS, FAILURE] {
            self.fetches.with(&[&uri, result]);
        }
    }

    /// One fetch has ended, at this time of the Unix epoch.
    pub fn ended(&self, uri: &JwksUri, success: bool, now: i64) {
        let uri = uri.to_string();
        self.fetches.with(&[&uri, if success { SUCCESS } else { FAILURE }]).inc();
        if success {
            self.last_success.with(&[&uri]).set(now);
        }
    }

    /// Nobody wants it any more.
    pub fn forget(&self, uri: &JwksUri) {
        let uri = uri.to_string();
        self.last_success.remove(&[&uri]);
        for result in [SUCCESS, FAILURE] {
            self.fetches.remove(&[&uri, result]);
        }
    }
}
