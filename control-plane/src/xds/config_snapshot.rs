//! Everything that can be subscribed to, as one immutable value.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_xds_proto::envoy_types::pb::google::protobuf::Any;
use weft_xds_proto::resource::content_version;
use weft_xds_proto::type_url::ResourceType;

/// One resource, encoded once for all that receive it.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// Its name: that of the service.
    pub name: String,
    /// Hash of its content: equal on all servers for equal content.
    pub version: String,
    /// As it goes over the wire.
    pub body: Any,
}

/// All resources of all types. Invariant: each cluster has its load assignment, and each listener the routes that it
/// names. The builder sees to it that the clusters that routes lead to are there.
#[derive(Debug, Clone, Default)]
pub struct ConfigSnapshot {
    types: [TypeSnapshot; ResourceType::PUSH_ORDER.len()],
}

/// All resources of one type.
#[derive(Debug, Clone, Default)]
pub struct TypeSnapshot {
    resources: BTreeMap<String, Arc<Resource>>,
    version: String,
}

impl ConfigSnapshot {
    /// A snapshot of these resources, each under its type.
    ///
    /// # Panics
    /// If the invariant does not hold: the builder makes resources of all types for each service.
    pub fn new(resources: impl IntoIterator<Item = (ResourceType, Arc<Resource>)>) -> Self {
        let mut types: [TypeSnapshot; ResourceType::PUSH_ORDER.len()] = Default::default();
        for (t, resource) in resources {
            types[t as usize].resources.insert(resource.name.clone(), resource);
        }
        for t in &mut types {
            let versions: Vec<_> = t.resources.values().map(|r| (&r.name, &r.version)).collect();
            t.version = content_version(&versions);
        }
        let snapshot = Self { types };
        let names = |t: ResourceType| snapshot.of(t).resources.keys();
        assert!(
            names(ResourceType::Cluster).eq(names(ResourceType::Endpoint)),
            "each cluster has its load assignment"
        );
        let routes = &snapshot.of(ResourceType::Route).resources;
        assert!(
            names(ResourceType::Listener).all(|name| routes.contains_key(name)),
            "each listener has its routes"
        );
        snapshot
    }

    /// The resources of a type.
    pub fn of(&self, t: ResourceType) -> &TypeSnapshot {
        &self.types[t as usize]
    }
}

impl TypeSnapshot {
    /// The resource of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        self.resources.get(name)
    }

    /// All, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.resources.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.resources.is_empty()
    }

    /// Hash over all of them: equal if nothing of this type changed.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Up to `limit` names around where `name` would stand, which share the longest beginnings with it.
    fn neighbours(&self, name: &str, limit: usize) -> Vec<&str> {
        use std::ops::Bound::{Excluded, Unbounded};
        let before = self.resources.range::<str, _>((Unbounded, Excluded(name))).rev().take(limit / 2);
        let after = self.resources.range::<str, _>((Excluded(name), Unbounded)).take(limit / 2);
        before.chain(after).map(|(k, _)| k.as_str()).collect()
    }

    /// What to tell someone who asks for a resource of this type that is not there.
    pub fn unknown(&self, t: ResourceType, name: &str) -> String {
        match t {
            ResourceType::Secret => {
                format!(
                    "no secret {name}; weft servers keep none: name files, or run a control plane that has it"
                )
            }
            _ => self.unknown_service(name),
        }
    }

    /// The same of a service: what is there, the closest first.
    fn unknown_service(&self, name: &str) -> String {
        // Bounds the work for names that come from anyone's Host header.
        const COMPARED: usize = 200;
        const SHOWN: usize = 3;
        let mut known = self.neighbours(name, COMPARED);
        if known.is_empty() {
            return format!("no service {name}; no service is known");
        }
        known.sort_by_cached_key(|k| (edit_distance(name, k), k.to_string()));
        known.truncate(SHOWN);
        format!("no service {name}; known: {} ({} of {})", known.join(", "), known.len(), self.len())
    }
}

/// Insertions, deletions and replacements of bytes between two names.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> TypeSnapshot {
        let resource = |n: &&str| {
            let r = Resource { name: n.to_string(), version: "1".to_owned(), body: Any::default() };
            (n.to_string(), Arc::new(r))
        };
        TypeSnapshot { resources: names.iter().map(resource).collect(), version: String::new() }
    }

    #[test]
    fn unknown_service_is_told_the_closest_names_first() {
        let known = names(&["billing", "hello", "help", "orders", "payments", "stock", "users"]);
        assert_eq!(known.unknown_service("helo"), "no service helo; known: hello, help, users (3 of 7)");
        assert_eq!(names(&["a"]).unknown_service("b"), "no service b; known: a (1 of 1)");
    }

    #[test]
    fn unknown_service_in_an_empty_mesh_says_so() {
        assert_eq!(names(&[]).unknown_service("x"), "no service x; no service is known");
    }

    #[test]
    fn edit_distance_of_known_pairs() {
        for (a, b, d) in [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("orders", "order", 1)] {
            assert_eq!((edit_distance(a, b), edit_distance(b, a)), (d, d));
        }
    }

    #[test]
    fn type_version_changes_with_its_resources_only() {
        let make = |v: &str| {
            ConfigSnapshot::new(ResourceType::PUSH_ORDER.map(|t| {
                let version = if t == ResourceType::Endpoint { v } else { "1" };
                let r = Resource { name: "a".to_owned(), version: version.to_owned(), body: Any::default() };
                (t, Arc::new(r))
            }))
        };
        let (one, two) = (make("1"), make("2"));
        assert_eq!(one.of(ResourceType::Cluster).version(), two.of(ResourceType::Cluster).version());
        assert_ne!(one.of(ResourceType::Endpoint).version(), two.of(ResourceType::Endpoint).version());
    }
}
