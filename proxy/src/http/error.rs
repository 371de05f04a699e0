//! Why a request gets an answer of the proxy's own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use weft_xds_proto::resource::cluster::RateLimit;
use weft_xds_proto::resource::subset::Subset;

use crate::cluster::breaker::Overflow;
use crate::cluster::endpoint_set::Counts;
use crate::cluster::state::Cluster;
use crate::listener::refusal::Refusal;
use crate::policy::deadline::BadDeadline;
use crate::policy::jwt::TokenError;
use crate::policy::rate_limit::Limited;
use crate::route::host::HostError;

/// One variant for each thing that a caller does about it; [`super::rescue`] maps them to answers.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("{0}")]
    Refused(#[from] Refusal),
    #[error("CONNECT is taken over HTTP/1.1, on the local app's port for all services only")]
    Connect,
    #[error("CONNECT needs a target of the form HOST:PORT, not {0:?}")]
    ConnectTarget(String),
    #[error("CONNECT to {target} is refused: {why}; only services of the mesh can be reached by CONNECT")]
    ConnectRefused { target: String, why: &'static str },
    #[error(
        "service {cluster} speaks HTTP/2 and takes no extended CONNECT (SETTINGS_ENABLE_CONNECT_PROTOCOL), which upgrades \
         need there"
    )]
    NoExtendedConnect { cluster: String },
    #[error(
        "the endpoint answered the request for another protocol as an ordinary one: it does not speak it there"
    )]
    NotSwitched,
    #[error("Host is missing")]
    NoHost,
    #[error("Host {host:?} is not valid: {why}")]
    BadHost { host: String, why: HostError },
    #[error("Host {host:?} and :authority {authority:?} differ")]
    TwoHosts { host: String, authority: String },
    #[error("scheme {0:?} is not supported in a request target: use http")]
    Scheme(String),
    #[error("Expect: {0:?} is not supported: only 100-continue is")]
    Expectation(String),
    #[error("the request passed {0} proxies: it goes in a circle")]
    Loop(usize),
    #[error("no route for host {host:?}: {known}")]
    UnknownHost { host: String, known: String },
    #[error("{message}")]
    Absent { message: String },
    #[error("no control plane reachable to ask about service {service:?}: waited {waited:?} ({reason})")]
    NoControlPlane { service: String, waited: Duration, reason: String },
    #[error("service {service:?} is not resolved: no answer from {server} within {waited:?}")]
    NotResolved { service: String, server: SocketAddr, waited: Duration },
    #[error("no route for {method} {path} of host {host:?}, which has routes for others")]
    NoRoute { host: String, method: String, path: String },
    #[error("the path is not valid: {0}")]
    BadPath(crate::route::path::PathError),
    #[error("route {route} makes a target that is none out of this request")]
    BadRewrite { route: String },
    #[error("the route for host {host:?} leads to cluster {cluster:?}, which is not known")]
    NoCluster { host: String, cluster: String },
    #[error("{service} may not be called so by this caller")]
    Forbidden { service: String },
    #[error("{}", token_fault(service, why.as_ref()))]
    BadToken { service: String, why: Option<TokenError> },
    #[error("no ready endpoint in cluster {cluster}{} ({counts})", with(part.as_deref()))]
    NoReadyEndpoint { cluster: String, part: Option<Arc<Subset>>, counts: Box<Counts> },
    #[error(
        "cannot connect to cluster {cluster}: {tried} of its endpoints tried, the last one {addr}: {why} ({counts})"
    )]
    CannotConnect { cluster: String, tried: usize, addr: SocketAddr, why: String, counts: Box<Counts> },
    #[error("this proxy cannot open another connection: {0}")]
    Shortage(String),
    #[error("local service {service} at {addr} does not take connections: {why}")]
    LocalAppDown { service: String, addr: SocketAddr, why: String },
    #[error("endpoint {addr} of cluster {cluster} closed the connection before it answered: {why}")]
    Broken { cluster: String, addr: SocketAddr, why: String },
    #[error("endpoint {addr} of cluster {cluster} sent an invalid answer: {why}")]
    BadAnswer { cluster: String, addr: SocketAddr, why: String },
    #[error("endpoint {addr} of cluster {cluster} did not answer within {limit:?}")]
    Timeout { cluster: String, addr: SocketAddr, limit: Duration },
    #[error(transparent)]
    BadDeadline(#[from] BadDeadline),
    #[error("the caller's deadline has passed before the request could be forwarded")]
    DeadlineSpent,
    #[error("endpoint {addr} of cluster {cluster} did not answer within the {limit:?} that the caller gives")]
    DeadlineExceeded { cluster: String, addr: SocketAddr, limit: Duration },
    #[error("circuit breaker of cluster {cluster}: {why} ({limit})")]
    Overflow { cluster: String, why: Overflow, limit: u32 },
    #[error(
        "rate limit of cluster {cluster}: {} requests in {:?}, {} at once; the next one in {:?}",
        .limit.requests, .limit.per, .limit.burst, .why.retry_after
    )]
    RateLimited { cluster: String, limit: RateLimit, why: Limited },
    #[error(
        "rate limit of route {route}: {} requests in {:?}, {} at once; the next one in {:?}",
        .limit.requests, .limit.per, .limit.burst, .why.retry_after
    )]
    RouteLimited { route: String, limit: RateLimit, why: Limited },
    #[error("this proxy is overloaded and refuses a part of its requests")]
    Overloaded,
    #[error("nothing more of the request body came within {0:?}")]
    SlowBody(Duration),
    #[error("the request body broke off: {0}")]
    ClientBody(String),
}

/// Names a part of a cluster.
fn with(part: Option<&Subset>) -> String {
    part.map(|part| format!(" with {part}")).unwrap_or_default()
}

fn token_fault(service: &str, why: Option<&TokenError>) -> String {
    match why {
        Some(why) => format!("the token for {service} is refused: {why}"),
        None => format!("{service} wants a token"),
    }
}

impl RequestError {
    /// Counts what a cluster's circuit breaker refused.
    pub fn overflow(cluster: &Cluster, why: Overflow) -> Self {
        let (counters, limits) = (&cluster.shared.metrics.overflows, &cluster.config.cluster.breaker);
        let (counter, limit) = match why {
            Overflow::Requests => (&counters.requests, limits.max_requests),
            Overflow::Adaptive(limit) => (&counters.adaptive, limit),
            Overflow::Pending => (&counters.pending, limits.max_pending),
            Overflow::Wait(_) => (&counters.wait, limits.max_connections),
        };
        counter.inc();
        Self::Overflow { cluster: cluster.name().to_owned(), why, limit }
    }

    /// The service that the request was for, if it got so far.
    pub fn service(&self) -> Option<&str> {
        match self {
            Self::NoReadyEndpoint { cluster, .. }
            | Self::CannotConnect { cluster, .. }
            | Self::Broken { cluster, .. }
            | Self::BadAnswer { cluster, .. }
            | Self::Timeout { cluster, .. }
            | Self::DeadlineExceeded { cluster, .. }
            | Self::Overflow { cluster, .. }
            | Self::RateLimited { cluster, .. } => Some(cluster),
            Self::LocalAppDown { service, .. }
            | Self::Forbidden { service }
            | Self::BadToken { service, .. } => Some(service),
            _ => None,
        }
    }
}
