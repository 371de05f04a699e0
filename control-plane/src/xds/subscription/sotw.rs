//! The state-of-the-world dialect, for clients that do not speak the incremental one (Envoy by default, gRPC always).
//!
//! Clusters and listeners come as the full set, where absence is deletion; endpoints and routes come as those that
//! changed, and are never deleted.

use std::collections::{BTreeSet, HashSet};

use weft_xds_proto::envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use weft_xds_proto::type_url::ResourceType;

use super::{ConfigSnapshot, Subscriptions, refusal};

const WILDCARD: &str = "*";

impl Subscriptions {
    /// Takes a request and answers it if it asks for something new. An ACK, a NACK, a stale request and a type that
    /// Weft does not serve are answered with nothing.
    pub fn handle_sotw(
        &mut self,
        request: DiscoveryRequest,
        snapshot: &ConfigSnapshot,
    ) -> Option<DiscoveryResponse> {
        self.note_node(request.node);
        let t = ResourceType::from_url(&request.type_url)?;
        let state = &mut self.types[t as usize];
        if !request.response_nonce.is_empty() {
            if request.response_nonce != state.last_nonce {
                return None;
            }
            state.answered(&request.response_nonce, request.error_detail.as_ref());
        }

        let first = !std::mem::replace(&mut state.started, true);
        let had_wildcard = state.wildcard;
        let mut names = BTreeSet::new();
        let mut wildcard = false;
        if request.resource_names.is_empty() {
            // Once names were given, an empty list means "nothing", never "everything".
            wildcard = !state.explicit && t.has_wildcard();
        } else {
            state.explicit = true;
            for name in request.resource_names {
                if name == WILDCARD {
                    wildcard = true;
                } else if refusal(&name, names.len()).is_none() {
                    names.insert(name);
                }
            }
        }
        state.wildcard = wildcard && t.is_in_wildcard();
        let added: BTreeSet<_> = names.difference(&state.names).cloned().collect();
        state.names = names;
        let (names, wildcard) = (&state.names, state.wildcard);
        state.known.retain(|n, _| wildcard || names.contains(n));

        let new_wildcard = state.wildcard && !had_wildcard;
        if !first && added.is_empty() && !new_wildcard {
            return None;
        }
        if first {
            state.looked_through = snapshot.of(t).version().to_owned();
        }
        Some(self.respond_sotw(t, &added, snapshot))
    }

    /// What a new snapshot means for this stream, in push order.
    pub fn push_sotw(&mut self, snapshot: &ConfigSnapshot) -> Vec<DiscoveryResponse> {
        let mut responses = Vec::new();
        for t in ResourceType::PUSH_ORDER {
            let resources = snapshot.of(t);
            let state = &mut self.types[t as usize];
            let rewarms = t == ResourceType::Endpoint && !self.rewarm.is_empty();
            if !state.started || state.looked_through == resources.version() && !rewarms {
                continue;
            }
            state.looked_through = resources.version().to_owned();
            let none = HashSet::new();
            let forced = if rewarms { &self.rewarm } else { &none };
            let mut due = self.types[t as usize].stale(resources, forced);
            if !t.has_wildcard() {
                // Deletion has no form here; the client hears of it by its cluster or listener.
                due.retain(|name| resources.get(name).is_some());
            }
            if !due.is_empty() {
                responses.push(self.respond_sotw(t, &due, snapshot));
            }
        }
        responses
    }

    /// The full set of clusters or listeners; of the other types those that are due.
    fn respond_sotw(
        &mut self,
        t: ResourceType,
        due: &BTreeSet<String>,
        snapshot: &ConfigSnapshot,
    ) -> DiscoveryResponse {
        let resources = snapshot.of(t);
        let state = &mut self.types[t as usize];
        let sent: Vec<_> = if state.wildcard {
            resources.iter().cloned().collect()
        } else if t.has_wildcard() {
            state.names.iter().filter_map(|n| resources.get(n)).cloned().collect()
        } else {
            let rewarmed = self.rewarm.iter().filter(|n| state.names.contains(*n));
            let due: BTreeSet<_> = due.iter().chain(rewarmed).collect();
            due.into_iter().filter_map(|n| resources.get(n)).cloned().collect()
        };
        if t.has_wildcard() {
            state.known.retain(|n, _| resources.get(n).is_some());
        }
        for name in &state.names {
            state.known.entry(name.clone()).or_default();
        }
        for resource in &sent {
            let known = state.known.entry(resource.name.clone()).or_default();
            let changed = known.sent.as_ref().is_some_and(|v| *v != resource.version);
            known.sent = Some(resource.version.clone());
            match t {
                ResourceType::Cluster if changed => {
                    self.rewarm.insert(resource.name.clone());
                }
                ResourceType::Endpoint => {
                    self.rewarm.remove(&resource.name);
                }
                _ => {}
            }
        }
        let nonce = self.nonces.issue();
        let versions = sent.iter().map(|r| (r.name.clone(), r.version.clone())).collect();
        state.sent(nonce.clone(), versions);
        DiscoveryResponse {
            version_info: resources.version().to_owned(),
            resources: sent.iter().map(|r| r.body.clone()).collect(),
            type_url: t.url().to_owned(),
            nonce,
            ..DiscoveryResponse::default()
        }
    }
}
