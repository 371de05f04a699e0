//! `weft dev`: server, sidecar and demo services in one process.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Mutex;
use weft_control_plane::app::{self as server, RunningServer};
use weft_control_plane::config::{self, ServerConfig};
use weft_proxy::app::{self as proxy, RunningProxy};
use weft_proxy::config::ProxyConfig;

use crate::dev::control::{self, Instances};
use crate::dev::http::serve;
use crate::dev::instance::Instance;
use crate::dev::services::Service;
use crate::failure::Failure;
use crate::flags::{ADMIN, DevFlags, OUTBOUND, start_logging};
use crate::output;
use crate::signals::{Signals, signal_exit};

/// The demo control port, beside the sidecar's own ports.
const DEMO_PORT: u16 = 15010;
/// At the end the members leave one after the other, which is nothing to warn of here.
const LOG_LEVEL: &str = "warn,weft_gossip=error";
/// Instances of `hello`.
const HELLOS: usize = 3;
/// All of it has stopped after this; what has not is left to the end of the process.
const STOP_LIMIT: Duration = Duration::from_millis(1800);
/// How long requests in flight may take to finish at the end.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the first registration waits for the server's first election.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// How often the first registration is tried until then.
const READY_RETRY: Duration = Duration::from_millis(20);

/// Runs the demo mesh until it is asked to end.
pub(crate) async fn run(flags: DevFlags) -> Result<ExitCode, Failure> {
    start_logging(flags.log_level.as_deref(), None, LOG_LEVEL)?;
    crate::descriptors::raise_limit();
    let mut signals = Signals::listen()?;
    let data = DataDir::choose(flags.data_dir.clone())?;
    let mesh = tokio::select! {
        mesh = Mesh::start(&flags, &data) => mesh?,
        signal = signals.next() => return Ok(signal_exit(signal)),
    };
    output::print(mesh.introduction(&data));
    signals.next().await;
    eprintln!("stopping");
    Ok(signals.end_gracefully(Some(STOP_LIMIT), mesh.stop()).await)
}

/// Where the data lies; a temporary folder is removed when this is dropped.
enum DataDir {
    Temporary(tempfile::TempDir),
    Kept(PathBuf),
}

impl DataDir {
    fn choose(kept: Option<PathBuf>) -> Result<Self, Failure> {
        match kept {
            Some(path) => Ok(Self::Kept(path)),
            None => {
                let folder = tempfile::Builder::new().prefix("weft-dev-").tempdir();
                let folder = folder
                    .map_err(|error| Failure::new(format!("cannot make a temporary folder: {error}")))?;
                Ok(Self::Temporary(folder))
            }
        }
    }

    fn path(&self) -> &std::path::Path {
        match self {
            Self::Temporary(folder) => folder.path(),
            Self::Kept(path) => path,
        }
    }
}

/// The default ports, moved by an offset, or any free ones.
#[derive(Debug, Clone, Copy)]
struct Ports {
    offset: Option<u16>,
}

impl Ports {
    fn new(flags: &DevFlags) -> Self {
        Self { offset: (!flags.ephemeral).then(|| flags.port_offset.unwrap_or(0)) }
    }

    fn port(self, default: u16) -> Result<u16, Failure> {
        let Some(offset) = self.offset else { return Ok(0) };
        default.checked_add(offset).ok_or_else(|| {
            let largest = u16::MAX - ADMIN.port().max(OUTBOUND.port()).max(DEMO_PORT);
            Failure::new(format!("--port-offset {offset} is too large: at most {largest}"))
        })
    }

    fn address(self, default: u16) -> Result<SocketAddr, Failure> {
        Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port(default)?)))
    }
}

/// Everything that runs.
struct Mesh {
    server: RunningServer,
    proxy: RunningProxy,
    outbound: SocketAddr,
    demo: SocketAddr,
    control: tokio::task::JoinHandle<()>,
    instances: Instances,
}

