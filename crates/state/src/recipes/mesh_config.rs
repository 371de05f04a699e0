//! The mesh's configuration: documents by kind and name. What they say is for those who propose them to check; here
//! they are bytes.
//!
//! ```text
//! weft/mesh/config/KIND/NAME       the document as JSON
//! weft/mesh/config-generation/all  {"documents":3}; written with each change
//! ```
//! A change is checked against all other documents before it is proposed, so it says which state it was checked
//! against, and is refused if that is no longer the present one.

use bytes::Bytes;
use serde::Serialize;

use crate::{
    command::{Event, Revision, SetMeshConfig},
    error::StoreError,
    recipes::{json, name},
    store::{KeyRange, Store},
};

const PREFIX: &[u8] = b"weft/mesh/config/";
/// First key behind those with the prefix.
const PREFIX_END: &[u8] = b"weft/mesh/config0";
const GENERATION: &[u8] = b"weft/mesh/config-generation/all";

/// A document as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshDocument {
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// What it says.
    pub document: Bytes,
    /// Revision in which it first came.
    pub create_revision: Revision,
    /// Revision of its last change.
    pub mod_revision: Revision,
    /// How often it was written.
    pub version: i64,
}

#[derive(Serialize)]
struct Generation {
    documents: usize,
}

/// Carries out all changes in one revision.
///
/// # Errors
/// `NameOutOfRange`; `MeshConfigChanged` if the present generation is not `base`.
pub(crate) fn set(
    store: &mut Store,
    events: &mut Vec<Event>,
    command: &SetMeshConfig,
) -> Result<(), StoreError> {
    let current = generation(store);
    if command.base != current {
        return Err(StoreError::MeshConfigChanged { base: command.base, current });
    }
    for change in &command.changes {
        name::check(&change.kind)?;
        name::check(&change.name)?;
    }
    let held = store.live(KeyRange::Between(PREFIX, PREFIX_END)).count();
    store.revise(events, |writer| {
        let mut documents = held;
        for change in &command.changes {
            let key = key(&change.kind, &change.name);
            match &change.document {
                Some(document) => {
                    documents += usize::from(writer.set(key, document.clone(), 0).is_none());
                }
                None => documents -= usize::from(writer.delete(&key)),
            }
        }
        writer.set(Bytes::from_static(GENERATION), json(&Generation { documents }), 0);
    });
    Ok(())
}

/// The revision of the last change; 0 if there was none.
pub(crate) fn generation(store: &Store) -> Revision {
    let held =
        store.current(GENERATION).and_then(|version| version.key_value(Bytes::from_static(GENERATION)));
    held.map_or(0, |kv| kv.mod_revision)
}

/// All documents, sorted by kind and name.
pub(crate) fn documents(store: &Store) -> Vec<MeshDocument> {
    let all = store.live(KeyRange::Between(PREFIX, PREFIX_END));
    let documents = all.filter_map(|(key, version)| {
        let kv = version.key_value(key.to_bytes())?;
        let path = std::str::from_utf8(kv.key.strip_prefix(PREFIX)?).ok()?;
        let (kind, name) = path.split_once('/')?;
        Some(MeshDocument {
            kind: name::decode(kind)?,
            name: name::decode(name)?,
            document: kv.value,
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
        })
    });
    documents.collect()
}

pub(crate) fn key(kind: &str, name: &str) -> Bytes {
    Bytes::from(format!("weft/mesh/config/{}/{}", name::encode(kind), name::encode(name)))
}
