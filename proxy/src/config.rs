//! What a proxy is told at start. The binary merges flags, variables and the file into one [`ProxyConfig`].

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use weft_core::tls::{ClientCerts, Identity, Trust};
use weft_xds_proto::resource::cluster::RateLimit;
use weft_xds_proto::resource::cluster::tls::{CipherSuite, TlsVersion};
use weft_xds_proto::resource::labels::{self, Place};

use crate::health::{ADMIN_LABEL, APP_PORT_LABEL, SIDECAR_LABEL};
use crate::limits::{
    CONNECTIONS_MAX, DOWNSTREAM_IDLE_TIMEOUT, HEAD_TIMEOUT, LABEL_BYTES_MAX, LABELS_MAX, STALL_TIMEOUT,
};
use crate::policy::overload::Limits;
use crate::proxy_protocol::Network;
use crate::telemetry::access_log::AccessLogConfig;
use crate::telemetry::trace::TraceConfig;
use crate::tls::mesh::{MeshFiles, SPIFFE_LABEL};

pub mod declared;
pub mod listener_tls;
pub mod static_config;

pub use declared::{BoundListener, Declared, DeclaredTcp, ListenAt, Takes};
pub use listener_tls::ListenerTls;
pub use static_config::{ListenerEntry, RouteEntry, StaticCluster, StaticConfig, StaticEndpoint};

/// Everything a proxy needs to start. Addresses with port 0 mean any free port.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// Label in the gossip pool, in metrics and on the admin port.
    pub name: String,
    /// Where this proxy stands; endpoints near it come first where a policy wants that.
    pub place: Place,
    /// Identity, incarnation, known peers and the last good configuration; without it all of them are made anew
    /// at each start, in memory.
    pub data_dir: Option<PathBuf>,
    /// Take the place of the process that has `data_dir` open, if there is one.
    pub take_over: bool,
    /// Gossip addresses (HOST:PORT) of any members. Needs `gossip`.
    pub join: Vec<String>,
    /// xDS servers to use instead of those that gossip names.
    pub servers: Vec<SocketAddr>,
    /// Speak TLS with the servers, trusting this, and show them this.
    pub server_trust: Option<Trust>,
    /// Where the local app sends its calls; `None` for a proxy that only receives.
    pub outbound: Option<SocketAddr>,
    /// Where connections arrive that the kernel redirects (`weft proxy install-redirect`).
    pub captures: Vec<SocketAddr>,
    /// Ports and sockets of their own for single services.
    pub upstreams: Vec<Declared>,
    /// Where peers send calls for the local services.
    pub inbound: Option<SocketAddr>,
    /// Where connections of others to the local services' own ports arrive, which the kernel redirects.
    pub inbound_captures: Vec<SocketAddr>,
    /// Load balancers in front of `inbound` that tell with a PROXY protocol header who the client is.
    pub inbound_accept_proxy: Vec<Network>,
    /// Proxies in front of `inbound` that are believed what they say of earlier hops.
    pub trusted_proxies: Vec<Network>,
    /// Where peers connect to local services that speak no HTTP, one port each: `Takes::Tcp` at `ListenAt::Tcp`.
    pub inbound_tcp: Vec<Declared>,
    /// Terminates TLS on `inbound`; plaintext without.
    pub inbound_tls: Option<PortTls>,
    /// Identity among sidecars: TLS with others that have one. Plaintext without.
    pub mesh: Option<MeshFiles>,
    /// `/ready`, `/clusters`, `/config_dump`, `/metrics`.
    pub admin: SocketAddr,
    /// Gossip bind address; `None` for no gossip.
    pub gossip: Option<SocketAddr>,
    /// Address that peers use to reach this process, when it binds an unspecified one (0.0.0.0 or ::).
    pub advertise: Option<IpAddr>,
    /// Services of this machine that the sidecar checks, advertises and receives for.
    pub services: Vec<LocalService>,
    /// Worker threads that carry traffic; at least 1.
    pub workers: usize,
    /// Connections of clients at once, divided among the workers; more wait. At least as many as there are workers.
    pub connections_max: usize,
    /// How long clients may take.
    pub client_timeouts: ClientTimeouts,
    /// Listeners, routes and clusters from a file.
    pub static_config: Option<Arc<StaticConfig>>,
    /// How long requests in flight may take to finish once the proxy stops.
    pub drain_timeout: Duration,
    /// A line for each request; none if missing.
    pub access_log: Option<AccessLogConfig>,
    /// Traces; none if missing.
    pub trace: Option<TraceConfig>,
    /// Requests with `weft-timing` are told in `server-timing` what took how long.
    pub server_timing: bool,
    /// Beyond these a part of the requests is refused.
    pub overload: Limits,
}

