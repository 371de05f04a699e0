//! Who may call a service: what its sidecar decides by, in front of the app. Envoy has a filter of its listeners for it; here
//! it travels in the metadata of the service's cluster (`weft.guard`), where Envoy and gRPC overlook it, and the service's own
//! sidecars read it.

use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use serde::{Deserialize, Serialize};

use super::cluster::tls::is_dns_name;
use super::{InvalidResource, Validator};

/// Namespace in a cluster's metadata.
pub(super) const NAMESPACE: &str = "weft.guard";
/// Key of it that holds all.
const KEY: &str = "json";
/// Largest encoding, in bytes.
pub const GUARD_BYTES_MAX: usize = 1024 * 1024;
/// Most policies of a service.
pub const POLICIES_MAX: usize = 256;

/// All that is to be asked of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Guard {
    /// Tokens that are taken.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<TokenIssuer>,
    /// Who may do what. None that allows: everybody everything that none denies.
    pub policies: Vec<AuthzPolicy>,
}

/// Whose tokens (JWT, RFC 7519) are taken.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TokenIssuer {
    /// `iss` of its tokens.
    pub issuer: String,
    /// `aud` has to be one of these, if there are any.
    pub audiences: Vec<String>,
    /// Its keys (JWKS, RFC 7517), as a text.
    pub jwks: Option<String>,
    /// A file with them, of the sidecar's machine.
    pub jwks_file: Option<String>,
    /// Where a service publishes them ([`JwksUri`]).
    pub jwks_uri: Option<String>,
    /// After how many seconds they are fetched again.
    pub jwks_refresh_secs: u64,
    /// By how many seconds clocks may differ.
    pub leeway_secs: u64,
    /// The app sees the token too.
    pub forward: bool,
}

/// Where a service of the mesh publishes its keys.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct JwksUri {
    /// It is wanted over TLS.
    pub tls: bool,
    /// Its name.
    pub service: String,
    /// With its query, if there is one.
    pub path: String,
}

impl JwksUri {
    /// What [`Self::parse`] takes.
    pub const ALLOWED: &str =
        "http://SERVICE/PATH, or https:// if the service's TrafficPolicy has tls; without port";

    /// `http://SERVICE/PATH` or `https://SERVICE/PATH`.
    ///
    /// # Errors
    /// What is allowed.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (tls, rest) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => return Err(Self::ALLOWED),
        };
        let (service, path) = rest.split_once('/').ok_or(Self::ALLOWED)?;
        let visible = text.len() <= 2048 && path.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
        if !visible || !is_dns_name(service) || service.parse::<std::net::IpAddr>().is_ok() {
            return Err(Self::ALLOWED);
        }
        Ok(Self { tls, service: service.to_owned(), path: format!("/{path}") })
    }
}

impl std::fmt::Display for JwksUri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}{}", if self.tls { "https" } else { "http" }, self.service, self.path)
    }
}

/// One policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthzPolicy {
    /// Name of its document.
    pub name: String,
    /// What becomes of requests that one of its rules is for.
    pub action: AuthzAction,
    /// It decides nothing: what it would deny is noted.
    pub audit: bool,
    /// None of them: it is for no request.
    pub rules: Vec<AuthzRule>,
}

/// See [`AuthzPolicy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuthzAction {
    /// They are let in, and others are not, unless another policy allows them.
    Allow,
    /// They are refused, whatever others allow.
    Deny,
}

/// Conditions on a request: one of `from`, one of `to` and all of `when`; where there are none, any.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuthzRule {
    /// Who calls.
    pub from: Vec<AuthzSource>,
    /// What is asked for.
    pub to: Vec<AuthzOperation>,
    /// Fields of the request's head.
    pub when: Vec<AuthzCondition>,
}

/// Who calls: all lists that are not empty have to hold, each by one of its patterns.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuthzSource {
    /// SPIFFE IDs.
    pub principals: Vec<String>,
    /// None of these.
    pub not_principals: Vec<String>,
    /// What stands behind `/ns/` in them.
    pub namespaces: Vec<String>,
    /// None of these.
    pub not_namespaces: Vec<String>,
    /// `ISSUER/SUBJECT` of a token.
    pub request_principals: Vec<String>,
    /// Addresses, as IP/BITS.
    pub ip_blocks: Vec<String>,
    /// None of these.
    pub not_ip_blocks: Vec<String>,
}

