//! What the sidecars of a service make of a request: whether its caller is let in, by which policy and which of its rules.
//! The decision is [`crate::policy::authz`]'s own.

use std::net::{IpAddr, Ipv4Addr};

use http::header::HOST;
use http::{HeaderMap, HeaderName, HeaderValue, request};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weft_core::tls::spiffe::SpiffeId;
use weft_xds_proto::resource::guard::{AuthzAction, AuthzPolicy, Guard};

use crate::jwks::Sources;
use crate::policy::authz::{Call, Decision, Http, Refusal};
use crate::policy::gate::Gate;
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
    pub(crate) fn of(head: &request::Parts, host: String, path: &str) -> Self {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let others = head.headers.iter().filter(|(name, _)| *name != HOST);
        Self {
            method: head.method.as_str().to_owned(),
            host,
            path: path.to_owned(),
            headers: others.map(|(name, value)| (name.as_str().to_owned(), text(value))).collect(),
        }
    }

    /// As pairs of a query to `/admission`.
    pub fn question(&self) -> Vec<(&'static str, String)> {
        let fixed = [("host", &self.host), ("path", &self.path), ("method", &self.method)];
        let headers = self.headers.iter().map(|(name, value)| ("header", format!("{name}:{value}")));
        fixed.map(|(key, value)| (key, value.clone())).into_iter().chain(headers).collect()
    }

    fn header_map(&self) -> HeaderMap {
        let field = |(name, value): &(String, String)| {
            Some((name.parse::<HeaderName>().ok()?, HeaderValue::try_from(value).ok()?))
        };
        self.headers.iter().filter_map(field).collect()
    }
}

/// What becomes of the request at a service of which the mesh says this, as far as it can be told without its sidecars: keys of
/// tokens that stand in no document are theirs alone. `now` in seconds of the Unix epoch. The answer is as [`judged`].
pub fn admission(guard: Option<&Guard>, caller: &Caller, sent: &Sent, now: u64) -> Value {
    let mut guard = guard.cloned().unwrap_or_default();
    for rule in &mut guard.tokens {
        rule.jwks_file = None;
        rule.jwks_uri = None;
    }
    let gate = Gate::new("explain", &guard, &Certificates::default(), &Sources::default());
    judged(Some((&gate, &guard)), caller, sent, now)
}

/// What a gate makes of the request; none: nobody is asked for anything. `now` in seconds of the Unix epoch.
///
/// `verdict` is `ALLOW`, `DENY`, or `AUDIT`: let in, and refused if policies of mode Audit decided.
pub(crate) fn judged(gate: Option<(&Gate, &Guard)>, caller: &Caller, sent: &Sent, now: u64) -> Value {
    let Some((gate, guard)) = gate else { return json!({ "verdict": "ALLOW", "why": allowed(&[]) }) };
    let mut headers = sent.header_map();
    let token = match gate.token(&mut headers, || now) {
        Ok(token) => token,
        Err(why) => {
            let why =
                gate.tokens.as_ref().map_or(why.to_string(), |tokens| tokens.about(&why, &headers, now));
            return denied(401, format!("the token does not hold: {why}"));
        }
    };
    let call = Call {
        principal: caller.identity.as_ref(),
        request_principal: token.as_ref().map(|token| token.principal.as_str()),
        client: caller.ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        http: Some(Http { method: &sent.method, path: &sent.path, host: &sent.host, headers: &headers }),
    };
    let rules = gate.policies.rules_for(&call);
    let by = |policy: &AuthzPolicy, rule: Option<usize>| {
        json!({
            "name": policy.name,
            "action": if policy.action == AuthzAction::Deny { "DENY" } else { "ALLOW" },
            "mode": if policy.audit { "Audit" } else { "Enforce" },
            "rule": rule.map(|n| format!("spec.rules[{n}]")),
        })
    };
    let all: Vec<Value> = guard.policies.iter().zip(&rules).map(|(p, rule)| by(p, *rule)).collect();
    let mut told = match gate.policies.decide(&call) {
        Decision::Refused(_) if gate.asks_for_token(token.as_ref()) => {
            denied(401, "no AuthorizationPolicy lets it in without a token".to_owned())
        }
        Decision::Refused(why) => denied(403, refusal(why, &all, "Enforce")),
        Decision::LetInWouldRefuse(why) => {
            json!({ "verdict": "AUDIT", "why": format!("let in; {}", refusal(why, &all, "Audit")) })
        }
        Decision::LetIn => json!({ "verdict": "ALLOW", "why": allowed(&all) }),
    };
    told["policies"] = all.into();
    told["token"] = token.map(|token| token.principal).into();
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

#[cfg(test)]
mod tests {
    use http::Request;
    use http::header::AUTHORIZATION;
    use weft_xds_proto::resource::guard::{
        AuthzCondition, AuthzOperation, AuthzRule, AuthzSource, TokenIssuer,
    };

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
        admission(Some(&guard), &caller, &Sent::of(&head, "orders".to_owned(), head.uri.path()), 0)
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

    /// RFC 7515, appendix A.3.
    const TOKEN: &str = "Bearer eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";

    #[test]
    fn a_token_is_asked_for_where_it_could_help_and_judged_where_its_keys_are_known() {
        let rule = TokenIssuer {
            issuer: "joe".to_owned(),
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
            admission(
                Some(&guard),
                &Caller::default(),
                &Sent::of(&head, "orders".to_owned(), head.uri.path()),
                0,
            )
        };
        assert_eq!(
            (told(None)["verdict"].as_str(), told(None)["status"].as_u64()),
            (Some("DENY"), Some(401))
        );
        assert_eq!(told(Some("Basic abc"))["status"], 401, "that is the app's");
        for (token, why) in
            [(TOKEN, "of joe, they do not stand in the document"), ("Bearer a.b.c", "it is no JWT")]
        {
            let unseen = told(Some(token));
            assert!(unseen["why"].as_str().unwrap().contains(why), "{unseen}");
        }
    }

    #[test]
    fn policies_see_a_token_only_where_the_app_is_shown_it() {
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
                Request::builder().uri("/").header(AUTHORIZATION, TOKEN).body(()).unwrap().into_parts().0;
            let sent = Sent::of(&head, "orders".to_owned(), "/");
            admission(Some(&Guard { policies, tokens }), &Caller::default(), &sent, 1_300_819_000)
        };
        for (forward, expected) in [(false, "ALLOW"), (true, "DENY")] {
            let told = verdict(forward);
            assert_eq!(told["verdict"], expected, "{told}");
        }
    }
}
