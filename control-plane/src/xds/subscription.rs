//! What one stream has asked for, was sent, and has accepted. Pure: requests and snapshots in, responses out.
//!
//! ```text
//!  subscribe ─▶ covered ─sent─▶ sent ──ACK──▶ acked
//!                 ▲              │ ╲─NACK─▶ rejected: not sent again until its content changes
//!                 └── content changes, or the name is subscribed again ──┘
//! ```
//!
//! The rules are those of the incremental xDS protocol; the tests name them. `delta` and `sotw` are its two dialects
//! over the same state.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use weft_xds_proto::envoy_types::pb::envoy::config::core::v3::Node;
use weft_xds_proto::envoy_types::pb::google::rpc::Status;
use weft_xds_proto::nack;
use weft_xds_proto::nonce::Nonces;
use weft_xds_proto::resource::RESOURCE_NAME_BYTES_MAX;
use weft_xds_proto::type_url::ResourceType;

use super::config_snapshot::{ConfigSnapshot, TypeSnapshot};

mod delta;
mod sotw;

/// Names that one stream may subscribe to, per type. Far above what one proxy calls; a proxy that forwards random
/// host names stays below it by its own limit. Further names are answered with an error, and not remembered.
pub const NAMES_PER_TYPE_MAX: usize = 10_000;

/// Unanswered responses that are remembered per type. A client that acknowledges nothing loses only its status.
const OUTSTANDING_MAX: usize = 64;

/// Where one resource stands on one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceStatus {
    /// Its type.
    pub resource_type: ResourceType,
    /// Its name.
    pub name: String,
    /// Empty: it does not exist, and the client was told so.
    pub version_sent: String,
    /// The last version that the client accepted; empty: none yet.
    pub version_acked: String,
    /// Why the client rejected the last version sent; none if it did not.
    pub error: Option<String>,
}

/// State of one stream.
#[derive(Debug, Default)]
pub struct Subscriptions {
    node: Option<Node>,
    nonces: Nonces,
    types: [TypeState; ResourceType::PUSH_ORDER.len()],
    /// Clusters that were sent changed, and whose endpoints were not sent since: a client that takes up a changed
    /// cluster waits for its endpoints even if they are the same.
    rewarm: HashSet<String>,
}

/// State of one type on one stream.
#[derive(Debug, Default)]
struct TypeState {
    /// The first request of this type has come.
    started: bool,
    /// Everything is subscribed to.
    wildcard: bool,
    /// SotW: names were given once, so an empty list no longer means everything.
    explicit: bool,
    /// Subscribed to by name.
    names: BTreeSet<String>,
    /// What the client is believed to have.
    known: HashMap<String, Known>,
    /// Sent and not yet answered, oldest first.
    outstanding: VecDeque<Outstanding>,
    /// SotW: answers to other nonces are stale.
    last_nonce: String,
    /// Version of the whole type when it was last looked through.
    looked_through: String,
}

#[derive(Debug, Default)]
struct Known {
    /// None: the client knows that it does not exist.
    sent: Option<String>,
    acked: Option<String>,
    error: Option<String>,
}

#[derive(Debug)]
struct Outstanding {
    nonce: String,
    resources: Vec<(String, String)>,
}

impl Subscriptions {
    /// Id that the client gave itself; empty before its first request.
    pub fn node_id(&self) -> &str {
        self.node.as_ref().map_or("", |n| &n.id)
    }

    /// Every resource that was sent or asked for, with what became of it.
    pub fn status(&self) -> Vec<ResourceStatus> {
        let mut all = Vec::new();
        for t in ResourceType::PUSH_ORDER {
            let sorted: BTreeMap<_, _> = self.types[t as usize].known.iter().collect();
            all.extend(sorted.into_iter().map(|(name, known)| ResourceStatus {
                resource_type: t,
                name: name.clone(),
                version_sent: known.sent.clone().unwrap_or_default(),
                version_acked: known.acked.clone().unwrap_or_default(),
                error: known.error.clone(),
            }));
        }
        all
    }