impl Mesh {
    async fn start(flags: &DevFlags, data: &DataDir) -> Result<Self, Failure> {
        let ports = Ports::new(flags);
        let choose_others = |why: String| {
            Failure::new(format!(
                "{why}; is another weft running? choose other ports with --port-offset N or --ephemeral"
            ))
        };
        // Everything of ours is bound before anything starts, so that a taken port leaves nothing behind.
        let demo = ports.address(DEMO_PORT)?;
        let demo = TcpListener::bind(demo).await.map_err(|error| {
            let why = if error.kind() == std::io::ErrorKind::AddrInUse {
                "is taken".to_owned()
            } else {
                error.to_string()
            };
            choose_others(format!("{demo} {why}"))
        })?;
        let server = ServerConfig {
            grpc_port: ports.port(config::GRPC_PORT)?,
            http_port: ports.port(config::HTTP_PORT)?,
            dns_port: ports.port(config::DNS_PORT)?,
            peer_port: ports.port(config::PEER_PORT)?,
            gossip_port: ports.port(config::GOSSIP_PORT)?,
            ..ServerConfig::new("dev", data.path().join("server"))
        };
        let server = server::start(server).await.map_err(|error| choose_others(error.to_string()))?;
        let addrs = server.addrs();
        let sidecar = ProxyConfig {
            data_dir: Some(data.path().join("proxy")),
            join: vec![addrs.gossip.to_string()],
            servers: vec![addrs.grpc],
            outbound: Some(ports.address(OUTBOUND.port())?),
            admin: ports.address(ADMIN.port())?,
            gossip: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
            drain_timeout: DRAIN_TIMEOUT,
            ..ProxyConfig::new("dev-sidecar")
        };
        let proxy = match proxy::start(sidecar).await {
            Ok(proxy) => proxy,
            Err(error) => {
                let failure = choose_others(error.to_string());
                server.shutdown().await;
                return Err(failure);
            }
        };
        let outbound =
            proxy.addrs().outbound.ok_or_else(|| Failure::new("the sidecar has no outbound listener"))?;
        let instances = demo_services(server.addrs().http, outbound).await?;
        let instances: Instances = Arc::new(Mutex::new(instances));
        let demo_addr = demo.local_addr().map_err(|error| Failure::new(error.to_string()))?;
        let for_control = instances.clone();
        let control = tokio::spawn(serve(demo, move |request| control::answer(request, for_control.clone())));
        Ok(Self { server, proxy, outbound, demo: demo_addr, control, instances })
    }

    /// Sidecar first, so that what is in flight still finds its instances.
    async fn stop(self) {
        self.proxy.drain_and_shutdown().await;
        self.control.abort();
        for instance in self.instances.lock().await.iter_mut() {
            instance.stop().await;
        }
        self.server.shutdown().await;
    }

    fn introduction(&self, data: &DataDir) -> String {
        let (server, outbound, demo) = (self.server.addrs(), self.outbound, self.demo);
        let admin = self.proxy.addrs().admin;
        let kept = match data {
            DataDir::Temporary(_) => " (removed at the end)",
            DataDir::Kept(_) => "",
        };
        let addresses = output::pairs(&[
            ("  sidecar", format!("{outbound:21}  your calls, by Host or as HTTP_PROXY")),
            ("  admin", format!("{admin:21}  /ready, /clusters, /config_dump, /metrics")),
            ("  gRPC", format!("{:21}  etcd v3, weft.v1, xDS", server.grpc)),
            ("  HTTP", format!("{:21}  registry, /livez, /readyz, /metrics", server.http)),
            ("  DNS", format!("{:21}  UDP and TCP", server.dns)),
            ("  demo", format!("{demo:21}  stops and starts instances")),
            ("  data", format!("{}{kept}", data.path().display())),
        ]);
        // With the default port the commands need no flag.
        let endpoints = if server.grpc.port() == config::GRPC_PORT {
            String::new()
        } else {
            format!(" --endpoints {}", server.grpc)
        };
        let weft = invocation();
        let ready = serde_json::json!({
            "role": "dev", "outbound": outbound, "admin": admin, "demo": demo, "grpc": server.grpc,
            "http": server.http, "dns": server.dns, "peer": server.peer, "gossip": server.gossip,
        });
        format!(
            "weft dev: a server, a sidecar, hello (3 instances) and greeter, which calls hello

{addresses}
Five things to try, in another terminal:

  1. Call hello three times: the sidecar takes one instance after the other.
     curl http://{outbound}/ -H 'Host: hello'
  2. The same with the sidecar as HTTP proxy, and a service that calls another one.
     curl -x http://{outbound} http://hello/ ; curl -x http://{outbound} http://greeter/
  3. Stop an instance, see who is left, call on: nobody notices. Then start it again.
     curl -X POST http://{demo}/hello-2/stop ; {weft} endpoints hello{endpoints}
     curl -X POST http://{demo}/hello-2/start
  4. Change how calls are balanced while they run.
     {weft} lb hello random{endpoints}
  5. Run this in two terminals: the second waits until the first is done.
     {weft} lock deploy{endpoints} -- sh -c 'echo fence $WEFT_FENCE; sleep 5'

Ctrl-C stops all of it.
ready {ready}
"
        )
    }
}

