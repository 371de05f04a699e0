//! `AuthorizationPolicy`: who may call a service. Names and meaning are Istio's, as far as it goes.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use weft_xds_proto::resource::guard::{
    AuthzAction, AuthzCondition, AuthzOperation, AuthzPolicy, AuthzRule, AuthzSource,
};

use crate::document::{Items, ObjectRef, null_is_default, spec};
use crate::shape::{Field, Problem, Rule, Shape, optional, required};

spec!(
    /// `spec` of an `AuthorizationPolicy`.
    #[derive(Eq)]
    AuthorizationPolicySpec { target_ref: Option<ObjectRef>, action: Option<String>, mode: Option<String>, rules: Items<RuleSpec>, }
);
spec!(
    /// Conditions on a request.
    #[derive(Eq)]
    RuleSpec { from: Items<SourceSpec>, to: Items<OperationSpec>, when: Items<ConditionSpec>, }
);
spec!(
    /// Who calls.
    #[derive(Eq)]
    SourceSpec {
        principals: Items<String>, not_principals: Items<String>, namespaces: Items<String>,
        not_namespaces: Items<String>, request_principals: Items<String>, ip_blocks: Items<String>,
        not_ip_blocks: Items<String>,
    }
);
spec!(
    /// What is asked for.
    #[derive(Eq)]
    OperationSpec {
        methods: Items<String>, not_methods: Items<String>, paths: Items<String>, not_paths: Items<String>,
        hosts: Items<String>,
    }
);
spec!(
    /// A field of the head.
    #[derive(Eq)]
    ConditionSpec { header: String, values: Items<String>, not_values: Items<String>, }
);

const LIST_MAX: usize = 64;
/// As the Gateway API has it for rules of routes.
const RULES_MAX: usize = 64;

const PATTERN: Shape = Shape::Text(Rule {
    allowed: "1 to 2048 visible characters, in which * stands for any text",
    pattern: "",
    check: |t| (1..=2048).contains(&t.len()) && !t.chars().any(|c| c.is_control() || c.is_whitespace()),
});
const VALUE: Shape = Shape::Text(Rule {
    allowed: "1 to 2048 characters, in which * stands for any text",
    pattern: "",
    check: |t| (1..=2048).contains(&t.len()) && !t.chars().any(char::is_control),
});
const PATH: Shape = Shape::Text(Rule {
    allowed: "a path that starts with / or *, in its normal form and without a query; * stands for any text",
    pattern: "^[/*]",
    check: |t| {
        let dots = ["//", "/./", "/../", "?", "#", "%2f", "%2F"];
        t.starts_with(['/', '*'])
            && t.len() <= 2048
            && t.bytes().all(|b| b.is_ascii_graphic())
            && !dots.iter().any(|d| t.contains(d))
    },
});
const METHOD: Shape = Shape::Text(Rule {
    allowed: "a method in capitals, such as GET",
    pattern: "^[A-Z][A-Z-]*$",
    check: |t| (1..=32).contains(&t.len()) && t.bytes().all(|b| b.is_ascii_uppercase() || b == b'-'),
});
const HOST: Shape = Shape::Text(Rule {
    allowed: "a host in lower case without port, in which * stands for any text",
    pattern: "",
    check: |t| {
        (1..=253).contains(&t.len())
            && !t.bytes().any(|b| b.is_ascii_uppercase() || matches!(b, b':' | b'/' | b' '))
    },
});
const NETWORK: Shape = Shape::Text(Rule {
    allowed: "an address or a network, such as 10.0.0.0/8",
    pattern: "",
    check: is_network,
});
const FIELD_NAME: Shape = Shape::Text(Rule {
    allowed: "the name of a header field",
    pattern: "^[A-Za-z0-9!#$%&'*+\\-.^_`|~]+$",
    check: |t| {
        (1..=256).contains(&t.len())
            && t.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
    },
});

/// As sidecars read it. An IPv4 address in IPv6 form is the IPv4 address, so such a network has nothing beside it.
fn is_network(text: &str) -> bool {
    let (ip, bits) = text.split_once('/').map_or((text, None), |(ip, bits)| (ip, Some(bits)));
    let Ok(ip) = ip.parse::<IpAddr>() else { return false };
    let allowed = match ip {
        IpAddr::V4(_) => 0..=32,
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => 96..=128,
        IpAddr::V6(_) => 0..=128,
    };
    bits.is_none_or(|bits| {
        !bits.starts_with('+') && bits.parse().is_ok_and(|bits: u8| allowed.contains(&bits))
    })
}

const PATTERNS: Shape = Shape::List(&PATTERN, LIST_MAX);
const NETWORKS: Shape = Shape::List(&NETWORK, LIST_MAX);
const METHODS: Shape = Shape::List(&METHOD, LIST_MAX);
const PATHS: Shape = Shape::List(&PATH, LIST_MAX);
const VALUES: Shape = Shape::List(&VALUE, LIST_MAX);

