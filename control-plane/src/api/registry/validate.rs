//! Turns the body of `POST /register` into a [`RegisteredInstance`], or names everything that is wrong with it.
//!
//! Nothing is guessed and nothing is stored unless all of it is valid: a field of the wrong type, an unknown
//! field and a repeated field are refused like a value out of range.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::Serialize;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use weft_state::command::RegisteredInstance;
use weft_xds_proto::resource::labels;

/// Seconds an instance lives without a heartbeat, unless it says otherwise: the source document's 30 s lease.
pub const TTL_SECS_DEFAULT: i64 = 30;
/// Shorter ones would expire on an ordinary pause of the instance or an election of ours.
pub const TTL_SECS_MIN: i64 = 2;
/// A day: longer ones would keep the dead listed for days.
pub const TTL_SECS_MAX: i64 = 86_400;
/// Longest instance id, in bytes.
pub const INSTANCE_ID_BYTES_MAX: usize = 128;
/// Most metadata entries.
pub const METADATA_ENTRIES_MAX: usize = 64;
/// Longest metadata key, in bytes.
pub const METADATA_KEY_BYTES_MAX: usize = 128;
/// Longest metadata value, in bytes.
pub const METADATA_VALUE_BYTES_MAX: usize = 1_024;
/// Longest health path, in bytes.
pub const HEALTH_PATH_BYTES_MAX: usize = 512;

const SERVICE_ALLOWED: &str =
    "a DNS label: 1 to 63 of a-z, 0-9 and '-', neither first nor last character a '-'";
const ID_ALLOWED: &str = "1 to 128 printable ASCII characters without '/' or space";
const HOST_ALLOWED: &str = "an IP address that can be connected to, or a host name, without port or brackets";
const PORT_ALLOWED: &str = "a whole number from 1 to 65535";
const METADATA_ALLOWED: &str =
    "an object of at most 64 entries; keys of 1 to 128 bytes, values texts of at most 1024 bytes";
const TTL_ALLOWED: &str = "whole seconds from 2 s to 24 h, as a number or a text such as \"30s\" or \"5m\"";
const CHECK_ALLOWED: &str = "an object with a \"path\" that starts with '/', such as {\"path\":\"/health\"}";
const FIELDS_ALLOWED: &str = "service, instance_id, host, port, metadata, ttl, check";

/// One thing that is wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The field, with a dot for nested ones; `body` if the whole is unreadable.
    pub field: String,
    /// What is wrong, with the value seen.
    pub error: String,
    /// What would be right.
    pub allowed: String,
}

impl Problem {
    fn new(field: impl Into<String>, error: impl fmt::Display, allowed: &str) -> Self {
        Self { field: field.into(), error: error.to_string(), allowed: allowed.to_owned() }
    }
}

/// Validates a registration.
///
/// # Errors
/// All problems at once, in the order of the fields. Never empty.
pub fn registration(body: &[u8]) -> Result<RegisteredInstance, Vec<Problem>> {
    let fields = match serde_json::from_slice::<Fields>(body) {
        Ok(fields) => fields,
        Err(error) => {
            return Err(vec![Problem::new(
                "body",
                format!("not a JSON object: {error}"),
                "a JSON object such as {\"service\":\"orders\",\"instance_id\":\"orders-1\",\
                 \"host\":\"127.0.0.1\",\"port\":8080}",
            )]);
        }
    };
    let mut problems = Vec::new();
    let service = required(&fields, "service", SERVICE_ALLOWED, &mut problems, service_name);
    let instance_id = required(&fields, "instance_id", ID_ALLOWED, &mut problems, instance_id);
    let host = required(&fields, "host", HOST_ALLOWED, &mut problems, host);
    let port = required(&fields, "port", PORT_ALLOWED, &mut problems, port);
    let metadata = fields.find("metadata").map(|v| metadata(v, &mut problems)).unwrap_or_default();
    let ttl_secs = match fields.find("ttl").map(ttl_secs) {
        None => TTL_SECS_DEFAULT,
        Some(Ok(secs)) => secs,
        Some(Err(error)) => {
            problems.push(Problem::new("ttl", error, TTL_ALLOWED));
            TTL_SECS_DEFAULT
        }
    };
    let health_path = fields.find("check").and_then(|v| check(v, &mut problems));
    fields.refuse_others("", &FIELDS, FIELDS_ALLOWED, &mut problems);
    match (service, instance_id, host, port) {
        (Some(service), Some(instance_id), Some(host), Some(port)) if problems.is_empty() => {
            Ok(RegisteredInstance { service, instance_id, host, port, metadata, health_path, ttl_secs })
        }
        _ => Err(problems),
    }
}

