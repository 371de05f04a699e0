//! `/clusters`: endpoints as requests see them now.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft_core::config::format_duration;
use weft_xds_proto::resource::endpoint::EndpointSource;
use weft_xds_proto::resource::labels::Nearness;

use super::AdminState;
use crate::cluster::check::CheckStatus;
use crate::cluster::endpoint_set::EndpointView;
use crate::cluster::levels::Rank;
use crate::cluster::state::Cluster;
use crate::mesh_view::MeshState;

pub(super) fn text(state: &AdminState) -> String {
    let mut out = String::new();
    section(&mut out, "outbound", &state.outbound);
    if !state.config.services.is_empty() {
        section(&mut out, "inbound", &state.inbound);
        for local in state.local.statuses() {
            let error = local.error.map(|e| format!(" ({e})")).unwrap_or_default();
            // Writing to a string does not fail.
            let _ = writeln!(
                out,
                "local {} {} {}{error}",
                local.service.name,
                local.service.addr,
                local.health.as_str()
            );
        }
    }
    out
}

pub(super) fn json(state: &AdminState) -> Value {
    let local = |s: crate::health::LocalStatus| json!({ "service": s.service.name, "address": s.service.addr.to_string(), "health": s.health.as_str(), "error": s.error });
    json!({
        "outbound": all(&state.outbound).iter().map(|c| cluster_json(c)).collect::<Vec<_>>(),
        "inbound": all(&state.inbound).iter().map(|c| cluster_json(c)).collect::<Vec<_>>(),
        "local": state.local.statuses().into_iter().map(local).collect::<Vec<_>>(),
    })
}

fn all(mesh: &MeshState) -> Vec<Arc<Cluster>> {
    let mut all: Vec<_> = mesh.view().clusters.values().cloned().collect();
    all.sort_by(|a, b| a.name().cmp(b.name()));
    all
}

fn section(out: &mut String, direction: &str, mesh: &MeshState) {
    for cluster in all(mesh) {
        let counts = cluster.endpoints.counts();
        let config = &cluster.config;
        let policy = &config.cluster.lb_policy;
        // Writing to a string does not fail.
        let _ =
            writeln!(out, "{direction} {} {policy} ({counts}) version {}", cluster.name(), config.version);
        for view in cluster.endpoints.endpoints() {
            let row = Row::of(view);
            let _ = write!(
                out,
                "  {} {} active {} weight {} source {} age {} check {} failures {}",
                view.endpoint.address,
                view.status.as_str(),
                row.active,
                view.endpoint.weight,
                row.source,
                format_duration(row.age),
                row.check,
                row.failures,
            );
            if let Some((cause, left)) = &row.ejected {
                let _ = write!(out, " ejected {cause} for {}", format_duration(*left));
            }
            if let Some(error) = &row.check_error {
                let _ = write!(out, " check-error {error:?}");
            }
            let _ = writeln!(out, " id {}", view.endpoint.instance_id);
        }
    }
}

pub(crate) fn cluster_json(cluster: &Cluster) -> Value {
    let counts = cluster.endpoints.counts();
    let endpoint = |view: &EndpointView| {
        let row = Row::of(view);
        json!({
            "address": view.endpoint.address.to_string(),
            "instance_id": view.endpoint.instance_id,
            "status": view.status.as_str(),
            "active": row.active,
            "weight": view.endpoint.weight,
            "source": row.source,
            "owner": view.endpoint.owner,
            "age_secs": row.age.as_secs(),
            "check": row.check,
            "check_error": row.check_error,
            "consecutive_failures": row.failures,
            "ejected": row.ejected.as_ref().map(|(cause, left)| json!({ "cause": cause, "left_secs": left.as_secs_f64() })),
            "metadata": view.endpoint.metadata,
        })
    };
    let level = |(rank, share): &(Rank, u32)| {
        let near = match rank.nearness {
            Nearness::Zone => "zone",
            Nearness::Region => "region",
            Nearness::Elsewhere => "elsewhere",
        };
        let near = cluster.config.cluster.zone_aware.map(|_| near);
        let place = rank.place.as_ref().map(|p| json!({ "region": p.region, "zone": p.zone }));
        json!({ "priority": rank.priority, "near": near, "place": place, "share_permille": share })
    };
    let load = &cluster.shared.load;
    json!({
        "name": cluster.name(),
        "under_way": {
            "requests": load.requests(),
            "retries": load.retries(),
            "limited_connections": load.connections(),
            "pending": load.pending(),
        },
        "adaptive_limit": cluster.config.cluster.adaptive.map(|rule| cluster.shared.gradient.limit(rule)),
        "load_balancing": cluster.config.cluster.lb_policy.to_string(),
        "version": cluster.config.version,
        "zone_aware": cluster.config.cluster.zone_aware,
        "levels": cluster.endpoints.picker().shares().iter().map(level).collect::<Vec<_>>(),
        "panic_policy": cluster.config.cluster.panic.to_string(),
        "in_panic": counts.panic.is_some(),
        "total": counts.total,
        "ready": counts.usable,
        "ejected": counts.ejected,
        "failing_checks": counts.failing_checks,
        "unhealthy": counts.unhealthy,
        "endpoints": cluster.endpoints.endpoints().iter().map(endpoint).collect::<Vec<_>>(),
    })
}

/// What is remembered of an endpoint, copied out under its lock.
struct Row {
    active: u32,
    failures: u32,
    source: &'static str,
    age: Duration,
    check: &'static str,
    check_error: Option<String>,
    ejected: Option<(&'static str, Duration)>,
}

impl Row {
    fn of(view: &EndpointView) -> Self {
        let health = view.state.health.lock().clone();
        let now = Instant::now();
        let whole = |d: Duration| Duration::from_secs(d.as_secs());
        Self {
            active: view.state.active(),
            failures: view.state.failures.in_a_row(),
            source: match view.endpoint.source {
                EndpointSource::Registry => "registry",
                EndpointSource::Gossip => "gossip",
                EndpointSource::Static => "static",
            },
            age: whole(now.saturating_duration_since(view.state.since())),
            check: match health.check.status() {
                CheckStatus::Unknown => "none",
                CheckStatus::Passing => "passing",
                CheckStatus::Failing => "failing",
            },
            check_error: health.check.last_error().map(str::to_owned),
            ejected: health
                .ejection
                .current()
                .map(|(cause, until)| (cause.as_str(), whole(until.saturating_duration_since(now)))),
        }
    }
}
