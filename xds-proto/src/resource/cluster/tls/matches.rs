//! Endpoints of one cluster that are connected to in different ways: Envoy's `transport_socket_matches`. Istio says so which
//! endpoints are sidecars (`tlsMode: istio`).
//!
//! What an endpoint says of itself in its metadata under `envoy.transport_socket_match` is read into labels of this name, a dot
//! and the key, so that it is shown with the others.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use pb::cluster::TransportSocketMatch;
use serde::Serialize;

use super::encode::to_socket;
use super::{UpstreamTls, socket};
use crate::resource::cluster::{Protocol, Validator};
use crate::resource::{InvalidResource, endpoint, labels};

/// Most entries of a cluster.
pub const MATCHES_MAX: usize = 64;

/// How endpoints with these labels are connected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SocketMatch {
    /// For people.
    pub name: String,
    /// All of them must be the endpoint's; empty: every endpoint.
    pub labels: BTreeMap<String, String>,
    /// None: as a cluster without TLS is.
    pub tls: Option<UpstreamTls>,
}

impl SocketMatch {
    /// Whether an endpoint with these labels is connected to so.
    pub fn is_for(&self, labels: &BTreeMap<String, String>) -> bool {
        self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

pub(super) fn decode(v: &Validator<'_>, p: &pb::Cluster) -> Result<Vec<SocketMatch>, InvalidResource> {
    let all = &p.transport_socket_matches;
    if all.len() > MATCHES_MAX {
        let allowed = format!("at most {MATCHES_MAX}");
        return Err(v.error("transport_socket_matches", all.len().to_string(), allowed));
    }
    all.iter()
        .enumerate()
        .map(|(i, one)| decode_one(v, &format!("transport_socket_matches[{i}]"), one))
        .collect()
}

fn decode_one(v: &Validator<'_>, at: &str, p: &TransportSocketMatch) -> Result<SocketMatch, InvalidResource> {
    let mut labels = BTreeMap::new();
    for (key, value) in p.r#match.iter().flat_map(|wanted| &wanted.fields) {
        let Some(text) = endpoint::text_of(value) else {
            return Err(v.error(
                format!("{at}.match.{key}"),
                "another value",
                "a text, a number, true or false",
            ));
        };
        labels.insert(labels::socket_match(key), text);
    }
    let Some(wanted) = &p.transport_socket else {
        return Err(v.error(
            format!("{at}.transport_socket"),
            "nothing",
            "an UpstreamTlsContext or RawBuffer",
        ));
    };
    Ok(SocketMatch {
        name: p.name.clone(),
        labels,
        tls: socket(v, &format!("{at}.transport_socket"), wanted)?,
    })
}

pub(super) fn encode(one: &SocketMatch, protocol: Protocol) -> TransportSocketMatch {
    let key = |label: &str| label.strip_prefix(&labels::socket_match("")).unwrap_or(label).to_owned();
    let text = |text: &String| Value { kind: Some(Kind::StringValue(text.clone())) };
    let fields = one.labels.iter().map(|(label, value)| (key(label), text(value)));
    TransportSocketMatch {
        name: one.name.clone(),
        r#match: Some(Struct { fields: fields.collect() }),
        transport_socket: Some(to_socket(one.tls.as_ref(), protocol)),
    }
}
