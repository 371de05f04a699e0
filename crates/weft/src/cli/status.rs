//! `weft status`.

mod servers;

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use weft_client::proto::weft as pb;

use super::{Connection, Output};
use crate::failure::Failure;
use crate::output::{self, Format};
use servers::Server;

/// Show the control plane: leader, revisions, how each server does and, with --proxies, what proxies run
///
/// Every server is asked for itself; one that does not answer is shown with the reason.
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Also show each proxy connected to the asked server, and what it has accepted or rejected
    #[arg(long)]
    proxies: bool,
    /// Ask one server only, for what it knows of the others: at once, also while some cannot be reached
    #[arg(long)]
    local: bool,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Report {
    cluster_id: String,
    /// The server that answered.
    name: String,
    id: String,
    /// Name of the leader, as far as known; empty if there is none.
    leader: String,
    leader_id: String,
    term: u64,
    revision: i64,
    compact_revision: i64,
    last_log_index: u64,
    commit_index: u64,
    applied_index: u64,
    keys: u64,
    leases: u64,
    wal_bytes: u64,
    members_alive: u64,
    connected_proxies: u64,
    version: String,
    servers: Vec<Server>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxies: Option<Vec<Proxy>>,
}

#[derive(Debug, Serialize)]
struct Proxy {
    node_id: String,
    address: String,
    resources: Vec<Resource>,
}

#[derive(Debug, Serialize)]
struct Resource {
    /// Last part of the type URL, such as `Cluster`.
    kind: String,
    name: String,
    version_sent: String,
    version_acked: String,
    error: String,
}

fn hex(id: u64) -> String {
    format!("{id:016x}")
}

impl Report {
    fn new(status: pb::StatusResponse, servers: Vec<Server>, proxies: Option<Vec<pb::Proxy>>) -> Self {
        let leader = status.servers.iter().find(|server| server.id == status.leader_id);
        Self {
            leader: leader.map(|server| server.name.clone()).unwrap_or_default(),
            leader_id: if status.leader_id == 0 { String::new() } else { hex(status.leader_id) },
            cluster_id: status.cluster_id,
            name: status.name,
            id: hex(status.id),
            term: status.term,
            revision: status.revision,
            compact_revision: status.compact_revision,
            last_log_index: status.last_log_index,
            commit_index: status.commit_index,
            applied_index: status.applied_index,
            keys: status.keys,
            leases: status.leases,
            wal_bytes: status.wal_bytes,
            members_alive: status.members_alive,
            connected_proxies: status.connected_proxies,
            version: status.version,
            servers,
            proxies: proxies.map(|proxies| proxies.into_iter().map(Proxy::from).collect()),
        }
    }
}

impl From<pb::Proxy> for Proxy {
    fn from(proxy: pb::Proxy) -> Self {
        let resources = proxy.resources.into_iter().map(|resource| Resource {
            kind: resource.type_url.rsplit('.').next().unwrap_or_default().to_owned(),
            name: resource.name,
            version_sent: resource.version_sent,
            version_acked: resource.version_acked,
            error: resource.error,
        });
        Self { node_id: proxy.node_id, address: proxy.address, resources: resources.collect() }
    }
}

impl Status {
    pub(crate) async fn run(self) -> Result<ExitCode, Failure> {
        let mesh = self.connection.client()?.mesh();
        let status = mesh.status().await?;
        let proxies = if self.proxies { Some(mesh.proxies().await?) } else { None };
        let servers = match self.local {
            true => servers::only_answered(&status),
            false => servers::ask_all(&self.connection, &status).await,
        };
        let report = Report::new(status, servers, proxies);
        output::print(match self.output.output {
            Format::Json => output::json(&report),
            Format::Table => render(&report),
        });
        Ok(ExitCode::SUCCESS)
    }
}

