//! The mesh's configuration as a server has it: documents that were checked, changed by one command at a time, and
//! what they mean for proxies.
//!
//! Every change is checked against all other documents, here and not in the state machine: the command says which
//! generation it was checked against, and is tried again if that is no longer the present one.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use weft_meshconfig::document::Document;
use weft_meshconfig::lower::Lowered;
use weft_meshconfig::{Kind, MeshConfig, Problem};
use weft_state::command::{Event, MeshConfigChange, Revision, SetMeshConfig};
use weft_state::machine::{Machine, MeshDocument};
use weft_xds_proto::resource::cluster::LbPolicy;

use crate::raft::{ApplyObserver, Coordinator};

/// Keys of documents and of their generation.
const PREFIX: &[u8] = b"weft/mesh/config";

/// Notices changes where commands are applied.
#[derive(Debug)]
pub struct MeshConfigChanges {
    version: watch::Sender<u64>,
}

impl Default for MeshConfigChanges {
    fn default() -> Self {
        Self { version: watch::Sender::new(0) }
    }
}

impl MeshConfigChanges {
    /// Grows with each change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}

impl ApplyObserver for MeshConfigChanges {
    fn applied(&self, _machine: &Machine, events: &[Event]) {
        if events.iter().any(|e| e.kv.key.starts_with(PREFIX)) {
            self.version.send_modify(|v| *v += 1);
        }
    }

    fn restored(&self, _machine: &Machine) {
        self.version.send_modify(|v| *v += 1);
    }
}

/// What proxies are told, kept until it changes.
pub struct Routes {
    coordinator: Coordinator,
    changes: Arc<MeshConfigChanges>,
    /// Held while one is made; the xDS builder and operators ask, no request does.
    made: Mutex<(Option<Revision>, Arc<Lowered>)>,
}

impl Routes {
    /// `changes` must be among the observers that the coordinator was started with.
    pub fn new(coordinator: Coordinator, changes: Arc<MeshConfigChanges>) -> Self {
        Self { coordinator, changes, made: Mutex::default() }
    }

    /// Grows with each change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// As they are now.
    pub fn lowered(&self) -> Arc<Lowered> {
        let mut made = self.made.lock();
        let (generation, stored) = self.coordinator.read(Machine::mesh_config);
        if made.0 != Some(generation) {
            *made = (Some(generation), Arc::new(config_of(&stored).lowered()));
        }
        made.1.clone()
    }
}

/// How proxies balance over a service, and who said it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balancing {
    /// What holds.
    pub policy: LbPolicy,
    /// The `TrafficPolicy` that says so; none: it was set for the service, or is the default.
    pub document: Option<String>,
}

impl Balancing {
    /// As the service's policy says, else as it was set.
    pub fn of(config: &Lowered, service: &str, set: LbPolicy) -> Self {
        let policy = config.policies.get(service);
        match policy.and_then(|p| Some((p.spec.balancing()?, p.document.clone()))) {
            Some((policy, document)) => Self { policy, document: Some(document) },
            None => Self { policy: set, document: None },
        }
    }
}

/// The documents of a server, checked once more: a newer server may have stored what this one does not know. Such a
/// document is left out, with a line in the log.
pub fn config_of(stored: &[MeshDocument]) -> MeshConfig {
    let mut config = MeshConfig::default();
    for held in stored {
        match Document::from_bytes(&held.document) {
            Ok(document) => config.insert(document, held.create_revision),
            Err(problems) => {
                let why = problems.first().map(ToString::to_string).unwrap_or_default();
                tracing::warn!(
                    kind = held.kind,
                    name = held.name,
                    why,
                    "a stored document is not understood here"
                );
            }
        }
    }
    config
}

/// What became of one document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Outcome {
    Created,
    Changed,
    Unchanged,
}

impl Outcome {
    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
        }
    }
}

/// A problem with the number of its document in the request, if it is of one of those.
pub type Found = (Option<usize>, Problem);

/// Changes that were checked, ready to be proposed.
#[derive(Debug)]
pub struct Checked {
    /// Nothing to do if it has no changes.
    pub command: SetMeshConfig,
    /// One for each document of the request.
    pub outcomes: Vec<Outcome>,
}

/// Reads the documents of a request.
///
/// # Errors
/// All that is wrong within them.
pub fn read(documents: &[Bytes]) -> Result<Vec<Document>, Vec<Found>> {
    let mut read: Vec<Document> = Vec::with_capacity(documents.len());
    let mut problems: Vec<Found> = Vec::new();
    let mut seen = BTreeSet::new();
    for (i, bytes) in documents.iter().enumerate() {
        match Document::from_bytes(bytes) {
            Ok(document) => {
                if !seen.insert((document.kind, document.name.clone())) {
                    let message = format!("{:?} is given twice", document.name);
                    problems.push((Some(i), Problem::new("metadata.name", message)));
                }
                read.push(document);
            }
            Err(found) => problems.extend(found.into_iter().map(|problem| (Some(i), problem))),
        }
    }
    if problems.is_empty() { Ok(read) } else { Err(problems) }
}