/// How long clients of all ports may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientTimeouts {
    /// For the head of a request, from its first byte on, and for what else a connection has to say in its beginning.
    pub head: Duration,
    /// Without a request, before the connection is closed. Shorter than their own time, and their next request meets a connection
    /// that is closing.
    pub idle: Duration,
    /// Without taking anything of an answer, or sending anything of a body.
    pub stall: Duration,
}

impl ClientTimeouts {
    /// Those that can be chosen.
    pub const RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
}

impl Default for ClientTimeouts {
    fn default() -> Self {
        Self { head: HEAD_TIMEOUT, idle: DOWNSTREAM_IDLE_TIMEOUT, stall: STALL_TIMEOUT }
    }
}

/// Default of [`ProxyConfig::workers`]: a sidecar shares its machine with the app, and two survive one being busy.
pub const WORKERS_DEFAULT: usize = 2;

/// Most workers; more threads than any machine has cores only cost memory.
pub const WORKERS_MAX: usize = 256;

/// Default of [`ProxyConfig::drain_timeout`]: long enough for ordinary requests, shorter than the 30 s after which
/// supervisors kill.
pub const DRAIN_TIMEOUT_DEFAULT: Duration = Duration::from_secs(20);

/// TLS on a port for any client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortTls {
    /// A client is shown the one for the name that it asks for, or else the first.
    pub certificates: Vec<Identity>,
    /// What clients have to show.
    pub clients: ClientCerts,
    /// PEM file with revocation lists of their CAs.
    pub client_crl: Option<PathBuf>,
    /// No older version is spoken.
    pub min_version: TlsVersion,
    /// The suites that are taken, most wanted first; of a version that none is for, all of its own.
    pub cipher_suites: Vec<CipherSuite>,
}

impl PortTls {
    /// One certificate, for clients that show none.
    pub fn new(certificate: Identity) -> Self {
        Self {
            certificates: vec![certificate],
            clients: ClientCerts::Unasked,
            client_crl: None,
            min_version: TlsVersion::default(),
            cipher_suites: Vec::new(),
        }
    }
}

/// A service beside this sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalService {
    /// Service name: a DNS label.
    pub name: String,
    /// Where the app listens.
    pub addr: SocketAddr,
    /// Checked with GET if given, else by a TCP connection.
    pub health_path: Option<String>,
    /// What peers are told of the instance, such as `version` and `region`. `protocol` and `weight` mean something
    /// to the mesh; `protocol` also says what the sidecar speaks to the app.
    pub labels: BTreeMap<String, String>,
    /// How many requests of peers pass to it; none: all.
    pub rate_limit: Option<RateLimit>,
}