    /// The client gives its node in the first request of a stream only.
    fn note_node(&mut self, node: Option<Node>) {
        if node.is_some() {
            self.node = node;
        }
    }
}

impl TypeState {
    fn covers(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// Covered names of which the client's knowledge differs from `resources`. `force` is sent in any case.
    fn stale<'a>(&'a self, resources: &'a TypeSnapshot, force: &'a HashSet<String>) -> BTreeSet<String> {
        let differs = |name: &str| {
            let seen = self.known.get(name).map(|k| k.sent.as_deref());
            seen != Some(resources.get(name).map(|r| r.version.as_str()))
        };
        let everything = resources.iter().map(|r| &r.name).filter(|_| self.wildcard);
        everything
            .chain(&self.names)
            .chain(self.known.keys())
            .filter(|name| force.contains(*name) && self.covers(name) || differs(name))
            .cloned()
            .collect()
    }

    /// A response with these resources is on its way.
    fn sent(&mut self, nonce: String, resources: Vec<(String, String)>) {
        self.last_nonce.clone_from(&nonce);
        if self.outstanding.len() == OUTSTANDING_MAX {
            self.outstanding.pop_front();
        }
        self.outstanding.push_back(Outstanding { nonce, resources });
    }

    /// The client's answer to the response with this nonce. Unknown nonces are of the past and mean nothing.
    fn answered(&mut self, nonce: &str, error: Option<&Status>) {
        let Some(position) = self.outstanding.iter().position(|o| o.nonce == nonce) else { return };
        // Clients answer in order: what was sent before this one will not be answered any more.
        let Some(answered) = self.outstanding.drain(..=position).next_back() else { return };
        let rejected = error.map(|e| rejected_resources(e, &answered.resources));
        for (name, version) in answered.resources {
            let Some(known) = self.known.get_mut(&name) else { continue };
            match rejected.as_ref().and_then(|r| r.get(&name)) {
                // D02: a rejected version does not count as applied; the earlier one stays in use.
                Some(reason) => known.error = Some(reason.clone()),
                None => {
                    known.acked = Some(version);
                    known.error = None;
                }
            }
        }
    }
}

/// Which of the resources a NACK rejects: those it names in its details, else those whose names stand in its message,
/// else all of them.
fn rejected_resources(error: &Status, resources: &[(String, String)]) -> HashMap<String, String> {
    let by_name: HashMap<_, _> = nack::rejected(error).into_iter().collect();
    if resources.iter().any(|(name, _)| by_name.contains_key(name)) {
        return by_name;
    }
    let message = nack::shortened(&error.message);
    let mentioned: HashMap<_, _> = resources
        .iter()
        .filter(|(name, _)| mentions(&error.message, name))
        .map(|(name, _)| (name.clone(), message.clone()))
        .collect();
    if mentioned.is_empty() {
        return resources.iter().map(|(name, _)| (name.clone(), message.clone())).collect();
    }
    mentioned
}

/// Whether `text` holds `name` as a whole word: `web` is not mentioned by `web-2 is invalid`.
fn mentions(text: &str, name: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '-' || c == '_' || c == '.';
    text.match_indices(name).any(|(at, _)| {
        !text[..at].ends_with(part_of_name) && !text[at + name.len()..].starts_with(part_of_name)
    })
}

/// Why a name cannot be subscribed to.
fn refusal(name: &str, subscribed: usize) -> Option<String> {
    if name.is_empty() || name.len() > RESOURCE_NAME_BYTES_MAX {
        let seen = name.len();
        return Some(format!("resource name has {seen} bytes, allowed 1 to {RESOURCE_NAME_BYTES_MAX}"));
    }
    (subscribed >= NAMES_PER_TYPE_MAX)
        .then(|| format!("stream has {subscribed} subscriptions, allowed {NAMES_PER_TYPE_MAX}"))
}

#[cfg(test)]
mod tests;
