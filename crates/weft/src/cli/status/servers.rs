//! What each server of the group says of itself: only it knows its disk, its memory and how far it has applied.

use std::time::Duration;

use futures::future::join_all;
use serde::Serialize;
use weft_client::proto::weft as pb;

use super::super::Connection;
use crate::output;

/// How long a server may take to answer for itself; one that hangs must not keep the others from being shown.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug, Serialize)]
pub(super) struct Server {
    name: String,
    id: String,
    peer_address: String,
    grpc_address: String,
    role: String,
    voter: bool,
    /// Last log index that the leader knows it to hold; 0 when unknown.
    matched_index: u64,
    /// What it said; absent if it did not answer, or was not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    own: Option<Own>,
    /// Why it did not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    unanswered: Option<String>,
}

#[derive(Debug, Serialize)]
struct Own {
    term: u64,
    last_log_index: u64,
    commit_index: u64,
    applied_index: u64,
    /// Entries that are committed as far as any server knows and not applied here.
    lag: u64,
    wal_bytes: u64,
    data_bytes: u64,
    memory_bytes: u64,
    fsyncs: u64,
    fsync_slowest_us: u64,
    /// fine | full | stalled
    disk: String,
}

impl Own {
    fn new(status: &pb::StatusResponse, committed: u64) -> Self {
        Self {
            term: status.term,
            last_log_index: status.last_log_index,
            commit_index: status.commit_index,
            applied_index: status.applied_index,
            lag: committed.saturating_sub(status.applied_index),
            wal_bytes: status.wal_bytes,
            data_bytes: status.data_bytes,
            memory_bytes: status.memory_bytes,
            fsyncs: status.fsyncs,
            fsync_slowest_us: status.fsync_slowest_us,
            disk: status.disk.clone(),
        }
    }
}

/// Asks every server of the group that `answered` knows, all at once.
pub(super) async fn ask_all(connection: &Connection, answered: &pb::StatusResponse) -> Vec<Server> {
    let asked = answered.servers.iter().map(|server| async move {
        Some(if server.id == answered.id { Ok(answered.clone()) } else { ask(connection, server).await })
    });
    combine(&answered.servers, join_all(asked).await)
}

/// What the server that answered knows, without asking the others.
pub(super) fn only_answered(answered: &pb::StatusResponse) -> Vec<Server> {
    let own = |server: &pb::ServerStatus| (server.id == answered.id).then(|| Ok(answered.clone()));
    combine(&answered.servers, answered.servers.iter().map(own).collect())
}

async fn ask(connection: &Connection, server: &pb::ServerStatus) -> Result<pb::StatusResponse, String> {
    if server.grpc_address.is_empty() {
        return Err("its address is not known: gossip has not heard of it".to_owned());
    }
    let client = connection.client_at(&[&server.grpc_address]).map_err(|failure| failure.to_string())?;
    let mesh = client.mesh();
    let status = tokio::time::timeout(PATIENCE, mesh.status()).await;
    let status =
        status.map_err(|_| format!("no answer within {PATIENCE:?}"))?.map_err(|error| error.to_string())?;
    if status.id != server.id {
        return Err(format!("{} is another server: {}", server.grpc_address, status.name));
    }
    Ok(status)
}

pub(super) fn combine(
    servers: &[pb::ServerStatus],
    answers: Vec<Option<Result<pb::StatusResponse, String>>>,
) -> Vec<Server> {
    let committed = answers.iter().flatten().flatten().map(|status| status.commit_index).max().unwrap_or(0);
    let pairs = servers.iter().zip(answers);
    pairs
        .map(|(server, answer)| {
            let (own, unanswered) = match answer {
                Some(Ok(status)) => (Some(Own::new(&status, committed)), None),
                Some(Err(reason)) => (None, Some(reason)),
                None => (None, None),
            };
            Server {
                name: server.name.clone(),
                id: super::hex(server.id),
                peer_address: server.peer_address.clone(),
                grpc_address: server.grpc_address.clone(),
                role: server.role.clone(),
                voter: server.voter,
                matched_index: server.matched_index,
                own,
                unanswered,
            }
        })
        .collect()
}

/// The servers as a table; those that did not answer, and disks that are not well, in words below it.
pub(super) fn render(servers: &[Server]) -> String {
    let mut text = output::table(
        [
            "SERVER",
            "ROLE",
            "VOTER",
            "APPLIED",
            "LAG",
            "LOG",
            "DATA",
            "MEMORY",
            "SLOWEST FSYNC",
            "DISK",
            "ADDRESS",
            "ID",
        ],
        servers.iter().map(|server| {
            let own = |show: fn(&Own) -> String| server.own.as_ref().map_or_else(|| "?".to_owned(), show);
            [
                server.name.clone(),
                server.role.clone(),
                if server.voter { "yes" } else { "no" }.to_owned(),
                own(|own| own.applied_index.to_string()),
                own(|own| own.lag.to_string()),
                own(|own| mib(own.wal_bytes)),
                own(|own| mib(own.data_bytes)),
                own(|own| mib(own.memory_bytes)),
                own(|own| format!("{:.1} ms", own.fsync_slowest_us as f64 / 1000.0)),
                own(|own| own.disk.clone()),
                server.grpc_address.clone(),
                server.id.clone(),
            ]
        }),
        "no servers",
    );
    for server in servers {
        if let Some(reason) = &server.unanswered {
            text.push_str(&format!("{} did not answer: {reason}\n", server.name));
        }
        let disk = server.own.as_ref().map(|own| own.disk.as_str());
        if let Some(meaning) = disk.and_then(meaning) {
            text.push_str(&format!("{}: {meaning}\n", server.name));
        }
    }
    text
}

/// What a disk that is not fine means, and what to do.
fn meaning(disk: &str) -> Option<&'static str> {
    match disk {
        "full" => Some(
            "the disk of its log is full: as leader it refuses writes that need space; free some, or delete keys and compact",
        ),
        "stalled" => {
            Some("its log waits for space and confirms nothing: free space on its disk, it goes on by itself")
        }
        _ => None,
    }
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1024.0 * 1024.0))
}