impl ProxyConfig {
    /// A proxy with an outbound listener and admin port on free loopback ports, and nothing else.
    pub fn new(name: impl Into<String>) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            name: name.into(),
            place: Place::default(),
            data_dir: None,
            take_over: false,
            join: Vec::new(),
            servers: Vec::new(),
            server_trust: None,
            outbound: Some(any),
            captures: Vec::new(),
            upstreams: Vec::new(),
            inbound: None,
            inbound_captures: Vec::new(),
            inbound_accept_proxy: Vec::new(),
            trusted_proxies: Vec::new(),
            inbound_tcp: Vec::new(),
            inbound_tls: None,
            mesh: None,
            admin: any,
            gossip: None,
            advertise: None,
            services: Vec::new(),
            workers: WORKERS_DEFAULT,
            connections_max: CONNECTIONS_MAX,
            client_timeouts: ClientTimeouts::default(),
            static_config: None,
            drain_timeout: DRAIN_TIMEOUT_DEFAULT,
            access_log: None,
            trace: None,
            server_timing: false,
            overload: Limits::default(),
        }
    }

    /// Whether names that are not in the static file can become known at run time.
    pub fn discovers(&self) -> bool {
        !self.servers.is_empty() || self.gossip.is_some()
    }

    /// The service beside this sidecar, if there is no other: others mean it, whatever their host.
    pub(crate) fn only_service(&self) -> Option<&str> {
        match self.services.as_slice() {
            [service] => Some(&service.name),
            _ => None,
        }
    }

    /// Checks what the types do not. A text about one key alone begins with it and a colon or the value.
    ///
    /// # Errors
    /// All problems at once, each naming its field.
    pub fn validate(&self) -> Result<(), ConfigProblems> {
        let mut problems = Vec::new();
        if !(1..=WORKERS_MAX).contains(&self.workers) {
            problems.push(format!("workers: {} is not between 1 and {WORKERS_MAX}", self.workers));
        }
        if self.connections_max < self.workers {
            problems.push(format!(
                "max-connections and workers: {} is not enough for {}, each of which takes its share",
                self.connections_max, self.workers
            ));
        }
        let times = self.client_timeouts;
        for (key, time) in [("head", times.head), ("idle", times.idle), ("stall", times.stall)] {
            if !ClientTimeouts::RANGE.contains(&time) {
                problems.push(format!("client-{key}-timeout: {time:?} is not between 1s and 1h"));
            }
        }
        for (key, value) in [(labels::REGION, &self.place.region), (labels::ZONE, &self.place.zone)] {
            if let Err(why) = check_label(key, value) {
                problems.push(why);
            }
        }
        if self.inbound_tls.is_some() && self.inbound.is_none() {
            problems.push("inbound TLS needs an inbound address".to_owned());
        }
        if self.inbound_tls.is_some() && self.mesh.is_some() {
            problems.push(
                "inbound-cert beside mesh-cert: the inbound port is for any client of TLS, or for sidecars; give one of \
                 the two"
                    .to_owned(),
            );
        }
        if self.inbound.is_some() && self.services.is_empty() {
            problems.push(
                "inbound has no service to receive for; name one with --service NAME=IP:PORT".to_owned(),
            );
        }
        if !self.inbound_captures.is_empty() && self.inbound.is_none() && self.inbound_tcp.is_empty() {
            problems.push(
                "capture-inbound takes what is on its way to a service's own port: give the port that peers are told of \
                 with inbound or inbound-tcp"
                    .to_owned(),
            );
        }
        if !self.join.is_empty() && self.gossip.is_none() {
            problems.push("join needs a gossip address".to_owned());
        }
        for (i, service) in self.services.iter().enumerate() {
            if let Err(why) = check_service_name(&service.name) {
                problems.push(format!("service {:?}: {why}", service.name));
            }
            if self.services[..i].iter().any(|s| s.name == service.name) {
                problems.push(format!("service {:?} is given twice", service.name));
            }
            if service.addr.port() == 0 {
                problems.push(format!("service {:?}: port 0 is no address of an app", service.name));
            }
            for (key, value) in &service.labels {
                if let Err(why) = check_label(key, value) {
                    problems.push(format!("service {:?}: {why}", service.name));
                }
            }
            if service.labels.len() > LABELS_MAX {
                let count = service.labels.len();
                problems.push(format!("service {:?}: {count} labels, at most {LABELS_MAX}", service.name));
            }
            if service.health_path.as_ref().is_some_and(|p| !p.starts_with('/')) {
                problems.push(format!("service {:?}: the health path must start with /", service.name));
            }
        }
        self.check_declared(&mut problems);
        let has_listener = self.outbound.is_some()
            || self.inbound.is_some()
            || !self.captures.is_empty()
            || !self.upstreams.is_empty()
            || !self.inbound_tcp.is_empty()
            || self.static_config.as_ref().is_some_and(|s| !s.listeners.is_empty());
        if !has_listener {
            problems.push("nothing to listen on: give outbound, inbound, upstream or listeners".to_owned());
        }
        if let Some(config) = &self.static_config {
            problems.extend(config.problems());
        }
        if problems.is_empty() { Ok(()) } else { Err(ConfigProblems(problems)) }
    }
}

impl ProxyConfig {
    fn check_declared(&self, problems: &mut Vec<String>) {
        let all = || self.upstreams.iter().chain(&self.inbound_tcp);
        for (i, one) in all().enumerate() {
            let again = all().take(i).any(|other| same_place(&one.at, &other.at));
            if again {
                problems.push(format!("listener {} is given twice", one.at));
            }
        }
        for one in &self.inbound_tcp {
            let service = one.service();
            if !matches!(one.takes, Takes::Tcp(_)) {
                problems.push(format!(
                    "inbound-tcp {}: protocol is {}, and tcp there",
                    one.at,
                    one.protocol()
                ));
            }
            if !self.services.iter().any(|s| s.name == service) {
                problems.push(format!(
                    "inbound-tcp {}: no service {service:?} to receive for; name it with --service {service}=IP:PORT",
                    one.at
                ));
            }
            if self.inbound_tcp.iter().filter(|other| other.service() == service).count() > 1 {
                problems
                    .push(format!("inbound-tcp: service {service:?} has several ports, and peers take one"));
            }
            if matches!(one.at, ListenAt::Unix { .. }) {
                problems.push(format!("inbound-tcp {}: peers cannot reach a Unix socket", one.at));
            }
        }
        for service in self.services.iter().filter(|s| s.is_tcp() && self.inbound.is_some()) {
            if !self.inbound_tcp.iter().any(|one| one.service() == service.name) {
                let name = &service.name;
                problems.push(format!(
                    "service {name:?} speaks no HTTP, which inbound is for: give it a port of its own with \
                     --inbound-tcp IP:PORT={name}"
                ));
            }
        }
    }
}

