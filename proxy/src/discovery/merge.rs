//! One service out of two sources: what a server says of it and what gossip says of it. Pure.
//!
//! The registry is the servers' to know; instances with a sidecar are gossip's to know, which goes on when no server
//! lives. A server repeats what *it* hears by gossip, for those who are in no pool; where our own pool knows better, it
//! wins. So:
//!
//! | endpoint | is used if |
//! |---|---|
//! | from the registry | the server's last word has it |
//! | from our own gossip | the catalogue has it |
//! | from the server's gossip | our pool does not hold its owner for down, and either a server is connected, so that its word is fresh, or our pool has never heard of the owner |
//!
//! A service that gossip alone knows is used with default values.

use std::collections::{HashMap, HashSet};

use weft_gossip::{CatalogInstance, InstanceHealth, MemberState, MemberView};
use weft_xds_proto::resource::cluster::Cluster;
use weft_xds_proto::resource::endpoint::{Endpoint, EndpointHealth, EndpointSource, unique_by_address};
use weft_xds_proto::resource::labels;

use crate::config_snapshot::ClusterConfig;
use crate::xds::apply::Pair;

/// What our own pool knows of the members that advertise instances, by name.
#[derive(Debug, Default)]
pub struct Owners {
    up: HashMap<String, bool>,
}

impl Owners {
    /// From the pool's members. Of several members with one name (a restarted one, with a new id), one that is up
    /// is enough.
    pub fn new(members: &[MemberView]) -> Self {
        let mut up = HashMap::new();
        for m in members {
            *up.entry(m.member.name.clone()).or_insert(false) |= m.state != MemberState::Down;
        }
        Self { up }
    }
}

/// What gossip contributes.
#[derive(Debug, Clone, Copy)]
pub struct GossipInput<'a> {
    /// The service's instances.
    pub instances: &'a [CatalogInstance],
    /// The members.
    pub owners: &'a Owners,
}

/// The service as it is to be used; none if neither source knows it. `gossip` is none for a proxy that is in no pool.
pub fn merge(
    name: &str,
    pair: Option<&Pair>,
    gossip: Option<GossipInput<'_>>,
    server_connected: bool,
) -> Option<ClusterConfig> {
    let ours: Vec<Endpoint> = gossip.iter().flat_map(|g| g.instances).filter_map(endpoint).collect();
    if pair.is_none() && ours.is_empty() {
        return None;
    }
    let by_gossip = !ours.is_empty();
    let addresses: HashSet<_> = ours.iter().map(|e| e.address).collect();
    let servers = pair.iter().flat_map(|p| &p.assignment.endpoints).filter(|e| match gossip {
        Some(g) if e.source == EndpointSource::Gossip => {
            !addresses.contains(&e.address)
                && match g.owners.up.get(&e.owner) {
                    Some(true) => server_connected,
                    Some(false) => false,
                    None => true,
                }
        }
        _ => true,
    });
    let endpoints = unique_by_address(servers.cloned().chain(ours).collect());
    Some(match pair {
        Some(p) => ClusterConfig {
            cluster: (*p.cluster).clone(),
            endpoints,
            version: if by_gossip { format!("{} + gossip", p.version) } else { p.version.clone() },
        },
        None => ClusterConfig {
            cluster: Cluster {
                protocol: labels::protocol(endpoints.iter().map(|e| &e.metadata)),
                ..Cluster::with_defaults(name)
            },
            endpoints,
            version: "gossip".to_owned(),
        },
    })
}

/// None for an instance that says nothing usable of where it is.
fn endpoint(i: &CatalogInstance) -> Option<Endpoint> {
    let r = &i.record;
    (r.address.port() != 0 && !r.address.ip().is_unspecified()).then(|| Endpoint {
        address: r.address,
        instance_id: r.instance_id.clone(),
        health: match r.health {
            InstanceHealth::Passing => EndpointHealth::Healthy,
            InstanceHealth::Suspect => EndpointHealth::Degraded,
            InstanceHealth::Critical => EndpointHealth::Unhealthy,
        },
        weight: labels::weight(&r.metadata),
        source: EndpointSource::Gossip,
        owner: i.owner_name.clone(),
        metadata: r.metadata.clone(),
    })
}

#[cfg(test)]
mod tests;
