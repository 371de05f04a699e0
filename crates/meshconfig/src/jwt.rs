//! `RequestAuthentication`: whose tokens (JWT) a service takes. Names and meaning are Istio's, as far as it goes.

use serde::{Deserialize, Serialize};
use weft_xds_proto::resource::guard::{JwksUri, TokenIssuer};

use crate::document::{Items, ObjectRef, duration, null_is_default, spec};
use crate::shape::{Field, Problem, Rule, Shape, optional, required};

spec!(
    /// `spec` of a `RequestAuthentication`.
    #[derive(Eq)]
    RequestAuthenticationSpec { target_ref: Option<ObjectRef>, jwt_rules: Items<JwtRuleSpec>, }
);
spec!(
    /// One issuer.
    #[derive(Eq)]
    JwtRuleSpec {
        issuer: String, audiences: Items<String>, jwks: Option<String>, jwks_file: Option<String>,
        jwks_uri: Option<String>, jwks_refresh: Option<String>,
        clock_skew: Option<String>, forward_original_token: bool,
    }
);

const RULES_MAX: usize = 16;
const AUDIENCES_MAX: usize = 64;
/// By how much clocks may differ, if nobody says so: as other proxies have it.
const CLOCK_SKEW_SECS: u64 = 60;
/// After how long keys are fetched again, if nobody says so: as other proxies have it.
const REFRESH_SECS: u64 = 5 * 60;

const TEXT: Shape = Shape::Text(Rule {
    allowed: "1 to 2048 visible characters",
    pattern: "",
    check: |t| (1..=2048).contains(&t.len()) && !t.chars().any(|c| c.is_control() || c.is_whitespace()),
});
const JWKS: Shape = Shape::Text(Rule {
    allowed: "a JSON Web Key Set, up to 256 KiB",
    pattern: "",
    check: |t| {
        t.len() <= 256 * 1024
            && serde_json::from_str::<serde_json::Value>(t).is_ok_and(|v| v["keys"].is_array())
    },
});
const FILE: Shape = Shape::Text(Rule {
    allowed: "the absolute path of a file on the sidecar's machine",
    pattern: "^/",
    check: |t| t.starts_with('/') && t.len() <= 4096 && !t.contains('\0'),
});
const URI: Shape = Shape::Text(Rule {
    allowed: JwksUri::ALLOWED,
    pattern: "^https?://[^/:@]+/",
    check: |t| JwksUri::parse(t).is_ok(),
});
const REFRESH: Shape = Shape::Text(Rule {
    allowed: "a time from 1s to 24h",
    pattern: "^([0-9]{1,5}(h|m|s|ms)){1,4}$",
    check: |t| duration(t).is_some_and(|d| (1..=24 * 3600).contains(&d.as_secs())),
});
const SKEW: Shape = Shape::Text(Rule {
    allowed: "a time from 0s to 10m",
    pattern: "^([0-9]{1,5}(h|m|s|ms)){1,4}$",
    check: |t| duration(t).is_some_and(|d| d.as_secs() <= 600),
});
const RULE: Shape = Shape::Object(&[
    required("issuer", &TEXT, "who has made the tokens (iss)"),
    optional("audiences", &Shape::List(&TEXT, AUDIENCES_MAX), "tokens have to be for one of these (aud)"),
    optional("jwks", &JWKS, "its keys"),
    optional("jwksFile", &FILE, "a file with its keys, which may be replaced while it is used"),
    optional("jwksUri", &URI, "a service of the mesh that publishes its keys"),
    optional("jwksRefresh", &REFRESH, "after how long they are fetched again; 5m if missing"),
    optional("clockSkew", &SKEW, "by how much clocks may differ; 60s if missing"),
    optional("forwardOriginalToken", &Shape::Flag, "the app sees the token as well"),
]);

/// What it says, beside the service that it is for.
pub(crate) const fn keys(target: Field) -> [Field; 2] {
    [
        Field { required: false, doc: "the service; all services of the mesh if missing", ..target },
        required("jwtRules", &Shape::List(&RULE, RULES_MAX), "whose tokens are taken"),
    ]
}

impl RequestAuthenticationSpec {
    /// What keys and types alone do not say.
    pub(crate) fn check(&self, problems: &mut Vec<Problem>) {
        if self.jwt_rules.is_empty() {
            problems.push(Problem::new("spec.jwtRules", "none; allowed is at least one issuer"));
        }
        for (i, rule) in self.jwt_rules.iter().enumerate() {
            let Some(rule) = rule else { continue };
            let at = format!("spec.jwtRules[{i}]");
            let sources = [&rule.jwks, &rule.jwks_file, &rule.jwks_uri];
            if sources.iter().filter(|source| source.is_some()).count() != 1 {
                problems.push(Problem::new(&at, "allowed is one of jwks, jwksFile and jwksUri"));
            }
            if rule.jwks_refresh.is_some() && rule.jwks_uri.is_none() {
                problems.push(Problem::new(at, "jwksRefresh is given without jwksUri"));
            }
        }
    }

    /// For a service's sidecars.
    pub(crate) fn meant(&self) -> Vec<TokenIssuer> {
        let issuer = |rule: &JwtRuleSpec| TokenIssuer {
            issuer: rule.issuer.clone(),
            audiences: rule.audiences.iter().flatten().cloned().collect(),
            jwks: rule.jwks.clone(),
            jwks_file: rule.jwks_file.clone(),
            jwks_uri: rule.jwks_uri.clone(),
            jwks_refresh_secs: secs(rule.jwks_refresh.as_deref(), REFRESH_SECS),
            leeway_secs: secs(rule.clock_skew.as_deref(), CLOCK_SKEW_SECS),
            forward: rule.forward_original_token,
        };
        self.jwt_rules.iter().flatten().map(issuer).collect()
    }
}

fn secs(text: Option<&str>, otherwise: u64) -> u64 {
    text.and_then(duration).map_or(otherwise, |d| d.as_secs())
}
