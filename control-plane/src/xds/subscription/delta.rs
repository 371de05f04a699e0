//! The incremental dialect: single resources and removals, each with its own version.

use std::collections::{BTreeSet, HashMap, HashSet};

use prost::Message;
use tonic::Code;
use weft_xds_proto::envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as WireResource, ResourceError,
};
use weft_xds_proto::nack::resource_error;
use weft_xds_proto::type_url::ResourceType;

use super::{ConfigSnapshot, Known, Subscriptions, refusal};

/// Resources are split over several responses above this, in bytes, so that clients with gRPC's default limit of
/// 4 MiB can receive them. A single larger resource goes alone.
const RESPONSE_BYTES_MAX: usize = 1024 * 1024;

const WILDCARD: &str = "*";

/// What one type owes the client.
#[derive(Default)]
struct Batch {
    resources: Vec<WireResource>,
    removed: Vec<String>,
    errors: Vec<ResourceError>,
}

impl Subscriptions {
    /// Takes a request and answers what it asks for. An ACK or NACK alone is answered with nothing, and so is a type
    /// that Weft does not serve.
    pub fn handle_delta(
        &mut self,
        request: DeltaDiscoveryRequest,
        snapshot: &ConfigSnapshot,
    ) -> Vec<DeltaDiscoveryResponse> {
        self.note_node(request.node);
        let Some(t) = ResourceType::from_url(&request.type_url) else { return Vec::new() };
        let resources = snapshot.of(t);
        let state = &mut self.types[t as usize];
        if !request.response_nonce.is_empty() {
            state.answered(&request.response_nonce, request.error_detail.as_ref());
        }

        let first = !std::mem::replace(&mut state.started, true);
        let mut forced = HashSet::new();
        let mut batch = Batch::default();
        let mut wildcard_begins = false;
        if first && request.resource_names_subscribe.is_empty() && t.has_wildcard() {
            state.wildcard = t.is_in_wildcard();
            wildcard_begins = true;
        }
        for name in request.resource_names_subscribe {
            if name == WILDCARD {
                wildcard_begins |= !state.wildcard;
                state.wildcard = t.is_in_wildcard();
            } else if state.names.contains(&name) {
                forced.insert(name);
            } else if let Some(reason) = refusal(&name, state.names.len()) {
                let code = if name.len() <= 253 { Code::ResourceExhausted } else { Code::InvalidArgument };
                batch.errors.push(resource_error(&name, code, &reason));
                batch.removed.push(name);
            } else {
                forced.insert(name.clone());
                state.names.insert(name);
            }
        }
        for name in request.resource_names_unsubscribe {
            if name == WILDCARD {
                state.wildcard = false;
                let names = &state.names;
                state.known.retain(|n, _| names.contains(n));
            } else if state.names.remove(&name) {
                forced.remove(&name);
                if state.wildcard {
                    // Still covered: the client dropped it on unsubscribing and must be told again.
                    forced.insert(name);
                } else {
                    state.known.remove(&name);
                }
            }
        }
        if first {
            for (name, version) in request.initial_resource_versions {
                if state.covers(&name) {
                    let current = resources.get(&name).is_some_and(|r| r.version == version);
                    // What the client still has from an earlier stream need not be sent again.
                    if current {
                        forced.remove(&name);
                    }
                    let acked = current.then(|| version.clone());
                    state.known.insert(name, Known { sent: Some(version), acked, error: None });
                }
            }
        }
        let due = if first || wildcard_begins {
            state.looked_through = resources.version().to_owned();
            state.stale(resources, &forced)
        } else {
            forced.iter().cloned().collect()
        };
        self.collect(t, &due, snapshot, &mut batch);
        let answer_even_if_empty = wildcard_begins;
        self.respond(t, batch, answer_even_if_empty)
    }