const SOURCE: Shape = Shape::Object(&[
    optional("principals", &PATTERNS, "SPIFFE IDs, from certificates"),
    optional("notPrincipals", &PATTERNS, "none of these; who shows none is not excluded"),
    optional("namespaces", &PATTERNS, "what stands behind /ns/ in the SPIFFE ID"),
    optional("notNamespaces", &PATTERNS, "none of these"),
    optional("requestPrincipals", &PATTERNS, "ISSUER/SUBJECT of a valid token"),
    optional("ipBlocks", &NETWORKS, "addresses of callers"),
    optional("notIpBlocks", &NETWORKS, "none of these"),
]);
const OPERATION: Shape = Shape::Object(&[
    optional("methods", &METHODS, "methods; of gRPC calls all are POST"),
    optional("notMethods", &METHODS, "none of these"),
    optional("paths", &PATHS, "paths; of a gRPC call /PACKAGE.SERVICE/METHOD"),
    optional("notPaths", &PATHS, "none of these"),
    optional("hosts", &Shape::List(&HOST, LIST_MAX), "hosts"),
]);
const CONDITION: Shape = Shape::Object(&[
    required("header", &FIELD_NAME, "name of the field"),
    optional("values", &VALUES, "it has one of these values"),
    optional("notValues", &VALUES, "it has none of these values"),
]);
const RULE: Shape = Shape::Object(&[
    optional("from", &Shape::List(&SOURCE, LIST_MAX), "one of these calls; anybody if missing"),
    optional("to", &Shape::List(&OPERATION, LIST_MAX), "one of these is asked for; anything if missing"),
    optional("when", &Shape::List(&CONDITION, LIST_MAX), "all of these hold"),
]);

/// What a policy says, beside the service that it is for.
pub(crate) const fn keys(target: Field) -> [Field; 4] {
    [
        Field { required: false, doc: "the service; all services of the mesh if missing", ..target },
        optional(
            "action",
            &Shape::Choice(&["ALLOW", "DENY"]),
            "ALLOW: what a rule is for is let in, and what none of an ALLOW is for is not; DENY: it is refused; ALLOW if missing",
        ),
        optional(
            "mode",
            &Shape::Choice(&["Enforce", "Audit"]),
            "Audit: nothing is refused, what would be is noted; Enforce if missing",
        ),
        optional(
            "rules",
            &Shape::List(&RULE, RULES_MAX),
            "one of them is for the request; {} is for every one",
        ),
    ]
}

fn texts(items: &Items<String>) -> Vec<String> {
    items.iter().flatten().cloned().collect()
}

impl AuthorizationPolicySpec {
    /// What keys and types alone do not say.
    pub(crate) fn check(&self, problems: &mut Vec<Problem>) {
        if self.rules.is_empty() && self.action.as_deref() == Some("DENY") {
            problems
                .push(Problem::new("spec.rules", "none, so that it denies nothing; {} is for every request"));
        }
        for (i, rule) in self.rules.iter().enumerate() {
            let Some(rule) = rule else { continue };
            for (j, when) in rule.when.iter().enumerate() {
                if when.as_ref().is_some_and(|w| w.values.is_empty() && w.not_values.is_empty()) {
                    let at = format!("spec.rules[{i}].when[{j}]");
                    problems.push(Problem::new(at, "neither values nor notValues is given"));
                }
            }
            let empty = |at: String| Problem::new(at, "it says nothing; leave it out for any");
            for (j, from) in rule.from.iter().enumerate() {
                if from.as_ref().is_some_and(|f| *f == SourceSpec::default()) {
                    problems.push(empty(format!("spec.rules[{i}].from[{j}]")));
                }
            }
            for (j, to) in rule.to.iter().enumerate() {
                if to.as_ref().is_some_and(|t| *t == OperationSpec::default()) {
                    problems.push(empty(format!("spec.rules[{i}].to[{j}]")));
                }
            }
        }
    }

    /// For a service's sidecars.
    pub(crate) fn meant(&self, name: &str) -> AuthzPolicy {
        let source = |s: &SourceSpec| AuthzSource {
            principals: texts(&s.principals),
            not_principals: texts(&s.not_principals),
            namespaces: texts(&s.namespaces),
            not_namespaces: texts(&s.not_namespaces),
            request_principals: texts(&s.request_principals),
            ip_blocks: texts(&s.ip_blocks),
            not_ip_blocks: texts(&s.not_ip_blocks),
        };
        let operation = |o: &OperationSpec| AuthzOperation {
            methods: texts(&o.methods),
            not_methods: texts(&o.not_methods),
            paths: texts(&o.paths),
            not_paths: texts(&o.not_paths),
            hosts: texts(&o.hosts),
        };
        let condition = |c: &ConditionSpec| AuthzCondition {
            header: c.header.to_ascii_lowercase(),
            values: texts(&c.values),
            not_values: texts(&c.not_values),
        };
        let rule = |r: &RuleSpec| AuthzRule {
            from: r.from.iter().flatten().map(source).collect(),
            to: r.to.iter().flatten().map(operation).collect(),
            when: r.when.iter().flatten().map(condition).collect(),
        };
        AuthzPolicy {
            name: name.to_owned(),
            action: match self.action.as_deref() {
                Some("DENY") => AuthzAction::Deny,
                _ => AuthzAction::Allow,
            },
            audit: self.mode.as_deref() == Some("Audit"),
            rules: self.rules.iter().flatten().map(rule).collect(),
        }
    }
}
