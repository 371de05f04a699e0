//! `/config_dump` and `/members`.

use std::fmt::Write;
use std::time::Instant;

use serde_json::{Value, json};
use weft_core::config::format_duration;
use weft_gossip::{MemberState, Role};

use super::{AdminState, optional};

pub(super) fn json(state: &AdminState) -> Value {
    let view = state.outbound.view();
    let mut clusters: Vec<_> = view.clusters.values().map(|c| c.config.clone()).collect();
    clusters.sort_by(|a, b| a.cluster.name.cmp(&b.cluster.name));
    let clusters: Vec<_> = clusters
        .iter()
        .map(|c| json!({ "version": c.version, "cluster": c.cluster, "endpoints": c.endpoints }))
        .collect();
    let config = &state.config;
    let addrs = &state.addrs;
    let plane = &view.control_plane;
    let services: Vec<_> = config
        .services
        .iter()
        .map(|s| json!({ "name": s.name, "address": s.addr.to_string(), "health_path": s.health_path }))
        .collect();
    let mut routes: Vec<_> = view.services.values().map(|r| &r.config).collect();
    routes.sort_by(|a, b| a.name.cmp(&b.name));
    json!({
        "proxy": {
            "name": config.name,
            "node_id": state.node_id.to_string(),
            "version": env!("CARGO_PKG_VERSION"),
            "outbound": optional(addrs.outbound),
            "inbound": optional(addrs.inbound),
            "inbound_tls": config.inbound_tls.as_ref().map(|tls| {
                let pairs = tls.certificates.iter();
                pairs.map(|pair| json!({ "cert": pair.cert, "key": pair.key })).collect::<Vec<_>>()
            }),
            "admin": addrs.admin.to_string(),
            "gossip": optional(addrs.gossip),
            "listeners": addrs.listeners.iter().map(|(n, a)| json!({ "name": n, "address": a.to_string() })).collect::<Vec<_>>(),
            "upstreams": addrs.upstreams,
            "inbound_captures": addrs.inbound_captures, "inbound_tcp": addrs.inbound_tcp,
            "workers": config.workers,
            "drain_timeout": format_duration(config.drain_timeout),
            "data_dir": config.data_dir,
            "join": config.join,
            "servers": config.servers.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "services": services,
        },
        "static": config.static_config.as_deref(),
        "control_plane": {
            "server": optional(plane.server),
            "connected_secs": plane.connected_since.map(|t| t.elapsed().as_secs()),
            "last_error": plane.last_error,
            "servers_known": plane.servers_known,
        },
        "snapshot": {
            "version": view.version,
            "clusters": clusters,
            "absent": view.absent,
            "routes": routes,
            "hosts": view.hosts.config,
        },
    })
}

pub(super) fn members(state: &AdminState) -> Value {
    let Some(gossip) = &state.gossip else { return json!([]) };
    let members = gossip.members();
    let all: Vec<_> = members
        .iter()
        .map(|m| {
            json!({
                "id": m.member.id.to_string(),
                "name": m.member.name,
                "role": role(&m.member.role),
                "address": m.member.gossip_addr.to_string(),
                "state": word(m.state),
                "age_secs": Instant::now().saturating_duration_since(m.since).as_secs(),
            })
        })
        .collect();
    json!(all)
}

pub(super) fn members_text(state: &AdminState) -> String {
    let Some(gossip) = &state.gossip else { return "no gossip: this proxy is in no pool\n".to_owned() };
    let mut out = String::new();
    for m in gossip.members().iter() {
        let member = &m.member;
        // Writing to a string does not fail.
        let _ = writeln!(
            out,
            "{} {} {} {} {}",
            member.id,
            member.name,
            role(&member.role),
            member.gossip_addr,
            word(m.state)
        );
    }
    out
}

fn role(role: &Role) -> &'static str {
    match role {
        Role::Server { .. } => "server",
        Role::Proxy => "proxy",
    }
}

fn word(state: MemberState) -> &'static str {
    match state {
        MemberState::Alive => "alive",
        MemberState::Suspect => "suspect",
        MemberState::Down => "down",
    }
}