    /// What a new snapshot means for this stream: additions and changes in push order, then
    /// removals in the opposite order, so that nothing that is in use refers to something that is gone.
    pub fn push_delta(&mut self, snapshot: &ConfigSnapshot) -> Vec<DeltaDiscoveryResponse> {
        let mut responses = Vec::new();
        let mut removals = Vec::new();
        for t in ResourceType::PUSH_ORDER {
            let state = &mut self.types[t as usize];
            let rewarms = t == ResourceType::Endpoint && !self.rewarm.is_empty();
            let unchanged = state.looked_through == snapshot.of(t).version();
            if !state.started || unchanged && !rewarms {
                continue;
            }
            state.looked_through = snapshot.of(t).version().to_owned();
            let none = HashSet::new();
            let forced = if rewarms { &self.rewarm } else { &none };
            let due = self.types[t as usize].stale(snapshot.of(t), forced);
            let mut batch = Batch::default();
            self.collect(t, &due, snapshot, &mut batch);
            let removed = std::mem::take(&mut batch.removed);
            let errors = std::mem::take(&mut batch.errors);
            responses.extend(self.respond(t, batch, false));
            removals.push((t, Batch { removed, errors, ..Batch::default() }));
        }
        for (t, batch) in removals.into_iter().rev() {
            responses.extend(self.respond(t, batch, false));
        }
        responses
    }

    /// Puts these names into the batch, as they are in the snapshot, and notes that the client knows.
    fn collect(
        &mut self,
        t: ResourceType,
        due: &BTreeSet<String>,
        snapshot: &ConfigSnapshot,
        batch: &mut Batch,
    ) {
        let resources = snapshot.of(t);
        let due = due.iter().chain(
            // Also asked for by a request that follows the changed cluster instead of by the push itself.
            self.rewarm.iter().filter(|_| t == ResourceType::Endpoint).filter(|n| !due.contains(*n)),
        );
        let state = &mut self.types[t as usize];
        let mut rewarmed = Vec::new();
        let mut changed_clusters = Vec::new();
        for name in due.filter(|n| state.wildcard || state.names.contains(*n)) {
            if let Some(resource) = resources.get(name) {
                let known = state.known.entry(name.clone()).or_default();
                if t == ResourceType::Cluster
                    && known.sent.as_ref().is_some_and(|sent| *sent != resource.version)
                {
                    changed_clusters.push(name.clone());
                }
                known.sent = Some(resource.version.clone());
                batch.resources.push(WireResource {
                    name: name.clone(),
                    version: resource.version.clone(),
                    resource: Some(resource.body.clone()),
                    ..WireResource::default()
                });
            } else {
                if state.names.contains(name) {
                    let message = resources.unknown(t, name);
                    batch.errors.push(resource_error(name, Code::NotFound, &message));
                    state.known.insert(name.clone(), Known::default());
                } else {
                    state.known.remove(name);
                }
                batch.removed.push(name.clone());
            }
            if t == ResourceType::Endpoint {
                rewarmed.push(name.clone());
            }
        }
        for name in rewarmed {
            self.rewarm.remove(&name);
        }
        self.rewarm.extend(changed_clusters);
    }

    fn respond(&mut self, t: ResourceType, batch: Batch, even_if_empty: bool) -> Vec<DeltaDiscoveryResponse> {
        let mut parts: Vec<Vec<WireResource>> = Vec::new();
        let mut bytes = 0;
        for resource in batch.resources {
            let size = resource.encoded_len();
            match parts.last_mut() {
                Some(part) if bytes + size <= RESPONSE_BYTES_MAX => {
                    part.push(resource);
                    bytes += size;
                }
                _ => {
                    parts.push(vec![resource]);
                    bytes = size;
                }
            }
        }
        if parts.is_empty() && (even_if_empty || !batch.removed.is_empty()) {
            parts.push(Vec::new());
        }
        let (mut removed, mut errors) = (batch.removed, batch.errors);
        let mut responses = Vec::with_capacity(parts.len());
        for resources in parts {
            let nonce = self.nonces.issue();
            let versions: HashMap<_, _> =
                resources.iter().map(|r| (r.name.clone(), r.version.clone())).collect();
            let state = &mut self.types[t as usize];
            state.sent(nonce.clone(), versions.into_iter().collect());
            responses.push(DeltaDiscoveryResponse {
                system_version_info: state.looked_through.clone(),
                resources,
                type_url: t.url().to_owned(),
                removed_resources: std::mem::take(&mut removed),
                nonce,
                resource_errors: std::mem::take(&mut errors),
                ..DeltaDiscoveryResponse::default()
            });
        }
        responses
    }
}
