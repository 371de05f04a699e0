//! Flags of `weft proxy`.

pub(crate) mod file;
mod several;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Deserializer};
use weft_core::config::parse_duration;
use weft_core::tls::{Identity, Trust};
use weft_meshconfig::Document;
use weft_proxy::config::{
    self, ClientTimeouts, Declared, DeclaredTcp, ListenerEntry, LocalService, ProxyConfig, RouteEntry,
    StaticCluster, StaticConfig,
};
use weft_proxy::limits::CONNECTIONS_MAX;
use weft_xds_proto::resource::labels::{self, Place};

use self::several::{access_log, mesh, overload, trace};
use super::{Listen, LogFormat, ServiceSpec, default_data_dir, host_name, layer};
use crate::failure::Failure;

/// Where the local app sends its calls.
pub(crate) const OUTBOUND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15001);
/// `/ready`, `/clusters`, `/config_dump`, `/metrics`.
pub(crate) const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);

/// Run a sidecar beside your service
///
/// Your app sends its calls to --outbound with the service's name as host, or uses it as HTTP_PROXY.
/// Services given with --service are checked, advertised to the mesh, and received for on --inbound.
/// Every flag can also be given as the WEFT_… variable shown with it, or in the --config file under its
/// own name; the flag wins over the variable, the variable over the file. Port 0 means any free port,
/// printed at start. With `listeners`, `routes` and `clusters` in the file, a proxy needs no server and
/// no gossip; HTTPRoutes and GRPCRoutes may follow, each behind a line of ---. SIGTERM drains it; on SIGUSR2 the program
/// that is now in its place takes over (see --take-over).
///
/// Example: weft proxy --name orders --join 10.0.0.1:7946 --service orders=127.0.0.1:8080,check=/health
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct ProxyFlags {
    /// YAML file with any of these flags as keys, and with `listeners`, `routes` and `clusters`; default:
    /// none
    #[arg(long, env = "WEFT_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub(crate) config: Option<PathBuf>,
    /// Label of this proxy for people; default: this machine's name
    #[arg(long, env = "WEFT_NAME")]
    pub(crate) name: Option<String>,
    /// Region that this proxy stands in, for policies that prefer what is near; also the label `region` of --service;
    /// default: none
    #[arg(long, env = "WEFT_REGION")]
    pub(crate) region: Option<String>,
    /// Zone of the region that this proxy stands in; also the label `zone` of --service; default: none
    #[arg(long, env = "WEFT_ZONE")]
    pub(crate) zone: Option<String>,
    /// Folder of identity and last good configuration, for this proxy alone; default:
    /// weft-data/proxy/NAME if it joins a mesh, else none
    #[arg(long, env = "WEFT_DATA_DIR", value_name = "FOLDER")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Hot upgrade: take the place of the running proxy that has --data-dir open, with its sockets and its place in the
    /// mesh, so that no request fails. It finishes what it has and ends. Give the same flags as it has. Without a running
    /// one, start as usual. A proxy that cannot be taken over, or that would not be replaced whole, goes on
    #[arg(long, env = "WEFT_TAKE_OVER")]
    #[serde(skip)]
    pub(crate) take_over: bool,
    /// Gossip addresses of members to join, any of them; repeat it or separate by commas; default: none
    #[arg(long, env = "WEFT_JOIN", value_name = "HOST:PORT", value_delimiter = ',')]
    pub(crate) join: Option<Vec<String>>,
    /// gRPC addresses of the servers to use; repeat it or separate by commas; default: those that gossip
    /// names
    #[arg(long, env = "WEFT_SERVER", value_name = "HOST:PORT", value_delimiter = ',')]
    pub(crate) server: Option<Vec<String>>,
    /// PEM file with the CA that signs the servers' certificates, for the DNS name server.weft: they are then asked over
    /// TLS; default: no TLS
    #[arg(long, env = "WEFT_SERVER_CA", value_name = "FILE")]
    pub(crate) server_ca: Option<PathBuf>,
    /// PEM file with a certificate to show to servers that require one; needs --server-ca
    #[arg(long, env = "WEFT_SERVER_CERT", value_name = "FILE")]
    pub(crate) server_cert: Option<PathBuf>,
    /// PEM file with the private key of --server-cert
    #[arg(long, env = "WEFT_SERVER_KEY", value_name = "FILE")]
    pub(crate) server_key: Option<PathBuf>,
    /// Where the local app sends its calls, or off; default: 127.0.0.1:15001, or off if the file has
    /// listeners
    #[arg(long, env = "WEFT_OUTBOUND", value_name = "IP:PORT")]
    pub(crate) outbound: Option<Listen>,
    /// Where connections arrive that the kernel redirects by the rules of `weft proxy install-redirect`, usually
    /// port 15002 of 127.0.0.1 and of ::1: those to known services are balanced, those to an instance go to it as its service's
    /// do, others go on to where they were on their way;
    /// repeat it or separate by commas; Linux only; default: none
    #[arg(long, env = "WEFT_CAPTURE", value_name = "IP:PORT", value_delimiter = ',')]
    pub(crate) capture: Option<Vec<SocketAddr>>,
    /// A port or Unix socket of its own for one service, as ADDRESS=SERVICE, then ,OPTION=VALUE as wanted; repeat it (in
    /// the variable, separate by spaces). ADDRESS is IP:PORT or unix:/PATH. Options: protocol=http (requests, whatever
    /// their host), tcp (bytes as they are) or tls (SERVICE is *: by the name that TLS clients ask for, SERVICE or
    /// SERVICE.weft, or with domain=DOMAIN, SERVICE.DOMAIN); mode=0660 of a socket's file; accept-proxy=NETWORK+NETWORK:
    /// from these only with a PROXY protocol header; send-proxy=v1 or v2: tell endpoints who the client is; cert=FILE with
    /// key=FILE (as many as wanted, by name), client-ca=FILE, client-crl=FILE, client-certificates=MODE, min-version=VERSION
    /// and cipher-suites=NAME:NAME: TLS, as those of --inbound-cert; default: none
    #[arg(long, env = "WEFT_UPSTREAM", value_name = "ADDRESS=SERVICE", value_delimiter = ' ')]
    pub(crate) upstream: Option<Vec<Declared>>,
    /// Where others send calls for the local services (usually port 15006), or off; default: off, and
    /// others call the services directly
    #[arg(long, env = "WEFT_INBOUND", value_name = "IP:PORT")]
    pub(crate) inbound: Option<Listen>,
    /// Networks of load balancers in front of --inbound, which tell with a PROXY protocol header (v1 or v2) who the
    /// client is; repeat it or separate by commas; default: none
    #[arg(long, env = "WEFT_INBOUND_ACCEPT_PROXY", value_name = "NETWORK", value_delimiter = ',')]
    pub(crate) inbound_accept_proxy: Option<Vec<String>>,
    /// Networks of proxies in front of --inbound that are believed what they say of earlier hops (x-forwarded-for and the
    /// like, x-forwarded-client-cert), beside sidecars with certificates; repeat it or separate by commas; default: none
    #[arg(long, env = "WEFT_TRUSTED_PROXIES", value_name = "NETWORK", value_delimiter = ',')]
    pub(crate) trusted_proxies: Option<Vec<String>>,
    /// Where others connect to a local service that speaks no HTTP (--service …,protocol=tcp), as IP:PORT=SERVICE, then
    /// accept-proxy and send-proxy as for --upstream; bytes pass as they are; repeat it (in the variable, separate by
    /// spaces); default: none
    #[arg(long, env = "WEFT_INBOUND_TCP", value_name = "IP:PORT=SERVICE", value_delimiter = ' ')]
    pub(crate) inbound_tcp: Option<Vec<DeclaredTcp>>,
    /// Where connections of others to the local services' own ports arrive, which the kernel redirects by the rules of
    /// `weft proxy install-redirect --inbound-port`, usually `[::]:15007` for IPv4 and IPv6: they are received as on --inbound
    /// and --inbound-tcp, so that nobody gets around the sidecar; repeat it or separate by commas; Linux only; default: none
    #[arg(long, env = "WEFT_CAPTURE_INBOUND", value_name = "IP:PORT", value_delimiter = ',')]
    pub(crate) capture_inbound: Option<Vec<SocketAddr>>,
    /// PEM file with the certificate chain to terminate TLS with on --inbound, the leaf first; repeat it or separate by
    /// commas: clients are shown the one for the name that they ask for, or else the first; default: none, plaintext
    #[arg(long, env = "WEFT_INBOUND_CERT", value_name = "FILE", value_delimiter = ',')]
    #[serde(default, deserialize_with = "files")]
    pub(crate) inbound_cert: Option<Vec<PathBuf>>,
    /// PEM file with the private key of --inbound-cert, as many and in the same order; default: none
    #[arg(long, env = "WEFT_INBOUND_KEY", value_name = "FILE", value_delimiter = ',')]
    #[serde(default, deserialize_with = "files")]
    pub(crate) inbound_key: Option<Vec<PathBuf>>,
    /// PEM file with the CA by which clients of --inbound-cert show a certificate; default: none is asked for
    #[arg(long, env = "WEFT_INBOUND_CLIENT_CA", value_name = "FILE")]
    pub(crate) inbound_client_ca: Option<PathBuf>,
    /// PEM file with revocation lists of --inbound-client-ca; default: none, nobody was taken back
    #[arg(long, env = "WEFT_INBOUND_CLIENT_CRL", value_name = "FILE")]
    pub(crate) inbound_client_crl: Option<PathBuf>,
    /// required, or optional: who shows none is let in; default: required with --inbound-client-ca
    #[arg(long, env = "WEFT_INBOUND_CLIENT_CERTIFICATES", value_name = "MODE")]
    pub(crate) inbound_client_certificates: Option<String>,
    /// Oldest version of TLS on --inbound with --inbound-cert, 1.2 or 1.3; default: 1.2
    #[arg(long, env = "WEFT_INBOUND_MIN_VERSION", value_name = "VERSION")]
    pub(crate) inbound_min_version: Option<String>,
    /// Cipher suites of --inbound with --inbound-cert, most wanted first; default, and for a version that none is for: all
    #[arg(long, env = "WEFT_INBOUND_CIPHER_SUITES", value_name = "NAME:NAME")]
    pub(crate) inbound_cipher_suites: Option<String>,
    /// PEM file with this sidecar's certificate chain, the leaf first: its only URI is a SPIFFE ID, such as
    /// spiffe://example.org/ns/shop/sa/orders. With it --inbound takes TLS from other sidecars, and instances that are
    /// advertised with such an ID are called over TLS; default: none, plaintext
    #[arg(long, env = "WEFT_MESH_CERT", value_name = "FILE")]
    pub(crate) mesh_cert: Option<PathBuf>,
    /// PEM file with the private key of --mesh-cert
    #[arg(long, env = "WEFT_MESH_KEY", value_name = "FILE")]
    pub(crate) mesh_key: Option<PathBuf>,
    /// PEM file with the CAs that sign sidecars' certificates
    #[arg(long, env = "WEFT_MESH_CA", value_name = "FILE")]
    pub(crate) mesh_ca: Option<PathBuf>,
    /// PEM file with revocation lists of these CAs; default: none
    #[arg(long, env = "WEFT_MESH_CRL", value_name = "FILE")]
    pub(crate) mesh_crl: Option<PathBuf>,
    /// permissive: plaintext is taken as well, and sent to instances without a SPIFFE ID; strict: it is not; default:
    /// permissive
    #[arg(long, env = "WEFT_MESH_MODE", value_name = "MODE")]
    pub(crate) mesh_mode: Option<String>,
    /// Where /ready, /clusters, /config_dump and /metrics are; default: 127.0.0.1:15000
    #[arg(long, env = "WEFT_ADMIN", value_name = "IP:PORT")]
    pub(crate) admin: Option<SocketAddr>,
    /// Port for gossip, UDP and TCP; default: any free one with --join, else no gossip
    #[arg(long, env = "WEFT_GOSSIP_PORT", value_name = "PORT")]
    pub(crate) gossip_port: Option<u16>,
    /// Address that others are told to use for gossip and --inbound; default: what they listen on
    #[arg(long, env = "WEFT_ADVERTISE", value_name = "IP")]
    pub(crate) advertise: Option<IpAddr>,
    /// A service of this machine, as NAME=IP:PORT, then ,check=/PATH and ,LABEL=VALUE as wanted; repeat it
    /// (in the variable, separate by spaces); without a check, a TCP connection is enough; protocol=http2 or
    /// grpc says that the app speaks HTTP/2, protocol=tcp that it speaks no HTTP (see --inbound-tcp), weight=1 to 10000
    /// is its share, other labels are told to peers; rate-limit=100/1s lets so many requests of peers pass; default: none
    #[arg(long, env = "WEFT_SERVICE", value_name = "NAME=IP:PORT", value_delimiter = ' ')]
    pub(crate) service: Option<Vec<ServiceSpec>>,
    /// Threads that carry traffic, 1 to 256; default: 2
    #[arg(long, env = "WEFT_WORKERS", value_name = "N")]
    pub(crate) workers: Option<usize>,
    /// Connections of clients at once; more wait, in the kernel's queue; default: 20000
    #[arg(long, env = "WEFT_MAX_CONNECTIONS", value_name = "N")]
    pub(crate) max_connections: Option<usize>,
    /// How long a client may take for the head of a request, from its first byte on (408), 1s to 1h; default: 15s
    #[arg(long, env = "WEFT_CLIENT_HEAD_TIMEOUT", value_name = "DURATION", value_parser = parse_duration)]
    #[serde(with = "weft_core::config::duration::option")]
    pub(crate) client_head_timeout: Option<Duration>,
    /// How long a client's connection may be without a request before it is closed, 1s to 1h: longer than clients keep
    /// theirs, so that no request meets a closing one; default: 300s
    #[arg(long, env = "WEFT_CLIENT_IDLE_TIMEOUT", value_name = "DURATION", value_parser = parse_duration)]
    #[serde(with = "weft_core::config::duration::option")]
    pub(crate) client_idle_timeout: Option<Duration>,
    /// How long a client may take nothing of its answer, or send nothing of its request's body (408), 1s to 1h; default: 60s
    #[arg(long, env = "WEFT_CLIENT_STALL_TIMEOUT", value_name = "DURATION", value_parser = parse_duration)]
    #[serde(with = "weft_core::config::duration::option")]
    pub(crate) client_stall_timeout: Option<Duration>,
    /// How long requests in flight may take to finish at the end, such as 20s; default: 20s
    #[arg(long, env = "WEFT_DRAIN_TIMEOUT", value_name = "DURATION", value_parser = parse_duration)]
    #[serde(with = "weft_core::config::duration::option")]
    pub(crate) drain_timeout: Option<Duration>,
    /// What is logged to stderr: error, warn, info, debug or trace, also per module, such as
    /// info,weft_gossip=debug; default: info
    #[arg(long, env = "WEFT_LOG_LEVEL", value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
    /// Log as text or as one JSON object a line; default: text
    #[arg(long, env = "WEFT_LOG_FORMAT", value_enum, value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
    /// Resident memory of this process in MiB near which it refuses a part of the requests (503), 16 to 1048576;
    /// default: no limit
    #[arg(long, env = "WEFT_MAX_MEMORY_MIB", value_name = "MIB")]
    pub(crate) max_memory_mib: Option<u64>,
    /// How long requests may wait in a worker before it refuses a part of them (503), 1ms to 10s; default: no limit
    #[arg(long, env = "WEFT_MAX_QUEUE_TIME", value_name = "DURATION", value_parser = parse_duration)]
    #[serde(with = "weft_core::config::duration::option")]
    pub(crate) max_queue_time: Option<Duration>,
    /// Write a line for each request when its answer is over: stdout, or a file, which is made anew when it was moved
    /// away; default: none
    #[arg(long, env = "WEFT_ACCESS_LOG", value_name = "stdout|FILE")]
    pub(crate) access_log: Option<PathBuf>,
    /// How a line of the access log looks: json, text, or a text with fields in braces, such as
    /// "{time} {status} {flags} {path}"; default: json
    #[arg(long, env = "WEFT_ACCESS_LOG_FORMAT", value_name = "FORMAT")]
    pub(crate) access_log_format: Option<String>,
    /// Collector of traces, which speaks OTLP over gRPC, such as http://127.0.0.1:4317: each sampled request is a span
    /// of the trace that its traceparent names (W3C Trace Context); default: none, and fields of callers pass as they
    /// came
    #[arg(long, env = "WEFT_TRACE_ENDPOINT", value_name = "URL")]
    pub(crate) trace_endpoint: Option<String>,
    /// Tell requests that have a weft-timing field, in server-timing of the answer, how long they waited, connected and
    /// were answered for: true or false; default: false
    #[arg(long, env = "WEFT_SERVER_TIMING", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) server_timing: Option<bool>,
    /// Percent of the traces that begin here which are sampled, 0 to 100; of others their callers have decided;
    /// default: 1
    #[arg(long, env = "WEFT_TRACE_SAMPLE_PERCENT", value_name = "PERCENT")]
    pub(crate) trace_sample_percent: Option<f64>,
    /// File only.
    #[arg(skip)]
    pub(crate) listeners: Option<Vec<ListenerEntry>>,
    /// File only.
    #[arg(skip)]
    pub(crate) routes: Option<Vec<RouteEntry>>,
    /// File only.
    #[arg(skip)]
    pub(crate) clusters: Option<Vec<StaticCluster>>,
    /// File only, each a document of its own.
    #[arg(skip)]
    #[serde(skip)]
    pub(crate) documents: Option<Vec<Document>>,
}

