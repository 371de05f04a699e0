//! What the sidecars of a service make of a request: whether its caller is let in, by which policy and which of its rules.
//! The decision is [`crate::policy::authz`]'s own.

use std::net::{IpAddr, Ipv4Addr};

use http::header::{AUTHORIZATION, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, request};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weft_core::tls::spiffe::SpiffeId;
use weft_xds_proto::resource::guard::{AuthzAction, AuthzPolicy, Guard, TokenIssuer};

use crate::jwks::Sources;
use crate::policy::authz::{Call, Decision, Http, Policies, Refusal};
use crate::policy::jwt::{Tokens, bearer};
use crate::tls::live::Certificates;

/// Who calls, as far as it is known.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    /// By its certificate; none if it shows none.
    pub identity: Option<SpiffeId>,
    /// Where its connections come from.
    pub ip: Option<IpAddr>,
}

/// A request as an endpoint gets it, as far as policies look at it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sent {
    method: String,
    /// In lower case, without port.
    host: String,
    /// In its normal form, without its query.
    path: String,
    headers: Vec<(String, String)>,
}

impl Sent {
    pub(super) fn of(head: &request::Parts, host: String) -> Self {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let others = head.headers.iter().filter(|(name, _)| *name != HOST);
        Self {
            method: head.method.as_str().to_owned(),
            host,
            path: head.uri.path().to_owned(),
            headers: others.map(|(name, value)| (name.as_str().to_owned(), text(value))).collect(),
        }
    }

    fn header_map(&self) -> HeaderMap {
        let field = |(name, value): &(String, String)| {
            Some((name.parse::<HeaderName>().ok()?, HeaderValue::try_from(value).ok()?))
        };
        self.headers.iter().filter_map(field).collect()
    }
}

/// What becomes of the request at a service of which the mesh says this. `now` in seconds of the Unix epoch.
///
/// `verdict` is `ALLOW`, `DENY`, or `AUDIT`: let in, and refused if policies of mode Audit decided.
pub fn admission(guard: Option<&Guard>, caller: &Caller, sent: &Sent, now: u64) -> Value {
    let nothing = Guard::default();
    let guard = guard.unwrap_or(&nothing);
    let policies = match Policies::new(&guard.policies) {
        Ok(policies) => policies,
        Err(why) => return denied(403, format!("its policies cannot be used: {why}")),
    };
    let mut headers = sent.header_map();
    let token = match token(&guard.tokens, &mut headers, now) {
        Ok(principal) => principal,
        Err(why) => return denied(401, format!("the token does not hold: {why}")),
    };
    let call = Call {
        principal: caller.identity.as_ref(),
        request_principal: token.as_deref(),
        client: caller.ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        http: Some(Http { method: &sent.method, path: &sent.path, host: &sent.host, headers: &headers }),
    };
    let rules = policies.rules_for(&call);
    let by = |policy: &AuthzPolicy, rule: Option<usize>| {
        json!({
            "name": policy.name,
            "action": if policy.action == AuthzAction::Deny { "DENY" } else { "ALLOW" },
            "mode": if policy.audit { "Audit" } else { "Enforce" },
            "rule": rule.map(|n| format!("spec.rules[{n}]")),
        })
    };
    let all: Vec<Value> = guard.policies.iter().zip(&rules).map(|(p, rule)| by(p, *rule)).collect();
    let mut told = match policies.decide(&call) {
        Decision::Refused(_) if token.is_none() && !guard.tokens.is_empty() => {
            denied(401, "no AuthorizationPolicy lets it in without a token".to_owned())
        }
        Decision::Refused(why) => denied(403, refusal(why, &all, "Enforce")),
        Decision::LetInWouldRefuse(why) => {
            json!({ "verdict": "AUDIT", "why": format!("let in; {}", refusal(why, &all, "Audit")) })
        }
        Decision::LetIn => json!({ "verdict": "ALLOW", "why": allowed(&all) }),
    };
    told["policies"] = all.into();
    told["token"] = token.into();
    told
}

fn denied(status: u16, why: String) -> Value {
    json!({ "verdict": "DENY", "status": status, "why": why })
}