/// `hello` three times and `greeter`, registered as any service would be.
async fn demo_services(registry: SocketAddr, sidecar: SocketAddr) -> Result<Vec<Instance>, Failure> {
    let mut services: Vec<_> = (1..=HELLOS).map(|n| (format!("hello-{n}"), Service::Hello)).collect();
    services.push(("greeter-1".to_owned(), Service::Greeter { sidecar }));
    let addresses = free_addresses(services.len()).await?;
    let started = tokio::time::Instant::now();
    let mut instances = Vec::new();
    for ((id, service), address) in services.into_iter().zip(addresses) {
        let mut instance = Instance::new(id, service, registry, address);
        while let Err(why) = instance.start().await {
            if started.elapsed() > READY_LIMIT {
                return Err(Failure::new(format!("the demo services do not start: {why}")));
            }
            // A new server takes a moment to elect itself.
            tokio::time::sleep(READY_RETRY).await;
        }
        instances.push(instance);
    }
    Ok(instances)
}

/// Free loopback addresses in ascending order. Round robin goes by address, so that people see
/// hello-1, hello-2, hello-3.
async fn free_addresses(count: usize) -> Result<Vec<SocketAddr>, Failure> {
    let no_port = |error: std::io::Error| Failure::new(format!("no free port on loopback: {error}"));
    let mut listeners = Vec::new();
    let mut addresses = Vec::new();
    for _ in 0..count {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(no_port)?;
        addresses.push(listener.local_addr().map_err(no_port)?);
        // Kept until all are known, so that none is given out twice.
        listeners.push(listener);
    }
    addresses.sort();
    Ok(addresses)
}

/// How this program was called, so that the printed commands work when pasted.
fn invocation() -> String {
    std::env::var("WEFT_COMMAND").ok().filter(|command| !command.is_empty()).unwrap_or_else(|| {
        let on_path = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join("weft").is_file()));
        match std::env::current_exe() {
            Ok(path) if !on_path => quoted(&path.to_string_lossy()),
            _ => "weft".to_owned(),
        }
    })
}

fn quoted(path: &str) -> String {
    let plain = path.chars().all(|letter| letter.is_alphanumeric() || "/._-+".contains(letter));
    if plain { path.to_owned() } else { format!("'{}'", path.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_moves_every_port_and_ephemeral_frees_them() {
        let moved = Ports::new(&DevFlags { port_offset: Some(100), ..DevFlags::default() });
        assert_eq!(moved.port(2379).unwrap(), 2479);
        let free = Ports::new(&DevFlags { ephemeral: true, ..DevFlags::default() });
        assert_eq!(free.port(2379).unwrap(), 0);
        let wide = Ports::new(&DevFlags { port_offset: Some(60_000), ..DevFlags::default() });
        assert!(wide.port(DEMO_PORT).unwrap_err().to_string().contains("50525"));
    }

    #[test]
    fn commands_can_be_pasted_from_any_folder() {
        assert_eq!(quoted("/opt/weft"), "/opt/weft");
        assert_eq!(quoted("/my tools/weft"), "'/my tools/weft'");
    }
}