/// One file, or a list of them.
fn files<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<PathBuf>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a file or a list of files")]
    enum Files {
        One(PathBuf),
        Several(Vec<PathBuf>),
    }
    let files = Option::<Files>::deserialize(deserializer)?;
    Ok(files.map(|files| match files {
        Files::One(file) => vec![file],
        Files::Several(files) => files,
    }))
}

impl ProxyFlags {
    /// Puts the file, if one is named, under flags and variables.
    pub(crate) fn layered(self) -> Result<Self, Failure> {
        let file = match self.config.as_deref() {
            Some(path) => file::read(path)?,
            None => Self::default(),
        };
        Ok(self.over(file))
    }

    fn over(mut self, mut file: Self) -> Self {
        layer!(self, file;
            name, region, zone, data_dir, join, server, server_ca, server_cert, server_key, outbound, capture, upstream,
            inbound,
            inbound_accept_proxy, trusted_proxies, inbound_tcp, capture_inbound, inbound_cert, inbound_key, inbound_client_ca,
            inbound_client_crl, inbound_client_certificates, inbound_min_version, inbound_cipher_suites, mesh_cert, mesh_key,
            mesh_ca, mesh_crl, mesh_mode, admin, gossip_port,
            advertise, service, workers, max_connections, client_head_timeout, client_idle_timeout, client_stall_timeout,
            drain_timeout, log_level, log_format, access_log, access_log_format,
            trace_endpoint, trace_sample_percent, server_timing, max_memory_mib, max_queue_time, listeners, routes, clusters,
            documents,
        );
        self
    }

