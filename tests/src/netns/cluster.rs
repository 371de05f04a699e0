//! Servers that form one group, each on a host of its own, and the host that clients are on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use crate::mesh::join_token;
use crate::netns::host::Host;
use crate::netns::switch::Switch;
use crate::process::{Finished, WeftProcess, run};
use crate::wait::until;

/// What `weft server` listens on unless told otherwise.
const GRPC_PORT: u16 = 2379;
const GOSSIP_PORT: u16 = 7946;

/// How long a change of the group may take on a machine that does much else.
const GROUP_CHANGE_MAX: Duration = Duration::from_secs(30);

/// A server and its host.
#[derive(Debug)]
pub struct Node {
    name: String,
    data_dir: PathBuf,
    host: Host,
    join: Option<String>,
    process: Option<WeftProcess>,
}

/// Servers 0 to n-1 on hosts of these numbers, and the clients' host with number n.
pub struct Cluster {
    /// The servers.
    pub nodes: Vec<Node>,
    /// What joins them.
    pub switch: Switch,
    _clients: Host,
    _folder: tempfile::TempDir,
}

impl Cluster {
    /// A complete group of `count` servers.
    pub async fn start(count: usize, seed: u64) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (hosts, mut devices): (Vec<_>, Vec<_>) = (0..count).map(Host::new).unzip();
        let (clients, device) = Host::own(count);
        devices.push(device);
        let switch = Switch::start(devices, seed);
        let first = format!("{}:{GOSSIP_PORT}", hosts[0].address());
        let node = |(i, host): (usize, Host)| {
            let name = format!("s{}", i + 1);
            let join = (i > 0).then(|| first.clone());
            Node { data_dir: folder.path().join(&name), name, host, join, process: None }
        };
        let nodes = hosts.into_iter().enumerate().map(node).collect();
        let mut cluster = Self { nodes, switch, _clients: clients, _folder: folder };
        for node in &mut cluster.nodes {
            node.start().await;
        }
        cluster.wait_for_voters(count).await;
        cluster
    }

    /// `HOST:PORT` of every server.
    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(Node::endpoint).collect()
    }

    /// The number of clients' host on the switch.
    pub fn clients(&self) -> usize {
        self.nodes.len()
    }

    /// What server `i` says of the group; none if it does not answer soon.
    pub async fn status(&self, i: usize) -> Option<serde_json::Value> {
        let endpoint = self.nodes[i].endpoint();
        let args = ["status", "--local", "--output", "json", "--endpoints", endpoint.as_str()];
        let finished = tokio::time::timeout(Duration::from_secs(5), run(&args)).await.ok()?;
        serde_json::from_str(&finished.stdout).ok()
    }

    /// The number of the server that leads, as far as a running one knows.
    pub async fn leader(&self) -> Option<usize> {
        for i in (0..self.nodes.len()).filter(|i| self.nodes[*i].runs()) {
            let Some(status) = self.status(i).await else { continue };
            let leader = status["servers"].as_array()?.iter().find(|server| server["role"] == "leader");
            if let Some(name) = leader.and_then(|server| server["name"].as_str()) {
                return self.nodes.iter().position(|node| node.name == name);
            }
        }
        None
    }

    /// Asks a server to lead; what comes of it is said, and no more.
    pub async fn transfer(&self, to: usize) {
        let asked = self.ask(&["server", "transfer", &self.nodes[to].name], None).await;
        if asked.code != 0 {
            eprintln!("    refused: {}", asked.stderr.trim());
        }
    }

    /// Takes a server out of the group, whether it runs or not.
    pub async fn remove(&self, victim: usize) {
        until(&format!("{} is removed", self.nodes[victim].name), GROUP_CHANGE_MAX, || async {
            let id = self.id_of(victim).await?;
            let Some(id) = id else { return Ok(()) };
            let removed = self.ask(&["server", "remove", &id], Some(victim)).await;
            // An answer may be lost: whether it is still a member says the next look.
            Err(format!("{removed:?}"))
        })
        .await;
    }

    /// Starts a server that has lost its disk, as one that is new to the group.
    pub async fn join(&mut self, newcomer: usize) {
        let other = (newcomer + 1) % self.nodes.len();
        self.nodes[newcomer].join = Some(format!("{}:{GOSSIP_PORT}", self.nodes[other].host.address()));
        self.nodes[newcomer].start().await;
    }

    /// The id of the member of this name, as another server knows the group; none if it is no member.
    async fn id_of(&self, i: usize) -> Result<Option<String>, String> {
        let other = (0..self.nodes.len()).find(|other| *other != i && self.nodes[*other].runs());
        let status = self.status(other.ok_or("no other server runs")?).await.ok_or("no answer")?;
        let servers = status["servers"].as_array().ok_or("no servers")?;
        let member = servers.iter().find(|server| server["name"] == self.nodes[i].name.as_str());
        Ok(member.and_then(|member| member["id"].as_str()).map(str::to_owned))
    }

    /// Runs a client command against all servers, or all but one.
    async fn ask(&self, command: &[&str], but: Option<usize>) -> Finished {
        let endpoints = self.nodes.iter().enumerate().filter(|(i, _)| Some(*i) != but);
        let endpoints: Vec<_> = endpoints.map(|(_, node)| node.endpoint()).collect();
        run(&[command, &["--endpoints", &endpoints.join(",")]].concat()).await
    }

    /// Waits until every server counts `count` voters.
    pub async fn wait_for_voters(&self, count: usize) {
        for (i, node) in self.nodes.iter().enumerate() {
            until(&format!("{count} voters at {}", node.name), Duration::from_secs(60), || async {
                let status = self.status(i).await.ok_or("no answer")?;
                let servers = status["servers"].as_array().ok_or("no servers")?;
                let voters = servers.iter().filter(|server| server["voter"] == true).count();
                if voters == count { Ok(()) } else { Err(status.to_string()) }
            })
            .await;
        }
    }
}