/// The same words as in the sidecar's log, and the rule.
fn refusal(why: Refusal<'_>, all: &[Value], mode: &str) -> String {
    let rule = match why {
        // Of those that decide, the first that denies it is the one.
        Refusal::Denied(name) => all
            .iter()
            .filter(|p| p["name"] == name && p["action"] == "DENY" && (p["mode"] == mode || mode == "Audit"))
            .find_map(|p| p["rule"].as_str()),
        Refusal::NotAllowed => None,
    };
    let rule = rule.map(|rule| format!(" by {rule}")).unwrap_or_default();
    let mood = if mode == "Audit" { "if policies of mode Audit decided: " } else { "" };
    format!("{mood}{why}{rule}")
}

fn allowed(all: &[Value]) -> String {
    let enforced = |p: &&Value| p["mode"] == "Enforce" && p["action"] == "ALLOW";
    match all.iter().filter(enforced).find_map(|p| Some((p["name"].as_str()?, p["rule"].as_str()?))) {
        Some((name, rule)) => format!("AuthorizationPolicy {name} allows it by {rule}"),
        None if all.is_empty() => "no AuthorizationPolicy is for this service".to_owned(),
        None => "no AuthorizationPolicy denies it, and none says who is allowed".to_owned(),
    }
}

/// Whose token the request carries, if it carries one. As in a sidecar, one that the app is not to see is no field of the
/// request any more for the policies.
fn token(rules: &[TokenIssuer], headers: &mut HeaderMap, now: u64) -> Result<Option<String>, String> {
    let carries = headers.get_all(AUTHORIZATION).iter().any(|field| bearer(field.as_bytes()).is_some());
    if rules.is_empty() || !carries {
        return Ok(None);
    }
    // Other keys are where the sidecars are.
    let (here, elsewhere): (Vec<_>, Vec<_>) = rules.iter().cloned().partition(|rule| rule.jwks.is_some());
    let unknown = || {
        let issuers: Vec<_> = elsewhere.iter().map(|rule| rule.issuer.as_str()).collect();
        format!(
            "it is of no issuer whose keys are in the document; those of {} are not seen here",
            issuers.join(", ")
        )
    };
    match Tokens::new("explain", &here, &Certificates::default(), &Sources::default()) {
        None => Err(unknown()),
        Some(tokens) => match tokens.verify(headers, now) {
            Ok(verified) => {
                if verified.as_ref().is_some_and(|token| !token.forward) {
                    headers.remove(AUTHORIZATION);
                }
                Ok(verified.map(|token| token.principal))
            }
            Err(why) if elsewhere.is_empty() => Err(why.to_string()),
            Err(why) => Err(format!("{why}; {}", unknown())),
        },
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use weft_xds_proto::resource::guard::{AuthzCondition, AuthzOperation, AuthzRule, AuthzSource};

    use super::*;

    fn policy(name: &str, action: AuthzAction, audit: bool, rules: Vec<AuthzRule>) -> AuthzPolicy {
        AuthzPolicy { name: name.to_owned(), action, audit, rules }
    }

    fn from(namespace: &str) -> AuthzRule {
        let source = AuthzSource { namespaces: vec![namespace.to_owned()], ..AuthzSource::default() };
        AuthzRule { from: vec![source], ..AuthzRule::default() }
    }

    fn path(path: &str) -> AuthzRule {
        let operation = AuthzOperation { paths: vec![path.to_owned()], ..AuthzOperation::default() };
        AuthzRule { to: vec![operation], ..AuthzRule::default() }
    }

    fn judged(policies: Vec<AuthzPolicy>, identity: Option<&str>, path: &str) -> Value {
        let guard = Guard { policies, ..Guard::default() };
        let head = Request::builder().uri(path).body(()).unwrap().into_parts().0;
        let caller = Caller { identity: identity.map(|id| SpiffeId::parse(id).unwrap()), ip: None };
        admission(Some(&guard), &caller, &Sent::of(&head, "orders".to_owned()), 0)
    }

    const SHOP: Option<&str> = Some("spiffe://mesh/ns/shop/sa/web");

    #[test]
    fn the_policy_and_the_rule_that_decide_are_named() {
        let allow = || policy("callers", AuthzAction::Allow, false, vec![from("batch"), from("shop")]);
        let deny = || policy("no-admin", AuthzAction::Deny, false, vec![path("/other"), path("/admin/*")]);
        for (policies, identity, path, verdict, why) in [
            (vec![], None, "/a", "ALLOW", "no AuthorizationPolicy is for this service"),
            (vec![allow()], SHOP, "/a", "ALLOW", "AuthorizationPolicy callers allows it by spec.rules[1]"),
            (vec![allow()], None, "/a", "DENY", "no AuthorizationPolicy allows it"),
            (
                vec![allow(), deny()],
                SHOP,
                "/admin/x",
                "DENY",
                "AuthorizationPolicy no-admin denies it by spec.rules[1]",
            ),
            (
                vec![deny()],
                None,
                "/a",
                "ALLOW",
                "no AuthorizationPolicy denies it, and none says who is allowed",
            ),
        ] {
            let told = judged(policies, identity, path);
            assert_eq!(
                (told["verdict"].as_str(), told["why"].as_str()),
                (Some(verdict), Some(why)),
                "{told}"
            );
        }
    }

    #[test]
    fn what_audit_would_refuse_is_let_in_and_told() {
        let told = judged(vec![policy("try", AuthzAction::Deny, true, vec![from("shop")])], SHOP, "/");
        let why =
            "let in; if policies of mode Audit decided: AuthorizationPolicy try denies it by spec.rules[0]";
        assert_eq!((told["verdict"].as_str(), told["why"].as_str()), (Some("AUDIT"), Some(why)), "{told}");
        assert_eq!(told["policies"][0]["mode"], "Audit");
    }

    #[test]
    fn a_token_is_asked_for_where_it_could_help_and_judged_where_its_keys_are_known() {
        let rule = TokenIssuer {
            issuer: "https://login.example".to_owned(),
            jwks_file: Some("/etc/keys.json".to_owned()),
            ..TokenIssuer::default()
        };
        let policies = vec![policy("users", AuthzAction::Allow, false, vec![from("shop")])];
        let guard = Guard { policies, tokens: vec![rule] };
        let told = |authorization: Option<&str>| {
            let mut request = Request::builder().uri("/");
            if let Some(text) = authorization {
                request = request.header(AUTHORIZATION, text);
            }
            let head = request.body(()).unwrap().into_parts().0;
            admission(Some(&guard), &Caller::default(), &Sent::of(&head, "orders".to_owned()), 0)
        };
        assert_eq!(
            (told(None)["verdict"].as_str(), told(None)["status"].as_u64()),
            (Some("DENY"), Some(401))
        );
        assert_eq!(told(Some("Basic abc"))["status"], 401, "that is the app's");
        let unseen = told(Some("Bearer a.b.c"));
        assert!(unseen["why"].as_str().unwrap().contains("https://login.example"), "{unseen}");
    }
    /// With the token of RFC 7515, appendix A.3.
    #[test]
    fn policies_see_a_token_only_where_the_app_is_shown_it() {
        let token = "Bearer eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
        let jwks = r#"{"keys": [{"kty": "EC", "crv": "P-256",
            "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;
        let shown = AuthzCondition {
            header: "authorization".to_owned(),
            values: vec!["Bearer*".to_owned()],
            ..AuthzCondition::default()
        };
        let rule = AuthzRule { when: vec![shown], ..AuthzRule::default() };
        let verdict = |forward: bool| {
            let issuer = "joe".to_owned();
            let tokens =
                vec![TokenIssuer { issuer, jwks: Some(jwks.to_owned()), forward, ..TokenIssuer::default() }];
            let policies = vec![policy("no-token", AuthzAction::Deny, false, vec![rule.clone()])];
            let head =
                Request::builder().uri("/").header(AUTHORIZATION, token).body(()).unwrap().into_parts().0;
            let sent = Sent::of(&head, "orders".to_owned());
            admission(Some(&Guard { policies, tokens }), &Caller::default(), &sent, 1_300_819_000)
        };
        for (forward, expected) in [(false, "ALLOW"), (true, "DENY")] {
            let told = verdict(forward);
            assert_eq!(told["verdict"], expected, "{told}");
        }
    }
}