/// Checks a service name.
///
/// # Errors
/// What is wrong with it.
pub fn service_name_text(name: &str) -> Result<(), Problem> {
    service_name(&Value::String(name.to_owned()))
        .map(drop)
        .map_err(|e| Problem::new("service", e, SERVICE_ALLOWED))
}

/// Checks an instance id.
///
/// # Errors
/// What is wrong with it.
pub fn instance_id_text(id: &str) -> Result<(), Problem> {
    instance_id(&Value::String(id.to_owned()))
        .map(drop)
        .map_err(|e| Problem::new("instance_id", e, ID_ALLOWED))
}

const FIELDS: [&str; 7] = ["service", "instance_id", "host", "port", "metadata", "ttl", "check"];

fn required<T>(
    fields: &Fields,
    name: &str,
    allowed: &str,
    problems: &mut Vec<Problem>,
    parse: impl Fn(&Value) -> Result<T, String>,
) -> Option<T> {
    let parsed = match fields.find(name) {
        Some(value) => parse(value),
        None => Err("is missing".to_owned()),
    };
    parsed.map_err(|error| problems.push(Problem::new(name, error, allowed))).ok()
}

fn text(value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| format!("is {}, not a text", shown(value)))
}

fn service_name(value: &Value) -> Result<String, String> {
    let name = text(value)?;
    let ends_well = !name.starts_with('-') && !name.ends_with('-');
    let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if (1..=weft_core::limits::SERVICE_NAME_BYTES_MAX).contains(&name.len()) && plain && ends_well {
        Ok(name.to_owned())
    } else {
        Err(format!("is {} ({} bytes)", shown(value), name.len()))
    }
}

fn instance_id(value: &Value) -> Result<String, String> {
    let id = text(value)?;
    let printable = id.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
    if (1..=INSTANCE_ID_BYTES_MAX).contains(&id.len()) && printable {
        Ok(id.to_owned())
    } else {
        Err(format!("is {} ({} bytes)", shown(value), id.len()))
    }
}

fn host(value: &Value) -> Result<String, String> {
    let host = text(value)?;
    if let Ok(ip) = host.parse::<IpAddr>() {
        let broadcast = ip == IpAddr::V4(std::net::Ipv4Addr::BROADCAST);
        if ip.is_unspecified() || ip.is_multicast() || broadcast {
            return Err(format!("is {host}, which nobody can connect to"));
        }
        // One spelling per address, so that equal addresses compare equal.
        return Ok(ip.to_string());
    }
    let label_ok = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    // A last label of digits only is a malformed IPv4 address, never a host name (RFC 3696 §2).
    let last_is_number = name.rsplit('.').next().is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit()));
    if (1..=253).contains(&name.len()) && name.split('.').all(label_ok) && !last_is_number {
        Ok(name.to_ascii_lowercase())
    } else {
        Err(format!("is {}", shown(value)))
    }
}

fn port(value: &Value) -> Result<u16, String> {
    value
        .as_u64()
        .and_then(|n| u16::try_from(n).ok())
        .filter(|n| *n != 0)
        .ok_or_else(|| format!("is {}", shown(value)))
}