impl Node {
    /// Starts (again) and waits for the ready line.
    pub async fn start(&mut self) {
        let mut args = vec!["server".to_owned(), "--name".to_owned(), self.name.clone()];
        args.extend(["--bind".to_owned(), self.host.address().to_string()]);
        args.extend(["--data-dir".to_owned(), self.data_dir.display().to_string()]);
        if let Some(join) = &self.join {
            args.extend(["--join".to_owned(), join.clone()]);
        }
        args.extend(["--join-token-file".to_owned(), join_token(&self.data_dir).display().to_string()]);
        self.process = Some(WeftProcess::start_under(&self.name, &self.host.prefix(), &args).await);
    }

    /// SIGTERM and the exit code.
    pub async fn stop(&mut self) -> i32 {
        self.process.take().expect("it runs").stop().await
    }

    /// SIGKILL.
    pub async fn kill(&mut self) {
        self.process.take().expect("it runs").kill().await;
    }

    /// Waits until it has ended by itself, as one does that is no longer a member.
    pub async fn has_ended(&mut self) {
        self.process.take().expect("it runs").wait(GROUP_CHANGE_MAX).await;
    }

    /// Nothing is left of its data. It must not run.
    pub fn lose_disk(&self) {
        assert!(self.process.is_none(), "{} runs", self.name);
        std::fs::remove_dir_all(&self.data_dir).expect("the folder can be removed");
    }

    /// SIGSTOP.
    pub fn pause(&self) {
        self.process().signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.process().signal(Signal::CONT);
    }

    /// Whether it was started and not killed.
    pub fn runs(&self) -> bool {
        self.process.is_some()
    }

    /// Takes its network device down, or up again.
    pub fn set_link(&self, up: bool) {
        self.host.set_link(up);
    }

    /// Its gRPC port, `HOST:PORT`.
    pub fn endpoint(&self) -> String {
        format!("{}:{GRPC_PORT}", self.host.address())
    }

    /// Label.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Data folder.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The process.
    pub fn process(&self) -> &WeftProcess {
        self.process.as_ref().expect("it runs")
    }
}
