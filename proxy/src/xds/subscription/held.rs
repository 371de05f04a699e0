//! What is wanted and held of one type.

use std::collections::{BTreeSet, HashMap, HashSet};

use weft_xds_proto::envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as WireResource,
};
use weft_xds_proto::nack;

use super::decode::{Decode, decode};
use super::{Change, Handled, Held};
use crate::courtesy;

#[derive(Debug)]
pub(super) struct TypeState<T> {
    /// Subscribed to, or to be when there is a stream. Everything below is about these only, and so bounded.
    pub wanted: BTreeSet<String>,
    pub held: HashMap<String, Held<T>>,
    /// Does not exist, with what the server said.
    pub absent: HashMap<String, String>,
    /// The first request of this type on this stream is out.
    pub started: bool,
}

impl<T> Default for TypeState<T> {
    fn default() -> Self {
        Self { wanted: BTreeSet::new(), held: HashMap::new(), absent: HashMap::new(), started: false }
    }
}

impl<T: Decode> TypeState<T> {
    fn request() -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest { type_url: T::TYPE.url().to_owned(), ..DeltaDiscoveryRequest::default() }
    }

    pub fn is_waiting(&self) -> bool {
        self.wanted.iter().any(|n| !self.held.contains_key(n) && !self.absent.contains_key(n))
    }

    pub fn first_request(&mut self) -> Option<DeltaDiscoveryRequest> {
        if self.wanted.is_empty() {
            return None;
        }
        self.started = true;
        Some(DeltaDiscoveryRequest {
            resource_names_subscribe: self.wanted.iter().cloned().collect(),
            initial_resource_versions: self
                .held
                .iter()
                .map(|(n, h)| (n.clone(), h.version.clone()))
                .collect(),
            ..Self::request()
        })
    }

    pub fn want(&mut self, names: &[String], streaming: bool) -> Option<DeltaDiscoveryRequest> {
        let new: Vec<String> = names.iter().filter(|n| self.wanted.insert((*n).clone())).cloned().collect();
        if new.is_empty() || !streaming {
            return None;
        }
        if !self.started {
            return self.first_request();
        }
        Some(DeltaDiscoveryRequest { resource_names_subscribe: new, ..Self::request() })
    }

    pub fn unwant(&mut self, names: &[String], streaming: bool) -> Option<DeltaDiscoveryRequest> {
        let gone: Vec<String> = names.iter().filter(|n| self.wanted.remove(*n)).cloned().collect();
        for name in &gone {
            self.held.remove(name);
            self.absent.remove(name);
        }
        (!gone.is_empty() && streaming && self.started)
            .then(|| DeltaDiscoveryRequest { resource_names_unsubscribe: gone, ..Self::request() })
    }

    pub fn handle(&mut self, response: DeltaDiscoveryResponse) -> Handled {
        let mut changes = Vec::new();
        let mut rejected = Vec::new();
        let mut seen = HashSet::new();
        for resource in response.resources {
            let name = resource.name.clone();
            // A response may cross with our unsubscription; what is not wanted is not held, or it would never leave.
            let wanted = self.wanted.contains(&name);
            courtesy::make_way();
            let result = if seen.insert(name.clone()) {
                decode::<T>(resource)
            } else {
                Err("comes twice in one response".to_owned())
            };
            let change = match result {
                Ok(held) if wanted => {
                    self.absent.remove(&name);
                    match self.held.insert(name.clone(), held) {
                        None => Change::Added,
                        Some(old) if old.version == self.held[&name].version => Change::Unchanged,
                        Some(_) => Change::Replaced,
                    }
                }
                Ok(_) => continue,
                Err(reason) => {
                    rejected.push((name.clone(), reason));
                    Change::Rejected
                }
            };
            if wanted {
                changes.push((T::TYPE, name, change));
            }
        }
        let mut errors: HashMap<String, String> = response
            .resource_errors
            .into_iter()
            .map(|e| (e.resource_name.unwrap_or_default().name, e.error_detail.unwrap_or_default().message))
            .collect();
        for name in response.removed_resources {
            if !self.wanted.contains(&name) {
                continue;
            }
            if T::OUTLIVES_REMOVAL && self.held.contains_key(&name) {
                changes.push((T::TYPE, name, Change::Removed));
                continue;
            }
            self.held.remove(&name);
            let text = errors.remove(&name).unwrap_or_else(|| format!("no service {name}"));
            self.absent.insert(name.clone(), nack::shortened(&text));
            changes.push((T::TYPE, name, Change::Removed));
        }
        let answer = DeltaDiscoveryRequest {
            response_nonce: response.nonce,
            error_detail: (!rejected.is_empty()).then(|| nack::rejection(&rejected)),
            ..Self::request()
        };
        Handled { answer, changes, rejected }
    }

    pub fn export(&self) -> Vec<WireResource> {
        let mut all: Vec<_> = self
            .held
            .iter()
            .map(|(name, held)| {
                courtesy::make_way();
                WireResource {
                    name: name.clone(),
                    version: held.version.clone(),
                    resource: Some(held.body.clone()),
                    ..WireResource::default()
                }
            })
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}
