//! Rules that Envoy has no field for, as numbers in a cluster's metadata, each under a name of its own.

use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};

use super::{InvalidResource, Validator};

/// The numbers of one rule.
pub(super) struct Numbers<'a> {
    v: &'a Validator<'a>,
    name: &'static str,
    rule: &'a Struct,
}

impl<'a> Numbers<'a> {
    /// None if there is no such rule.
    pub fn of(v: &'a Validator<'a>, name: &'static str, metadata: Option<&'a Metadata>) -> Option<Self> {
        Some(Self { v, name, rule: metadata?.filter_metadata.get(name)? })
    }

    /// One of them.
    ///
    /// # Errors
    /// If it is missing, or no whole number in the range.
    pub fn get(&self, field: &str, (min, max): (u32, u32)) -> Result<u32, InvalidResource> {
        match self.rule.fields.get(field).map(|value| &value.kind) {
            Some(Some(Kind::NumberValue(n)))
                if n.fract() == 0.0 && (f64::from(min)..=f64::from(max)).contains(n) =>
            {
                Ok(*n as u32)
            }
            other => {
                let seen = match other {
                    Some(Some(Kind::NumberValue(n))) => n.to_string(),
                    Some(_) => "no number".to_owned(),
                    None => "nothing".to_owned(),
                };
                let allowed = format!("a whole number from {min} to {max}");
                Err(self.v.error(format!("metadata[{}].{field}", self.name), seen, allowed))
            }
        }
    }

    /// One of them, or a default if it is missing.
    ///
    /// # Errors
    /// If it is no whole number in the range.
    pub fn get_or(&self, field: &str, default: u32, range: (u32, u32)) -> Result<u32, InvalidResource> {
        if self.rule.fields.contains_key(field) { self.get(field, range) } else { Ok(default) }
    }
}

pub(super) fn encode(name: &str, numbers: &[(&str, u32)]) -> (String, Struct) {
    let number = |n: u32| Value { kind: Some(Kind::NumberValue(f64::from(n))) };
    let fields = numbers.iter().map(|(name, n)| ((*name).to_owned(), number(*n))).collect();
    (name.to_owned(), Struct { fields })
}