fn render(report: &Report) -> String {
    let leader = match (report.leader.as_str(), report.leader_id.as_str()) {
        ("", "") => "none: writes wait until a majority of the servers is up".to_owned(),
        ("", id) => id.to_owned(),
        (name, _) => name.to_owned(),
    };
    let mut text = output::pairs(&[
        ("cluster", report.cluster_id.clone()),
        ("answered by", format!("{} (version {})", report.name, report.version)),
        ("leader", format!("{leader} (term {})", report.term)),
        ("revision", format!("{} (compacted up to {})", report.revision, report.compact_revision)),
        (
            "log",
            format!(
                "last {}, committed {}, applied {}; {} bytes on disk",
                report.last_log_index, report.commit_index, report.applied_index, report.wal_bytes
            ),
        ),
        ("store", format!("{} keys, {} leases", report.keys, report.leases)),
        (
            "mesh",
            format!("{} members alive, {} proxies connected", report.members_alive, report.connected_proxies),
        ),
    ]);
    text.push('\n');
    text.push_str(&servers::render(&report.servers));
    let Some(proxies) = &report.proxies else { return text };
    text.push('\n');
    text.push_str(&output::table(
        ["PROXY", "ADDRESS", "RESOURCE", "SENT", "ACKED", "REJECTED BECAUSE"],
        proxies.iter().flat_map(|proxy| {
            proxy.resources.iter().map(|resource| {
                [
                    proxy.node_id.clone(),
                    proxy.address.clone(),
                    format!("{} {}", resource.kind, resource.name),
                    resource.version_sent.clone(),
                    resource.version_acked.clone(),
                    resource.error.clone(),
                ]
            })
        }),
        "no proxy has asked this server for anything",
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> pb::StatusResponse {
        let server = pb::ServerStatus {
            name: "s1".to_owned(),
            id: 0xa,
            peer_address: "127.0.0.1:2380".to_owned(),
            role: "leader".to_owned(),
            voter: true,
            matched_index: 7,
            grpc_address: "127.0.0.1:2379".to_owned(),
        };
        let other = pb::ServerStatus {
            name: "s2".to_owned(),
            id: 0xb,
            role: "follower".to_owned(),
            ..server.clone()
        };
        pb::StatusResponse {
            cluster_id: "c".to_owned(),
            name: "s1".to_owned(),
            id: 0xa,
            leader_id: 0xa,
            servers: vec![server, other],
            commit_index: 9,
            applied_index: 9,
            memory_bytes: 3 << 20,
            fsync_slowest_us: 1500,
            disk: "fine".to_owned(),
            ..Default::default()
        }
    }

    fn report(status: pb::StatusResponse, other: Result<pb::StatusResponse, &str>) -> Report {
        let answers = vec![Some(Ok(status.clone())), Some(other.map_err(str::to_owned))];
        let servers = servers::combine(&status.servers, answers);
        Report::new(status, servers, None)
    }

    #[test]
    fn json_names_the_leader_and_lists_servers() {
        let behind = pb::StatusResponse { applied_index: 5, disk: "full".to_owned(), ..status() };
        let json = serde_json::to_value(report(status(), Ok(behind))).unwrap();
        assert_eq!(json["leader"], "s1");
        let first = &json["servers"][0];
        assert_eq!(
            (&first["name"], &first["id"], &first["voter"]),
            (&"s1".into(), &"000000000000000a".into(), &true.into())
        );
        assert_eq!((&first["matched_index"], &first["own"]["memory_bytes"]), (&7.into(), &(3 << 20).into()));
        assert_eq!((&first["own"]["lag"], &json["servers"][1]["own"]["lag"]), (&0.into(), &4.into()));
        assert_eq!(json["servers"][1]["own"]["disk"], "full");
        let silent = serde_json::to_value(report(status(), Err("connection refused"))).unwrap();
        assert_eq!(silent["servers"][1]["unanswered"], "connection refused");
        assert!(silent["servers"][1].get("own").is_none(), "nothing is made up: {silent}");
        assert!(json.get("proxies").is_none(), "only when asked for");
    }

    #[test]
    fn a_group_without_a_leader_says_what_that_means() {
        let text =
            render(&report(pb::StatusResponse { leader_id: 0, ..status() }, Err("connection refused")));
        assert!(text.contains("none: writes wait"), "{text}");
        assert!(text.contains("s2 did not answer: connection refused"), "{text}");
    }

    #[test]
    fn of_one_server_alone_the_others_are_shown_as_it_knows_them() {
        let servers = servers::only_answered(&status());
        let json = serde_json::to_value(Report::new(status(), servers, None)).unwrap();
        assert_eq!(json["servers"][0]["own"]["disk"], "fine");
        assert_eq!(json["servers"][1]["role"], "follower");
        assert!(
            json["servers"][1].get("own").is_none() && json["servers"][1].get("unanswered").is_none(),
            "{json}"
        );
    }

    #[test]
    fn a_disk_that_is_full_is_said_of_its_server_with_what_to_do() {
        let full = pb::StatusResponse { disk: "full".to_owned(), ..status() };
        let stalled = pb::StatusResponse { disk: "stalled".to_owned(), ..status() };
        let text = render(&report(full, Ok(stalled)));
        assert!(text.contains("s1: the disk of its log is full") && text.contains("free some"), "{text}");
        assert!(text.contains("s2: its log waits for space"), "{text}");
        assert!(text.contains("1.5 ms") && text.contains("3.0 MiB"), "{text}");
    }

    #[test]
    fn a_rejected_resource_is_shown_with_its_reason() {
        let resource = pb::ProxyResource {
            type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned(),
            name: "orders".to_owned(),
            error: "connect_timeout is negative".to_owned(),
            ..Default::default()
        };
        let proxy = pb::Proxy { node_id: "p1".to_owned(), resources: vec![resource], ..Default::default() };
        let text = render(&Report::new(status(), Vec::new(), Some(vec![proxy])));
        assert!(text.contains("Cluster orders") && text.contains("connect_timeout is negative"), "{text}");
    }
}
