//! Who may call a service: the decision. Pure.
//!
//! ```text
//!  a DENY is for it ──yes──▶ refused
//!        │ no
//!  there is no ALLOW ──yes──▶ let in
//!        │ no
//!  an ALLOW is for it ──yes──▶ let in,  no ──▶ refused
//! ```
//! Policies of mode Audit are left out of this. Then it is asked once more with them, and what would be refused then, and is
//! not now, is noted.

use std::net::IpAddr;

use http::HeaderMap;
use weft_core::tls::spiffe::SpiffeId;
use weft_xds_proto::resource::guard::{
    AuthzAction, AuthzCondition, AuthzOperation, AuthzPolicy, AuthzRule, AuthzSource,
};

use crate::proxy_protocol::Network;

/// The policies of a service, ready to be asked.
#[derive(Debug)]
pub(crate) struct Policies {
    policies: Box<[Policy]>,
    /// Somebody looks at paths, so that they have to be in their one form.
    looks_at_paths: bool,
}

/// What is to be decided.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    /// The caller, by its certificate.
    pub principal: Option<&'a SpiffeId>,
    /// The caller, by its token.
    pub request_principal: Option<&'a str>,
    pub client: IpAddr,
    /// None for bytes that are no HTTP.
    pub http: Option<Http<'a>>,
}

/// A request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Http<'a> {
    pub method: &'a str,
    /// In its normal form.
    pub path: &'a str,
    pub host: &'a str,
    pub headers: &'a HeaderMap,
}

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision<'a> {
    LetIn,
    /// And would be refused, if it were not for the mode of policies.
    LetInWouldRefuse(Refusal<'a>),
    Refused(Refusal<'a>),
}

/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal<'a> {
    /// This policy denies it.
    Denied(&'a str),
    /// There are policies that allow, and none allows it.
    NotAllowed,
}

impl std::fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Denied(policy) => write!(f, "AuthorizationPolicy {policy} denies it"),
            Self::NotAllowed => f.write_str("no AuthorizationPolicy allows it"),
        }
    }
}

#[derive(Debug)]
struct Policy {
    name: String,
    action: AuthzAction,
    audit: bool,
    rules: Box<[Rule]>,
}

#[derive(Debug)]
struct Rule {
    from: Box<[Source]>,
    to: Box<[Operation]>,
    when: Box<[Condition]>,
}

#[derive(Debug)]
struct Source {
    principals: Patterns,
    not_principals: Patterns,
    namespaces: Patterns,
    not_namespaces: Patterns,
    request_principals: Patterns,
    ip_blocks: Box<[Network]>,
    not_ip_blocks: Box<[Network]>,
}

#[derive(Debug)]
struct Operation {
    methods: Patterns,
    not_methods: Patterns,
    paths: Patterns,
    not_paths: Patterns,
    hosts: Patterns,
}

#[derive(Debug)]
struct Condition {
    header: String,
    values: Patterns,
    not_values: Patterns,
}

impl Policies {
    /// # Errors
    /// If one of them cannot be used.
    pub fn new(policies: &[AuthzPolicy]) -> Result<Self, String> {
        let looks = |p: &AuthzPolicy| {
            p.rules.iter().flat_map(|r| &r.to).any(|o| !o.paths.is_empty() || !o.not_paths.is_empty())
        };
        Ok(Self {
            looks_at_paths: policies.iter().any(looks),
            policies: policies.iter().map(Policy::new).collect::<Result<_, _>>()?,
        })
    }

    /// Lets nobody in.
    pub fn closed() -> Self {
        let none = Policy { name: String::new(), action: AuthzAction::Allow, audit: false, rules: [].into() };
        Self { policies: [none].into(), looks_at_paths: false }
    }

    /// Whether a path has to be in its one form before it is asked about.
    pub fn looks_at_paths(&self) -> bool {
        self.looks_at_paths
    }

