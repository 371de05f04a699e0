//! Servers and proxies that find each other, and what tests ask of them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{Method, StatusCode};
use tempfile::TempDir;

use crate::http_client;
use crate::process::{Finished, WeftProcess, run};
use crate::wait::until;

/// A control-plane server on free ports that keeps its addresses when it is started again.
pub struct Server {
    name: String,
    data_dir: PathBuf,
    addrs: Option<ServerAddrs>,
    join: Vec<SocketAddr>,
    process: Option<WeftProcess>,
}

#[derive(Clone, Copy)]
struct ServerAddrs {
    grpc: SocketAddr,
    http: SocketAddr,
    dns: SocketAddr,
    peer: SocketAddr,
    gossip: SocketAddr,
}

impl Server {
    /// Starts (again) and waits for the ready line.
    pub async fn start(&mut self) {
        let port = |pick: fn(&ServerAddrs) -> SocketAddr| {
            self.addrs.as_ref().map_or(0, |a| pick(a).port()).to_string()
        };
        let mut args = strings(&["server", "--name", &self.name, "--bind", "127.0.0.1"]);
        args.extend(["--data-dir".to_owned(), self.data_dir.display().to_string()]);
        args.extend(["--grpc-port".to_owned(), port(|a| a.grpc)]);
        args.extend(["--http-port".to_owned(), port(|a| a.http)]);
        args.extend(["--dns-port".to_owned(), port(|a| a.dns)]);
        args.extend(["--peer-port".to_owned(), port(|a| a.peer)]);
        args.extend(["--gossip-port".to_owned(), port(|a| a.gossip)]);
        for addr in &self.join {
            args.extend(["--join".to_owned(), addr.to_string()]);
        }
        args.extend(["--join-token-file".to_owned(), join_token(&self.data_dir).display().to_string()]);
        let process = WeftProcess::start(&self.name, &args).await;
        self.addrs = Some(ServerAddrs {
            grpc: process.addr("grpc"),
            http: process.addr("http"),
            dns: process.addr("dns"),
            peer: process.addr("peer"),
            gossip: process.addr("gossip"),
        });
        self.process = Some(process);
    }

    /// SIGKILL.
    pub async fn kill(&mut self) {
        self.process.take().expect("it runs").kill().await;
    }

    /// SIGTERM and the exit code.
    pub async fn stop(&mut self) -> i32 {
        self.process.take().expect("it runs").stop().await
    }

    /// Whether the process was started and not stopped.
    pub fn runs(&self) -> bool {
        self.process.is_some()
    }

    /// The process.
    pub fn process(&self) -> &WeftProcess {
        self.process.as_ref().expect("it runs")
    }

    /// Label.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Data folder.
    pub fn data_dir(&self) -> &PathBuf {
        &self.data_dir
    }

    /// gRPC: etcd, weft.v1, xDS.
    pub fn grpc(&self) -> SocketAddr {
        self.addrs.expect("it was started").grpc
    }

    /// HTTP: registry API, probes, metrics.
    pub fn http(&self) -> SocketAddr {
        self.addrs.expect("it was started").http
    }

    /// DNS.
    pub fn dns(&self) -> SocketAddr {
        self.addrs.expect("it was started").dns
    }

    /// Raft peers.
    pub fn peer(&self) -> SocketAddr {
        self.addrs.expect("it was started").peer
    }

    /// Gossip.
    pub fn gossip(&self) -> SocketAddr {
        self.addrs.expect("it was started").gossip
    }
}

/// Servers and proxies of one test. Dropping it kills all of them.
pub struct Mesh {
    dir: TempDir,
    /// The servers, in order of their start.
    pub servers: Vec<Server>,
}

impl Mesh {
    /// A group of `count` servers that is complete: every one is a voter and ready.
    pub async fn with_servers(count: usize) -> Self {
        let mut mesh = Self { dir: tempfile::tempdir().expect("a temporary folder"), servers: Vec::new() };
        for i in 1..=count {
            let mut server = Server {
                name: format!("s{i}"),
                data_dir: mesh.dir.path().join(format!("s{i}")),
                addrs: None,
                join: mesh.servers.first().map(Server::gossip).into_iter().collect(),
                process: None,
            };
            server.start().await;
            mesh.servers.push(server);
        }
        mesh.wait_for_voters(count).await;
        mesh
    }

