//! All documents of a mesh together: what they mean, and what one says of another.

use std::collections::BTreeMap;

use weft_xds_proto::resource::route::ROUTES_MAX;

use crate::DOCUMENTS_MAX;
use crate::document::{Document, Filter, Items, Kind, Spec};
use crate::lower::{Lowered, RouteSpec, Source, lower};
use crate::policy::{Policy, TrafficPolicySpec};
use crate::shape::{Problem, near};

/// Identity of a document.
pub type Key = (Kind, String);

/// A document with its age.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// Smaller is older; equal for those that came together.
    pub created: i64,
    /// The document.
    pub document: Document,
}

/// Documents by kind and name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MeshConfig {
    documents: BTreeMap<Key, Stored>,
}

impl MeshConfig {
    /// Adds or replaces a document; one that is replaced keeps its age.
    pub fn insert(&mut self, document: Document, created: i64) {
        let key = (document.kind, document.name.clone());
        let created = self.documents.get(&key).map_or(created, |old| old.created);
        self.documents.insert(key, Stored { created, document });
    }

    /// Takes one out.
    pub fn remove(&mut self, kind: Kind, name: &str) -> Option<Stored> {
        self.documents.remove(&(kind, name.to_owned()))
    }

    /// One of them.
    pub fn get(&self, kind: Kind, name: &str) -> Option<&Stored> {
        self.documents.get(&(kind, name.to_owned()))
    }

    /// All, sorted by kind and name.
    pub fn iter(&self) -> impl Iterator<Item = &Stored> {
        self.documents.values()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.documents.is_empty()
    }

    /// What is wrong between documents, each with the one that it stands in; none for the set as a whole.
    pub fn problems(&self) -> Vec<(Option<Key>, Problem)> {
        let mut problems = Vec::new();
        if self.documents.len() > DOCUMENTS_MAX {
            let seen = self.documents.len();
            let message = format!("{seen} documents; at most {DOCUMENTS_MAX} are allowed");
            problems.push((None, Problem::new("", message)));
        }
        for (key, stored) in &self.documents {
            for (at, name) in extension_refs(&stored.document.spec) {
                if self.get(Kind::HttpRouteFilter, &name).is_none() {
                    let names = self.documents.keys().filter(|(kind, _)| *kind == Kind::HttpRouteFilter);
                    let near = near(&name, names.map(|(_, name)| name.as_str()));
                    let message = format!("no HTTPRouteFilter {name:?}{near}");
                    problems.push((Some(key.clone()), Problem::new(at, message)));
                }
            }
        }
        problems.extend(self.second_policies());
        let lowered = self.lowered();
        for host in lowered.all().flat_map(|c| &c.virtual_hosts) {
            if host.routes.len() > ROUTES_MAX {
                let (seen, host) = (host.routes.len(), &host.name);
                let message = format!("{seen} matches for {host}; at most {ROUTES_MAX} are allowed");
                problems.push((None, Problem::new("", message)));
            }
        }
        problems
    }

    /// What they mean.
    pub fn lowered(&self) -> Lowered {
        self.lowered_beside(Vec::new())
    }

    /// What they mean together with routes that stand elsewhere.
    pub fn lowered_beside<'a>(&'a self, mut routes: Vec<Source<'a>>) -> Lowered {
        let mut filters = BTreeMap::new();
        for Stored { created, document } in self.documents.values() {
            let spec = match &document.spec {
                Spec::Http(spec) => RouteSpec::Http(spec),
                Spec::Grpc(spec) => RouteSpec::Grpc(spec),
                Spec::Filter(spec) => {
                    filters.insert(document.name.as_str(), &**spec);
                    continue;
                }
                Spec::Policy(_) | Spec::Authz(_) | Spec::Jwt(_) => continue,
            };
            routes.push(Source { name: &document.name, created: *created, spec });
        }
        let mut lowered = lower(routes, &filters);
        for (document, spec) in self.policies() {
            let policy = || Policy { document: document.name.clone(), spec: spec.policy.clone() };
            lowered.policies.entry(spec.target_ref.name.clone()).or_insert_with(policy);
        }
        for stored in self.documents.values() {
            let target = match &stored.document.spec {
                Spec::Authz(spec) => &spec.target_ref,
                Spec::Jwt(spec) => &spec.target_ref,
                _ => continue,
            };
            let guard = match target {
                Some(target) => lowered.guards.entry(target.name.clone()).or_default(),
                None => &mut lowered.guard_of_all,
            };
            match &stored.document.spec {
                Spec::Authz(spec) => guard.policies.push(spec.meant(&stored.document.name)),
                Spec::Jwt(spec) => guard.tokens.extend(spec.meant()),
                _ => {}
            }
        }
        lowered
    }

    /// Policies, the oldest first, and of equally old ones the first by name.
    fn policies<'a>(&'a self) -> Vec<(&'a Document, &'a TrafficPolicySpec)> {
        let policy = |stored: &'a Stored| match &stored.document.spec {
            Spec::Policy(spec) => Some((stored.created, &stored.document, &**spec)),
            _ => None,
        };
        let mut policies: Vec<_> = self.documents.values().filter_map(policy).collect();
        policies.sort_by_key(|(created, _, _)| *created);
        policies.into_iter().map(|(_, document, spec)| (document, spec)).collect()
    }

    /// Those for a service that has one already.
    fn second_policies(&self) -> Vec<(Option<Key>, Problem)> {
        let mut first: BTreeMap<&str, &str> = BTreeMap::new();
        let mut problems = Vec::new();
        for (document, spec) in self.policies() {
            let service = spec.target_ref.name.as_str();
            match first.get(service) {
                None => drop(first.insert(service, &document.name)),
                Some(other) => {
                    let message = format!("{service} has TrafficPolicy {other} already; a service has one");
                    let key = (document.kind, document.name.clone());
                    problems.push((Some(key), Problem::new("spec.targetRef.name", message)));
                }
            }
        }
        problems
    }
}

/// Names of the HTTPRouteFilters that a route refers to, each with its path.
fn extension_refs(spec: &Spec) -> Vec<(String, String)> {
    let of = |rule: usize, filters: &Items<Filter>| {
        let refs = filters.iter().enumerate().filter_map(move |(i, filter)| {
            let name = &filter.as_ref()?.extension_ref.as_ref()?.name;
            Some((format!("spec.rules[{rule}].filters[{i}].extensionRef.name"), name.clone()))
        });
        refs.collect::<Vec<_>>()
    };
    match spec {
        Spec::Http(s) => s
            .rules
            .iter()
            .enumerate()
            .flat_map(|(i, r)| r.iter().flat_map(move |r| of(i, &r.filters)))
            .collect(),
        Spec::Grpc(s) => s
            .rules
            .iter()
            .enumerate()
            .flat_map(|(i, r)| r.iter().flat_map(move |r| of(i, &r.filters)))
            .collect(),
        Spec::Filter(_) | Spec::Policy(_) | Spec::Authz(_) | Spec::Jwt(_) => Vec::new(),
    }
}
