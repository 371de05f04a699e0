//! Validated xDS resources: the only definition, used by the server that builds them and by the proxy that
//! receives them. A value of these types is known to be usable; what is not, is refused where it is decoded,
//! with an error that names the resource, the field, what was seen and what is allowed.

use std::fmt;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::google::protobuf;
use serde::Serialize;

pub mod cluster;
pub mod endpoint;
pub mod grpc_target;
pub mod guard;
pub mod labels;
pub mod route;
pub mod subset;

/// Longest resource name, in bytes: that of a DNS name.
pub const RESOURCE_NAME_BYTES_MAX: usize = 253;

/// Why a resource cannot be used. Its text is what a NACK carries.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {name:?}: {field}: seen {seen}, allowed {allowed}")]
pub struct InvalidResource {
    /// Kind of resource, such as `Cluster`.
    pub kind: &'static str,
    /// Name of the resource, empty if it has none.
    pub name: String,
    /// Path of the field within the resource.
    pub field: String,
    /// What it holds.
    pub seen: String,
    /// What it may hold.
    pub allowed: String,
}

/// Version of a resource: a hash of its content, so that every server gives equal content the same version and a
/// proxy that moves to another server is not sent again what it has.
///
/// The hash is over the validated value, not over its encoding: protobuf maps encode in any order.
pub fn content_version(content: &impl Serialize) -> String {
    let bytes = serde_json::to_vec(content).expect("resources serialise: string keys and plain values only");
    // FNV-1a, 64 bits: stable over releases and platforms, which the standard hasher is not.
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{hash:016x}")
}

/// Builds the errors of one resource: who it is, then one call per field.
struct Validator<'a> {
    kind: &'static str,
    name: &'a str,
}

impl Validator<'_> {
    fn error(
        &self,
        field: impl Into<String>,
        seen: impl Into<String>,
        allowed: impl Into<String>,
    ) -> InvalidResource {
        InvalidResource {
            kind: self.kind,
            name: self.name.chars().take(RESOURCE_NAME_BYTES_MAX).collect(),
            field: field.into(),
            seen: seen.into(),
            allowed: allowed.into(),
        }
    }

    /// A resource name: 1 to 253 bytes, no white space or control characters.
    fn name(&self, field: &str) -> Result<String, InvalidResource> {
        let allowed = "1 to 253 bytes without spaces and control characters";
        if self.name.is_empty() || self.name.len() > RESOURCE_NAME_BYTES_MAX {
            return Err(self.error(field, format!("{} bytes", self.name.len()), allowed));
        }
        if let Some(c) = self.name.chars().find(|c| c.is_control() || c.is_whitespace()) {
            return Err(self.error(field, format!("{c:?}"), allowed));
        }
        Ok(self.name.to_owned())
    }

    /// A duration in `[min, max]`; `default` if absent.
    fn duration(
        &self,
        field: &str,
        value: Option<&protobuf::Duration>,
        default: Duration,
        (min, max): (Duration, Duration),
    ) -> Result<Duration, InvalidResource> {
        let Some(value) = value else { return Ok(default) };
        let allowed = || format!("{min:?} to {max:?}");
        let parts = (u64::try_from(value.seconds), u32::try_from(value.nanos));
        let (Ok(seconds), Ok(nanos @ 0..1_000_000_000)) = parts else {
            return Err(self.error(field, format!("{} s and {} ns", value.seconds, value.nanos), allowed()));
        };
        let duration = Duration::new(seconds, nanos);
        if duration < min || duration > max {
            return Err(self.error(field, format!("{duration:?}"), allowed()));
        }
        Ok(duration)
    }

    /// A number in `[min, max]`; `default` if absent.
    fn number(
        &self,
        field: impl fmt::Display,
        value: Option<&protobuf::UInt32Value>,
        default: u32,
        (min, max): (u32, u32),
    ) -> Result<u32, InvalidResource> {
        match value.map_or(default, |v| v.value) {
            v if (min..=max).contains(&v) => Ok(v),
            v => Err(self.error(field.to_string(), v.to_string(), format!("{min} to {max}"))),
        }
    }
}

fn duration_to_proto(d: Duration) -> protobuf::Duration {
    protobuf::Duration {
        seconds: i64::try_from(d.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(d.subsec_nanos()).expect("below 10^9"),
    }
}

/// "On this same stream."
fn over_ads() -> core::ConfigSource {
    core::ConfigSource {
        resource_api_version: core::ApiVersion::V3 as i32,
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            core::AggregatedConfigSource::default(),
        )),
        ..core::ConfigSource::default()
    }
}

fn number_to_proto(value: u32) -> protobuf::UInt32Value {
    protobuf::UInt32Value { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_content_has_an_equal_version_and_other_content_another() {
        let one = std::collections::BTreeMap::from([("a", 1), ("b", 2)]);
        let same = std::collections::BTreeMap::from([("b", 2), ("a", 1)]);
        let other = std::collections::BTreeMap::from([("a", 1), ("b", 3)]);
        assert_eq!(content_version(&one), content_version(&same));
        assert_ne!(content_version(&one), content_version(&other));
    }

    /// Servers of one group may run different releases for a while: versions must not depend on the release.
    #[test]
    fn version_of_known_content_is_stable() {
        assert_eq!(content_version(&"weft"), "f282bf413d2ff56b");
    }
}