    /// See the module.
    pub fn decide(&self, call: &Call<'_>) -> Decision<'_> {
        if let Some(refusal) = self.refusal(call, false) {
            return Decision::Refused(refusal);
        }
        let audits = self.policies.iter().any(|policy| policy.audit);
        match audits.then(|| self.refusal(call, true)).flatten() {
            Some(refusal) => Decision::LetInWouldRefuse(refusal),
            None => Decision::LetIn,
        }
    }

    /// For each policy, in its order, the first of its rules that is for the call.
    pub fn rules_for(&self, call: &Call<'_>) -> Vec<Option<usize>> {
        self.policies.iter().map(|policy| policy.rule_for(call)).collect()
    }

    fn refusal(&self, call: &Call<'_>, with_audit: bool) -> Option<Refusal<'_>> {
        let heard = || self.policies.iter().filter(|policy| with_audit || !policy.audit);
        let mut denying = heard().filter(|policy| policy.action == AuthzAction::Deny);
        if let Some(policy) = denying.find(|policy| policy.is_for(call)) {
            return Some(Refusal::Denied(&policy.name));
        }
        let mut allowing = heard().filter(|policy| policy.action == AuthzAction::Allow).peekable();
        allowing.peek()?;
        (!allowing.any(|policy| policy.is_for(call))).then_some(Refusal::NotAllowed)
    }
}

impl Policy {
    fn new(policy: &AuthzPolicy) -> Result<Self, String> {
        Ok(Self {
            name: policy.name.clone(),
            action: policy.action,
            audit: policy.audit,
            rules: policy.rules.iter().map(Rule::new).collect::<Result<_, _>>()?,
        })
    }

    fn is_for(&self, call: &Call<'_>) -> bool {
        self.rule_for(call).is_some()
    }

    fn rule_for(&self, call: &Call<'_>) -> Option<usize> {
        self.rules.iter().position(|rule| rule.is_for(call, self.action))
    }
}

impl Rule {
    fn new(rule: &AuthzRule) -> Result<Self, String> {
        Ok(Self {
            from: rule.from.iter().map(Source::new).collect::<Result<_, _>>()?,
            to: rule.to.iter().map(Operation::new).collect(),
            when: rule.when.iter().map(Condition::new).collect(),
        })
    }

    fn is_for(&self, call: &Call<'_>, action: AuthzAction) -> bool {
        if !self.from.is_empty() && !self.from.iter().any(|source| source.is_for(call)) {
            return false;
        }
        match &call.http {
            // What cannot be known of bytes allows nothing, and saves nobody from being refused.
            None => (self.to.is_empty() && self.when.is_empty()) || action == AuthzAction::Deny,
            Some(http) => {
                (self.to.is_empty() || self.to.iter().any(|operation| operation.is_for(http)))
                    && self.when.iter().all(|condition| condition.holds(http.headers))
            }
        }
    }
}

impl Source {
    fn new(source: &AuthzSource) -> Result<Self, String> {
        let networks = |texts: &[String]| -> Result<Box<[Network]>, String> {
            let whole = |text: &String| match text.parse::<IpAddr>() {
                Ok(ip) => format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 }),
                Err(_) => text.clone(),
            };
            texts.iter().map(|text| whole(text).parse()).collect()
        };
        Ok(Self {
            principals: Patterns::new(&source.principals),
            not_principals: Patterns::new(&source.not_principals),
            namespaces: Patterns::new(&source.namespaces),
            not_namespaces: Patterns::new(&source.not_namespaces),
            request_principals: Patterns::new(&source.request_principals),
            ip_blocks: networks(&source.ip_blocks)?,
            not_ip_blocks: networks(&source.not_ip_blocks)?,
        })
    }

    fn is_for(&self, call: &Call<'_>) -> bool {
        let principal = call.principal.map(SpiffeId::as_str);
        let namespace = call.principal.and_then(SpiffeId::namespace);
        let within = |networks: &[Network]| networks.iter().any(|network| network.contains(call.client));
        self.principals.take(principal)
            && !self.not_principals.has(principal)
            && self.namespaces.take(namespace)
            && !self.not_namespaces.has(namespace)
            && self.request_principals.take(call.request_principal)
            && (self.ip_blocks.is_empty() || within(&self.ip_blocks))
            && !within(&self.not_ip_blocks)
    }
}

impl Operation {
    fn new(operation: &AuthzOperation) -> Self {
        Self {
            methods: Patterns::new(&operation.methods),
            not_methods: Patterns::new(&operation.not_methods),
            paths: Patterns::new(&operation.paths),
            not_paths: Patterns::new(&operation.not_paths),
            hosts: Patterns::new(&operation.hosts),
        }
    }

    fn is_for(&self, http: &Http<'_>) -> bool {
        self.methods.take(Some(http.method))
            && !self.not_methods.has(Some(http.method))
            && self.paths.take(Some(http.path))
            && !self.not_paths.has(Some(http.path))
            && self.hosts.take(Some(http.host))
    }
}

impl Condition {
    fn new(condition: &AuthzCondition) -> Self {
        Self {
            header: condition.header.clone(),
            values: Patterns::new(&condition.values),
            not_values: Patterns::new(&condition.not_values),
        }
    }

    /// A field that stands several times has all of its values.
    fn holds(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(self.header.as_str()).iter();
        let has = |patterns: &Patterns| {
            let mut values = headers.get_all(self.header.as_str()).iter();
            values.any(|value| patterns.has(Some(&String::from_utf8_lossy(value.as_bytes()))))
        };
        (self.values.0.is_empty() || (values.next().is_some() && has(&self.values))) && !has(&self.not_values)
    }
}

/// Texts in which `*` stands for any text, also an empty one.
#[derive(Debug)]
struct Patterns(Box<[Pattern]>);

#[derive(Debug)]
struct Pattern(Box<[Box<str>]>);

impl Patterns {
    fn new(texts: &[String]) -> Self {
        Self(texts.iter().map(|text| Pattern(text.split('*').map(Into::into).collect())).collect())
    }

    /// Whether one of them is it.
    fn has(&self, text: Option<&str>) -> bool {
        text.is_some_and(|text| self.0.iter().any(|pattern| pattern.is(text)))
    }

    /// The same; none of them means any.
    fn take(&self, text: Option<&str>) -> bool {
        self.0.is_empty() || self.has(text)
    }
}

impl Pattern {
    /// Linear in the length of the text for each star.
    fn is(&self, text: &str) -> bool {
        let [first, middle @ .., last] = &*self.0 else {
            return self.0.first().is_some_and(|only| **only == *text);
        };
        let Some(rest) = text.strip_prefix(&**first) else { return false };
        let Some(mut rest) = rest.strip_suffix(&**last) else { return false };
        for part in middle {
            match rest.find(&**part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests;
