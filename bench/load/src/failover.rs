//! From the death of a leader to the next acknowledged write.

use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use weft_xds_proto::etcdserverpb::{
    PutRequest, StatusRequest, kv_client::KvClient, maintenance_client::MaintenanceClient,
};

use crate::{
    Target,
    connect::{self, Connection},
};

/// A new put starts this often. A server without a leader may never answer one, so none is waited for.
const PROBE_EVERY: Duration = Duration::from_millis(10);

const GIVE_UP: Duration = Duration::from_secs(30);

/// Kills the leader's process and prints the time until a put is acknowledged by one of the others.
pub async fn run(target: &Target, kill: u32) -> anyhow::Result<()> {
    let dead = target.pids.iter().position(|pid| *pid == kill).context("--kill is not one of --pids")?;
    let mut others = Vec::new();
    for (number, endpoint) in target.endpoints.iter().enumerate() {
        if number != dead {
            others.push(connect::one(endpoint).await?);
        }
    }
    // The probes work before the leader dies.
    for channel in &others {
        put(channel.clone()).await?;
    }
    let status = std::process::Command::new("kill").args(["-KILL", &kill.to_string()]).status()?;
    anyhow::ensure!(status.success(), "cannot kill process {kill}");
    let killed = Instant::now();
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let mut probe = tokio::time::interval(PROBE_EVERY);
    let mut number = 0;
    loop {
        tokio::select! {
            _ = probe.tick() => {
                anyhow::ensure!(killed.elapsed() < GIVE_UP, "no write was acknowledged within {GIVE_UP:?}");
                let (channel, tell) = (others[number % others.len()].clone(), tell.clone());
                number += 1;
                tokio::spawn(async move {
                    if put(channel).await.is_ok() {
                        let _ = tell.try_send(Instant::now());
                    }
                });
            }
            Some(at) = told.recv() => {
                println!("failover_ms {}", at.duration_since(killed).as_millis());
                return Ok(());
            }
        }
    }
}

async fn put(channel: Connection) -> anyhow::Result<()> {
    let (key, value) = (Bytes::from_static(b"failover"), Bytes::from_static(b"x"));
    KvClient::new(channel).put(PutRequest { key, value, ..Default::default() }).await?;
    Ok(())
}

/// Prints the place of the leader in the list of endpoints.
pub async fn print_leader(target: &Target) -> anyhow::Result<()> {
    for (number, endpoint) in target.endpoints.iter().enumerate() {
        let mut client = MaintenanceClient::new(connect::one(endpoint).await?);
        let status = client.status(StatusRequest {}).await?.into_inner();
        if status.header.context("a status without a header")?.member_id == status.leader {
            println!("{number}");
            return Ok(());
        }
    }
    anyhow::bail!("none of {:?} leads", target.endpoints)
}
