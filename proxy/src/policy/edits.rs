//! Changes of header fields.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use weft_xds_proto::resource::route as ir;

/// Removed, then set, then added.
#[derive(Debug, Default)]
pub struct Edits {
    set: Box<[(HeaderName, HeaderValue)]>,
    add: Box<[(HeaderName, HeaderValue)]>,
    remove: Box<[HeaderName]>,
}

impl Edits {
    /// From a checked configuration.
    ///
    /// # Errors
    /// If a name or value is none after all.
    pub fn new(e: &ir::HeaderEdits) -> Result<Self, String> {
        let name = |name: &str| HeaderName::try_from(name).map_err(|e| format!("header {name:?}: {e}"));
        let fields = |list: &[(String, String)]| -> Result<Box<[_]>, String> {
            let field = |(n, v): &(String, String)| {
                let value = HeaderValue::try_from(v).map_err(|e| format!("header {n:?}: value: {e}"))?;
                Ok((name(n)?, value))
            };
            list.iter().map(field).collect()
        };
        Ok(Self {
            set: fields(&e.set)?,
            add: fields(&e.add)?,
            remove: e.remove.iter().map(|n| name(n)).collect::<Result<_, _>>()?,
        })
    }

    /// Changes the fields.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
    }
}