fn same_place(one: &ListenAt, other: &ListenAt) -> bool {
    match (one, other) {
        (ListenAt::Tcp(one), ListenAt::Tcp(other)) => one == other && one.port() != 0,
        (ListenAt::Unix { path: one, .. }, ListenAt::Unix { path: other, .. }) => one == other,
        _ => false,
    }
}

impl LocalService {
    /// Whether it speaks something other than HTTP.
    pub fn is_tcp(&self) -> bool {
        self.labels.get(labels::PROTOCOL).is_some_and(|p| p.eq_ignore_ascii_case("tcp"))
    }
}

/// A service name is one DNS label, in lower case.
///
/// # Errors
/// Says which rule it breaks.
pub fn check_service_name(name: &str) -> Result<(), String> {
    let max = weft_core::limits::SERVICE_NAME_BYTES_MAX;
    if name.is_empty() {
        return Err("is empty".to_owned());
    }
    if name.len() > max {
        return Err(format!("is {} bytes long, at most {max} are allowed", name.len()));
    }
    if let Some(c) = name.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
        return Err(format!("has {c:?}; a to z, 0 to 9 and - are allowed"));
    }
    if name.starts_with('-') || name.ends_with('-') {
        return Err("starts or ends with -".to_owned());
    }
    Ok(())
}

/// A label travels in gossip datagrams, so it is short.
pub(crate) fn check_label(key: &str, value: &str) -> Result<(), String> {
    if [SIDECAR_LABEL, ADMIN_LABEL, APP_PORT_LABEL, SPIFFE_LABEL].contains(&key) {
        return Err(format!("label {key} is set by the sidecar itself"));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if key.is_empty() || key.len() > LABEL_BYTES_MAX || !key.chars().all(allowed) {
        return Err(format!("label {key:?} is not 1 to {LABEL_BYTES_MAX} letters, digits, '-', '_' or '.'"));
    }
    if value.len() > LABEL_BYTES_MAX || value.chars().any(char::is_control) {
        return Err(format!("label {key}: the value is not at most {LABEL_BYTES_MAX} bytes of text"));
    }
    labels::check(key, value).map_err(|allowed| format!("label {key} is {value:?}; allowed: {allowed}"))
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct ConfigProblems(pub Vec<String>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_proxy_is_valid() {
        ProxyConfig::new("p").validate().unwrap();
    }

    #[test]
    fn all_problems_are_named_at_once() {
        let mut config = ProxyConfig::new("p");
        config.workers = 0;
        config.outbound = None;
        config.join = vec!["127.0.0.1:1".to_owned()];
        config.inbound_tls = Some(PortTls::new(Identity { cert: "c".into(), key: "k".into() }));
        let service = |name: &str| LocalService {
            rate_limit: None,
            name: name.to_owned(),
            addr: "127.0.0.1:0".parse().unwrap(),
            health_path: Some("health".to_owned()),
            labels: BTreeMap::from([("protocol".to_owned(), "http3".to_owned())]),
        };
        config.services = vec![service("Orders"), service("Orders")];
        let ConfigProblems(problems) = config.validate().unwrap_err();
        for part in [
            "workers: 0",
            "inbound TLS",
            "join needs",
            "has 'O'",
            "given twice",
            "port 0",
            "start with /",
            "label protocol is \"http3\"",
            "nothing to listen on",
        ] {
            assert!(problems.iter().any(|p| p.contains(part)), "{part} not in {problems:?}");
        }
    }

    #[test]
    fn service_names_are_dns_labels() {
        for good in ["a", "orders", "orders-2", "0"] {
            check_service_name(good).unwrap();
        }
        for bad in ["", "-a", "a-", "a.b", "A", "ä", &"a".repeat(64)] {
            check_service_name(bad).unwrap_err();
        }
    }
}