/// What is asked for, as [`AuthzSource`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuthzOperation {
    /// Methods.
    pub methods: Vec<String>,
    /// None of these.
    pub not_methods: Vec<String>,
    /// Paths, without the query.
    pub paths: Vec<String>,
    /// None of these.
    pub not_paths: Vec<String>,
    /// Hosts, without port.
    pub hosts: Vec<String>,
}

/// A field of the request's head has one of these values, and none of those. One that is missing has none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuthzCondition {
    /// Name of the field, in lower case.
    pub header: String,
    /// Patterns.
    pub values: Vec<String>,
    /// Patterns.
    pub not_values: Vec<String>,
}

impl Guard {
    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty() && self.tokens.is_empty()
    }

    /// Both.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        self.policies.extend(other.policies.iter().cloned());
        self.tokens.extend(other.tokens.iter().cloned());
        self
    }
}

pub(super) fn decode(v: &Validator<'_>, metadata: &Struct) -> Result<Guard, InvalidResource> {
    let at = format!("metadata[{NAMESPACE}].{KEY}");
    let Some(Kind::StringValue(text)) = metadata.fields.get(KEY).and_then(|f| f.kind.as_ref()) else {
        return Err(v.error(at, "no text", "a text"));
    };
    if text.len() > GUARD_BYTES_MAX {
        return Err(v.error(at, format!("{} bytes", text.len()), format!("at most {GUARD_BYTES_MAX} bytes")));
    }
    let guard: Guard =
        serde_json::from_str(text).map_err(|error| v.error(&at, error.to_string(), "policies as JSON"))?;
    if guard.policies.len() > POLICIES_MAX {
        let seen = format!("{} policies", guard.policies.len());
        return Err(v.error(at, seen, format!("at most {POLICIES_MAX}")));
    }
    Ok(guard)
}

pub(super) fn encode(guard: &Guard) -> (String, Struct) {
    let text = serde_json::to_string(guard).expect("texts and numbers serialise");
    let value = Value { kind: Some(Kind::StringValue(text)) };
    (NAMESPACE.to_owned(), Struct { fields: [(KEY.to_owned(), value)].into() })
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::cluster::v3 as pb;

    use super::*;
    use crate::resource::cluster::Cluster;

    fn guard() -> Guard {
        let source = AuthzSource { principals: vec!["spiffe://a/*".into()], ..AuthzSource::default() };
        let rule = AuthzRule { from: vec![source], ..AuthzRule::default() };
        let policy =
            AuthzPolicy { name: "p".into(), action: AuthzAction::Deny, audit: true, rules: vec![rule] };
        Guard { policies: vec![policy], ..Guard::default() }
    }

    #[test]
    fn keys_are_at_a_service_by_its_name() {
        for text in ["http://login/jwks.json", "https://login/", "http://login.shop/keys?v=1"] {
            assert_eq!(JwksUri::parse(text).unwrap().to_string(), text);
        }
        for text in [
            "login/jwks.json",
            "http://login",
            "ftp://login/a",
            "http://login:80/a",
            "http://10.0.0.1/a",
            "http://a@login/a",
            "http:///a",
            "http://lo gin/a",
            "http://login/a b",
            "http://login/a#b",
        ] {
            assert_eq!(JwksUri::parse(text), Err(JwksUri::ALLOWED), "{text}");
        }
    }

    #[test]
    fn a_guard_survives_the_wire_and_an_unreadable_one_is_refused_whole() {
        let cluster = Cluster { guard: Some(guard()), ..Cluster::with_defaults("orders") };
        let mut proto = pb::Cluster::from(&cluster);
        assert_eq!(Cluster::try_from(proto.clone()).unwrap().guard, Some(guard()));
        let metadata = proto.metadata.as_mut().unwrap().filter_metadata.get_mut(NAMESPACE).unwrap();
        let text = Value { kind: Some(Kind::StringValue("{\"policies\":[{\"name\":\"p\"}]}".into())) };
        metadata.fields.insert(KEY.into(), text);
        let refused = Cluster::try_from(proto).unwrap_err();
        assert_eq!(refused.field, "metadata[weft.guard].json", "half a policy would let in whom it denies");
    }
}
