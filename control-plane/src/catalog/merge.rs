//! The pure merge of what the registry and gossip claim about one service.
//!
//! Every record has one owner (P27): a registry record belongs to its lease, a gossip record to the member
//! that advertises it. Two claims to one address are one instance, shown once:
//!
//! - registry and gossip: gossip's claim wins, since the sidecar beside the instance knows its health at
//!   first hand; the registry's labels and health path fill in what gossip does not say;
//! - gossip and gossip (a member that came back under a new identity): the newer version wins;
//! - registry and registry (registered again under another id before the first expired): both stay
//!   visible as registrations, and all but the newest are marked [`Claim::duplicate`], so that traffic sees
//!   the address once.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use weft_core::id::NodeId;
use weft_gossip::instance::InstanceHealth;
use weft_state::command::LeaseId;

/// Who says that an instance exists, and therefore who can withdraw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Registered through an API; lives as long as its lease.
    Registry {
        /// The lease that heartbeats renew.
        lease: LeaseId,
    },
    /// Advertised by a member of the gossip pool.
    Gossip {
        /// The member.
        member: NodeId,
        /// Its label.
        member_name: String,
    },
}

impl Source {
    /// `registry` or `gossip`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Registry { .. } => "registry",
            Self::Gossip { .. } => "gossip",
        }
    }

    /// Who owns the record: the registry lease in hex, or the member's name.
    pub fn owner(&self) -> String {
        match self {
            Self::Registry { lease } => format!("{lease:x}"),
            Self::Gossip { member_name, .. } => member_name.clone(),
        }
    }
}

/// One source's word on one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Unique within the service, as its source says it.
    pub instance_id: String,
    /// IP literal or host name.
    pub host: String,
    /// 1 to 65535.
    pub port: u16,
    /// As the source sees it. A registry record that has not expired is passing.
    pub health: InstanceHealth,
    /// The owner.
    pub source: Source,
    /// Free-form labels.
    pub metadata: BTreeMap<String, String>,
    /// Path for active checks; none: TCP connect.
    pub health_path: Option<String>,
    /// Orders claims of one kind to one address: larger is newer. `(incarnation, seq)` for gossip,
    /// `(mod_revision, 0)` for the registry.
    pub version: (u64, u64),
    /// When this server first saw the record in this version.
    pub since: Instant,
    /// A newer registration claims the same address.
    pub duplicate: bool,
}

impl Claim {
    /// The address, if the host is an IP literal.
    pub fn address(&self) -> Option<SocketAddr> {
        self.host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, self.port))
    }
}

/// Merges the claims to one service. The answer is sorted by instance id, then host and port, and does not
/// depend on the order of the arguments.
pub fn merge(registry: Vec<Claim>, gossip: Vec<Claim>) -> Vec<Claim> {
    let mut merged: HashMap<(String, u16), Claim> = HashMap::with_capacity(gossip.len());
    for claim in gossip {
        match merged.entry((claim.host.clone(), claim.port)) {
            std::collections::hash_map::Entry::Occupied(mut held) => {
                if is_newer(&claim, held.get()) {
                    held.insert(claim);
                }
            }
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(claim);
            }
        }
    }

    let mut newest: HashMap<(String, u16), (u64, String)> = HashMap::with_capacity(registry.len());
    for claim in &registry {
        let rank = (claim.version.0, claim.instance_id.clone());
        newest
            .entry((claim.host.clone(), claim.port))
            .and_modify(|held| *held = rank.clone().max(held.clone()))
            .or_insert(rank);
    }

    let mut all = Vec::with_capacity(merged.len() + registry.len());
    for mut claim in registry {
        let place = (claim.host.clone(), claim.port);
        let is_newest = newest[&place] == (claim.version.0, claim.instance_id.clone());
        match merged.get_mut(&place) {
            Some(by_gossip) if is_newest => fill_in(by_gossip, claim),
            Some(_) => {}
            None => {
                claim.duplicate = !is_newest;
                all.push(claim);
            }
        }
    }
    all.extend(merged.into_values());
    all.sort_by(|a, b| {
        (&a.instance_id, &a.host, a.port, a.source.as_str()).cmp(&(
            &b.instance_id,
            &b.host,
            b.port,
            b.source.as_str(),
        ))
    });
    all
}

/// Newer version first; the owner's identity decides between equal ones, so that every server decides alike.
fn is_newer(a: &Claim, b: &Claim) -> bool {
    let rank = |c: &Claim| {
        let member = match &c.source {
            Source::Gossip { member, .. } => member.0,
            Source::Registry { .. } => 0,
        };
        (c.version, member)
    };
    rank(a) > rank(b)
}

/// Gossip's word stands; what it leaves open is taken from the registration of the same address.
fn fill_in(by_gossip: &mut Claim, registered: Claim) {
    for (key, value) in registered.metadata {
        by_gossip.metadata.entry(key).or_insert(value);
    }
    if by_gossip.health_path.is_none() {
        by_gossip.health_path = registered.health_path;
    }
}

#[cfg(test)]
mod tests;