    /// With defaults for what nobody said. `servers` are the addresses that `server` names.
    pub(crate) fn into_config(self, servers: Vec<SocketAddr>) -> Result<ProxyConfig, Failure> {
        let name = self.name.unwrap_or_else(host_name);
        let join = self.join.unwrap_or_default();
        let static_config = match (self.listeners, self.routes, self.clusters, self.documents) {
            (None, None, None, None) => None,
            (listeners, routes, clusters, documents) => Some(StaticConfig {
                listeners: listeners.unwrap_or_default(),
                routes: routes.unwrap_or_default(),
                clusters: clusters.unwrap_or_default(),
                documents: documents.unwrap_or_default(),
            }),
        };
        let has_listeners = static_config.as_ref().is_some_and(|config| !config.listeners.is_empty());
        let outbound =
            self.outbound.unwrap_or(if has_listeners { Listen::Off } else { Listen::At(OUTBOUND) });
        let inbound = self.inbound.and_then(Listen::address);
        let inbound_tls = config::listener_tls::of_keys(
            "inbound-",
            (self.inbound_cert.unwrap_or_default(), self.inbound_key.unwrap_or_default()),
            (self.inbound_client_ca, self.inbound_client_crl, self.inbound_client_certificates.as_deref()),
            (self.inbound_min_version.as_deref(), self.inbound_cipher_suites.as_deref()),
        )
        .map_err(Failure::new)?;
        let mesh =
            mesh(self.mesh_cert, self.mesh_key, self.mesh_ca, self.mesh_crl, self.mesh_mode.as_deref())?;
        let server_trust = match (self.server_ca, self.server_cert, self.server_key) {
            (None, None, None) => None,
            (Some(ca), None, None) => Some(Trust { ca: Some(ca), identity: None }),
            (Some(ca), Some(cert), Some(key)) => {
                Some(Trust { ca: Some(ca), identity: Some(Identity { cert, key }) })
            }
            _ => {
                return Err(Failure::new(
                    "server-cert, server-key and server-ca: all three are needed, or the last alone",
                ));
            }
        };
        let access_log = access_log(self.access_log, self.access_log_format.as_deref())?;
        let trace = trace(self.trace_endpoint, self.trace_sample_percent)?;
        let overload = overload(self.max_memory_mib, self.max_queue_time)?;
        let default = ClientTimeouts::default();
        let client_timeouts = ClientTimeouts {
            head: self.client_head_timeout.unwrap_or(default.head),
            idle: self.client_idle_timeout.unwrap_or(default.idle),
            stall: self.client_stall_timeout.unwrap_or(default.stall),
        };
        let gossips = !join.is_empty() || self.gossip_port.is_some();
        let gossip_ip = gossip_ip(inbound, self.advertise);
        let gossip = gossips.then(|| SocketAddr::new(gossip_ip, self.gossip_port.unwrap_or(0)));
        let in_mesh = gossips || !servers.is_empty();
        let networks = |what: &str, texts: Option<Vec<String>>| {
            let all = texts.unwrap_or_default();
            let all = all.iter().map(|text| text.parse()).collect::<Result<Vec<_>, String>>();
            all.map_err(|why| Failure::new(format!("{what}: {why}")))
        };
        let trusted_proxies = networks("trusted-proxies", self.trusted_proxies)?;
        let inbound_accept_proxy = networks("inbound-accept-proxy", self.inbound_accept_proxy)?;
        let place = Place { region: self.region.unwrap_or_default(), zone: self.zone.unwrap_or_default() };
        let services = self.service.unwrap_or_default().into_iter().map(|mut service| {
            for (key, value) in [(labels::REGION, &place.region), (labels::ZONE, &place.zone)] {
                if !value.is_empty() {
                    service.labels.entry(key.to_owned()).or_insert_with(|| value.clone());
                }
            }
            LocalService {
                name: service.name,
                addr: service.address,
                health_path: service.check,
                labels: service.labels,
                rate_limit: service.rate_limit,
            }
        });
        let services = services.collect();
        Ok(ProxyConfig {
            data_dir: self.data_dir.or_else(|| in_mesh.then(|| default_data_dir("proxy", &name))),
            take_over: self.take_over,
            name,
            join,
            servers,
            server_trust,
            outbound: outbound.address(),
            captures: self.capture.unwrap_or_default(),
            upstreams: self.upstream.unwrap_or_default(),
            inbound,
            inbound_captures: self.capture_inbound.unwrap_or_default(),
            inbound_accept_proxy,
            trusted_proxies,
            inbound_tcp: self.inbound_tcp.unwrap_or_default().into_iter().map(|one| one.0).collect(),
            inbound_tls,
            mesh,
            admin: self.admin.unwrap_or(ADMIN),
            gossip,
            advertise: self.advertise,
            services,
            place,
            workers: self.workers.unwrap_or(config::WORKERS_DEFAULT),
            connections_max: self.max_connections.unwrap_or(CONNECTIONS_MAX),
            client_timeouts,
            static_config: static_config.map(Arc::new),
            access_log,
            trace,
            server_timing: self.server_timing.unwrap_or(false),
            overload,
            drain_timeout: self.drain_timeout.unwrap_or(config::DRAIN_TIMEOUT_DEFAULT),
        })
    }
}

/// Gossip listens where others can reach it: beside the inbound listener, else everywhere if an address
/// of this machine is advertised, else on loopback only.
fn gossip_ip(inbound: Option<SocketAddr>, advertise: Option<IpAddr>) -> IpAddr {
    match (inbound, advertise) {
        (Some(inbound), _) if !inbound.ip().is_loopback() => inbound.ip(),
        (_, Some(ip @ IpAddr::V4(_))) if !ip.is_loopback() => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        (_, Some(ip @ IpAddr::V6(_))) if !ip.is_loopback() => IpAddr::from([0u16; 8]),
        (_, Some(loopback)) => loopback,
        (Some(inbound), None) => inbound.ip(),
        (None, None) => IpAddr::V4(Ipv4Addr::LOCALHOST),
    }
}

#[cfg(test)]
mod tests;