fn metadata(value: &Value, problems: &mut Vec<Problem>) -> BTreeMap<String, String> {
    let Some(object) = value.as_object() else {
        problems.push(Problem::new("metadata", format!("is {}", shown(value)), METADATA_ALLOWED));
        return BTreeMap::new();
    };
    if object.len() > METADATA_ENTRIES_MAX {
        problems.push(Problem::new("metadata", format!("has {} entries", object.len()), METADATA_ALLOWED));
        return BTreeMap::new();
    }
    let mut entries = BTreeMap::new();
    for (key, value) in object {
        let field = format!("metadata.{}", clip(key));
        if !(1..=METADATA_KEY_BYTES_MAX).contains(&key.len()) || key.chars().any(char::is_control) {
            problems.push(Problem::new(
                field,
                format!("has a key of {} bytes or with control characters", key.len()),
                METADATA_ALLOWED,
            ));
            continue;
        }
        match value.as_str() {
            Some(text) if text.len() <= METADATA_VALUE_BYTES_MAX => match labels::check(key, text) {
                Ok(()) => drop(entries.insert(key.clone(), text.to_owned())),
                Err(allowed) => problems.push(Problem::new(field, format!("is {}", shown(value)), allowed)),
            },
            Some(text) => problems.push(Problem::new(
                field,
                format!("has a value of {} bytes", text.len()),
                METADATA_ALLOWED,
            )),
            None => problems.push(Problem::new(
                field,
                format!("is {}, not a text", shown(value)),
                METADATA_ALLOWED,
            )),
        }
    }
    entries
}

fn ttl_secs(value: &Value) -> Result<i64, String> {
    let secs = match value {
        Value::String(text) => {
            let parsed =
                weft_core::config::parse_duration(text).map_err(|_| format!("is {}", shown(value)))?;
            if parsed.subsec_nanos() != 0 {
                return Err(format!("is {}, not whole seconds", shown(value)));
            }
            i64::try_from(parsed.as_secs()).unwrap_or(i64::MAX)
        }
        _ => value.as_i64().ok_or_else(|| format!("is {}", shown(value)))?,
    };
    if (TTL_SECS_MIN..=TTL_SECS_MAX).contains(&secs) { Ok(secs) } else { Err(format!("is {}", shown(value))) }
}

fn check(value: &Value, problems: &mut Vec<Problem>) -> Option<String> {
    let Some(object) = value.as_object() else {
        problems.push(Problem::new("check", format!("is {}", shown(value)), CHECK_ALLOWED));
        return None;
    };
    for key in object.keys().filter(|k| *k != "path") {
        problems.push(Problem::new(format!("check.{}", clip(key)), "is not a field of check", "path"));
    }
    let path = match object.get("path") {
        None => Err("is missing".to_owned()),
        Some(value) => text(value).and_then(|path| {
            let plain = path.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
            if path.starts_with('/') && path.len() <= HEALTH_PATH_BYTES_MAX && plain {
                Ok(path.to_owned())
            } else {
                Err(format!("is {} ({} bytes)", shown(value), path.len()))
            }
        }),
    };
    path.map_err(|error| problems.push(Problem::new("check.path", error, CHECK_ALLOWED))).ok()
}

/// A value as the error shows it, cut to a bounded length.
fn shown(value: &Value) -> String {
    match value {
        Value::Object(_) => "an object".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        other => clip(&other.to_string()),
    }
}

fn clip(text: &str) -> String {
    const CHARS_SHOWN_MAX: usize = 80;
    match text.char_indices().nth(CHARS_SHOWN_MAX) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_owned(),
    }
}

/// A JSON object that remembers its order and its repetitions, which a map would swallow.
#[derive(Debug)]
struct Fields(Vec<(String, Value)>);

impl Fields {
    /// The first field of that name.
    fn find(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v)
    }

    fn refuse_others(&self, prefix: &str, known: &[&str], allowed: &str, problems: &mut Vec<Problem>) {
        for (i, (name, _)) in self.0.iter().enumerate() {
            let field = format!("{prefix}{}", clip(name));
            if !known.contains(&name.as_str()) {
                problems.push(Problem::new(field, "is not a field of a registration", allowed));
            } else if self.0[..i].iter().any(|(n, _)| n == name) {
                problems.push(Problem::new(field, "is given more than once", "once"));
            }
        }
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor;
        impl<'de> Visitor<'de> for ObjectVisitor {
            type Value = Fields;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    fields.push(entry);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(ObjectVisitor)
    }
}

#[cfg(test)]
mod tests;