/// Checks documents against those that are stored.
///
/// # Errors
/// All that is wrong between them, unless it was so before.
pub fn check_apply(
    documents: &[Document],
    generation: Revision,
    stored: &[MeshDocument],
) -> Result<Checked, Vec<Found>> {
    let before = config_of(stored);
    let mut after = before.clone();
    let (mut changes, mut outcomes) = (Vec::new(), Vec::new());
    for document in documents {
        let bytes = Bytes::from(document.to_bytes());
        let kind = document.kind.as_str();
        let held = stored.iter().find(|d| d.kind == kind && d.name == document.name);
        outcomes.push(match held {
            Some(same) if same.document == bytes => Outcome::Unchanged,
            Some(_) => Outcome::Changed,
            None => Outcome::Created,
        });
        if outcomes.last() != Some(&Outcome::Unchanged) {
            let name = document.name.clone();
            changes.push(MeshConfigChange { kind: kind.to_owned(), name, document: Some(bytes) });
        }
        // What comes now is younger than all that is there.
        after.insert(document.clone(), Revision::MAX);
    }
    let known = before.problems();
    let new = after.problems().into_iter().filter(|problem| !known.contains(problem));
    let problems: Vec<Found> = new
        .map(|(key, problem)| {
            let number = key
                .as_ref()
                .and_then(|(kind, name)| documents.iter().position(|d| d.kind == *kind && d.name == *name));
            (number, named(key.filter(|_| number.is_none()), problem))
        })
        .collect();
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(Checked { command: SetMeshConfig { base: generation, changes }, outcomes })
}

/// Checks that a document can go.
///
/// # Errors
/// Who still refers to it. `None`: there is no such document.
pub fn check_delete(
    kind: Kind,
    name: &str,
    generation: Revision,
    stored: &[MeshDocument],
) -> Result<Option<SetMeshConfig>, Vec<Found>> {
    if !stored.iter().any(|d| d.kind == kind.as_str() && d.name == name) {
        return Ok(None);
    }
    let before = config_of(stored);
    let mut after = before.clone();
    after.remove(kind, name);
    let known = before.problems();
    let new = after.problems().into_iter().filter(|problem| !known.contains(problem));
    let problems: Vec<Found> = new.map(|(key, problem)| (None, named(key, problem))).collect();
    if !problems.is_empty() {
        return Err(problems);
    }
    let change = MeshConfigChange { kind: kind.as_str().to_owned(), name: name.to_owned(), document: None };
    Ok(Some(SetMeshConfig { base: generation, changes: vec![change] }))
}

/// A problem that says in which stored document it is.
fn named(key: Option<(Kind, String)>, problem: Problem) -> Problem {
    match key {
        Some((kind, name)) => {
            Problem { message: format!("{} (in {kind} {name}, which is stored)", problem.message), ..problem }
        }
        None => problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(name: &str, filter: &str) -> Bytes {
        Bytes::from(format!(
            r#"{{"apiVersion":"gateway.networking.k8s.io/v1","kind":"HTTPRoute","metadata":{{"name":"{name}"}},"spec":{{"hostnames":["a.test"],"rules":[{{"filters":[{{"type":"ExtensionRef","extensionRef":{{"group":"weft.dev","kind":"HTTPRouteFilter","name":"{filter}"}}}}],"backendRefs":[{{"name":"x"}}]}}]}}}}"#
        ))
    }

    fn filter(name: &str) -> Bytes {
        Bytes::from(format!(
            r#"{{"apiVersion":"weft.dev/v1","kind":"HTTPRouteFilter","metadata":{{"name":"{name}"}},"spec":{{"compression":{{}}}}}}"#
        ))
    }

    fn store(documents: &[Bytes]) -> Vec<MeshDocument> {
        let stored = |d: &Document| MeshDocument {
            kind: d.kind.as_str().to_owned(),
            name: d.name.clone(),
            document: Bytes::from(d.to_bytes()),
            create_revision: 2,
            mod_revision: 2,
            version: 1,
        };
        read(documents).unwrap().iter().map(stored).collect()
    }

    #[test]
    fn documents_may_refer_to_what_comes_with_them() {
        let documents = read(&[route("r", "f"), filter("f")]).unwrap();
        let checked = check_apply(&documents, 5, &[]).unwrap();
        assert_eq!((checked.command.base, checked.command.changes.len()), (5, 2));
        assert_eq!(checked.outcomes, [Outcome::Created; 2]);
        let again = check_apply(&documents, 5, &store(&[route("r", "f"), filter("f")])).unwrap();
        assert_eq!((again.command.changes.len(), again.outcomes), (0, vec![Outcome::Unchanged; 2]));
    }

    #[test]
    fn what_would_refer_to_nothing_is_refused() {
        let documents = read(&[filter("g"), route("r", "f")]).unwrap();
        let problems = check_apply(&documents, 5, &[]).unwrap_err();
        assert_eq!(problems[0].0, Some(1));
        let stored = store(&[route("r", "f"), filter("f")]);
        let problems = check_delete(Kind::HttpRouteFilter, "f", 5, &stored).unwrap_err();
        assert!(problems[0].1.to_string().contains("in HTTPRoute r, which is stored"), "{problems:?}");
        assert!(check_delete(Kind::HttpRoute, "r", 5, &stored).unwrap().is_some());
        assert!(check_delete(Kind::HttpRoute, "other", 5, &stored).unwrap().is_none());
    }

    #[test]
    fn a_document_given_twice_or_wrong_is_refused_with_its_number() {
        let problems = read(&[filter("f"), filter("f"), Bytes::from_static(b"{}")]).unwrap_err();
        assert_eq!(problems.iter().map(|p| p.0).collect::<Vec<_>>(), [Some(1), Some(2)]);
    }

    /// A server of an older release does not lose what it does not understand, and uses the rest.
    #[test]
    fn a_stored_document_that_is_not_understood_is_left_out() {
        let mut stored = store(&[filter("f")]);
        stored
            .push(MeshDocument { document: Bytes::from_static(b"{\"kind\":\"New\"}"), ..stored[0].clone() });
        assert_eq!(config_of(&stored).iter().count(), 1);
    }
}