    /// No servers yet.
    pub fn empty() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary folder"), servers: Vec::new() }
    }

    /// Starts one more server, with the folder of its name as data folder. It joins the first one, if there is one.
    pub async fn add_server(&mut self, name: &str) {
        let mut server = Server {
            name: name.to_owned(),
            data_dir: self.folder(name),
            addrs: None,
            join: self.servers.first().map(Server::gossip).into_iter().collect(),
            process: None,
        };
        server.start().await;
        self.servers.push(server);
    }

    /// Waits until a running server counts `count` voters and all running servers are ready.
    pub async fn wait_for_voters(&self, count: usize) {
        for server in self.servers.iter().filter(|s| s.runs()) {
            until(&format!("{} is ready", server.name), Duration::from_secs(40), || async {
                match http_client::get(server.http(), "server", "/readyz").await {
                    Ok(answer) if answer.status == StatusCode::OK => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await;
        }
        let server = self.servers.iter().find(|s| s.runs()).expect("one server runs");
        until(&format!("{count} voters"), Duration::from_secs(40), || async {
            let status = self.cli(server, &["status", "--local", "--output", "json"]).await;
            let json: serde_json::Value =
                serde_json::from_str(&status.stdout).map_err(|e| format!("{e}: {status:?}"))?;
            let voters = json["servers"]
                .as_array()
                .map_or(0, |all| all.iter().filter(|s| s["voter"] == serde_json::Value::Bool(true)).count());
            if voters == count { Ok(()) } else { Err(status.stdout) }
        })
        .await;
    }

    /// Index of the server that leads.
    pub async fn leader(&self) -> usize {
        until("a leader", Duration::from_secs(30), || async {
            let server = self.servers.iter().find(|s| s.runs()).expect("one server runs");
            let status = self.cli(server, &["status", "--local", "--output", "json"]).await;
            let json: serde_json::Value =
                serde_json::from_str(&status.stdout).map_err(|e| format!("{e}: {status:?}"))?;
            let leader =
                json["servers"].as_array().and_then(|all| all.iter().find(|s| s["role"] == "leader"));
            let name = leader.and_then(|s| s["name"].as_str()).ok_or_else(|| status.stdout.clone())?;
            let found = self.servers.iter().position(|s| s.name == name && s.runs());
            found.ok_or_else(|| format!("{name} leads, and does not run"))
        })
        .await
    }

    /// Runs a client command against one server.
    pub async fn cli(&self, server: &Server, args: &[&str]) -> Finished {
        let endpoint = server.grpc().to_string();
        let mut all = vec!["--endpoints", endpoint.as_str()];
        all.splice(0..0, args.iter().take_while(|a| **a != "--").copied());
        all.extend(args.iter().skip_while(|a| **a != "--"));
        run(&all).await
    }

    /// A folder for something of this test.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts a proxy on free ports. `extra` are further arguments, such as `--service`.
    pub async fn proxy(&self, name: &str, join: &[SocketAddr], extra: &[&str]) -> WeftProcess {
        let mut args =
            strings(&["proxy", "--name", name, "--outbound", "127.0.0.1:0", "--inbound", "127.0.0.1:0"]);
        args.extend(strings(&["--admin", "127.0.0.1:0", "--gossip-port", "0", "--data-dir"]));
        args.push(self.folder(name).display().to_string());
        for addr in join {
            args.extend(["--join".to_owned(), addr.to_string()]);
        }
        args.extend(strings(extra));
        WeftProcess::start(name, &args).await
    }

    /// Registers an instance with a server over HTTP.
    pub async fn register(
        &self,
        server: &Server,
        service: &str,
        id: &str,
        addr: SocketAddr,
        ttl: &str,
    ) -> http_client::Answer {
        let body = serde_json::json!({
            "service": service, "instance_id": id, "host": addr.ip().to_string(), "port": addr.port(), "ttl": ttl,
        });
        http_client::request(server.http(), "server", Method::POST, "/register", &body.to_string())
            .await
            .expect("the server answers")
    }
}

/// The token of all servers whose data folders are in the folder of this one.
pub fn join_token(data_dir: &Path) -> PathBuf {
    let path = data_dir.with_file_name("join-token");
    if !path.exists() {
        weft_core::fsio::write_atomic_private(&path, "t".repeat(32).as_bytes()).expect("a token");
    }
    path
}

/// Owned copies.
pub fn strings(all: &[&str]) -> Vec<String> {
    all.iter().map(|s| (*s).to_owned()).collect()
}
