//! Envoy's messages as validated routes. What cannot be honoured and would change where a request goes or what it is
//! answered is refused; mere hints are passed over.
//!
//! - [`matching`]: which requests a route is for.
//! - [`mod@forward`]: where it leads to.
//! - [`filters`]: what stands in the configuration of single filters.

mod filters;
mod forward;
mod matching;

use std::collections::HashSet;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType};

use super::encode::{CORS, FAULT, LOCAL_RATE_LIMIT};
use super::own::{self, METADATA};
use super::{
    Action, BODY_BYTES_MAX, CONDITIONS_MAX, DirectResponse, Fraction, HeaderEdits, PathRewrite, ROUTES_MAX,
    Redirect, Route, RouteConfiguration, RoutePolicy, TEXT_BYTES_MAX, TIME_MAX, VIRTUAL_HOSTS_MAX,
    VirtualHost,
};
use crate::resource::{InvalidResource, Validator};

use filters::{Filters, check_filters};
use forward::{forward, regex_rewrite};
use matching::route_match;

type Result<T> = std::result::Result<T, InvalidResource>;

const TIMES: (Duration, Duration) = (Duration::ZERO, TIME_MAX);

impl TryFrom<pb::RouteConfiguration> for RouteConfiguration {
    type Error = InvalidResource;

    fn try_from(p: pb::RouteConfiguration) -> Result<Self> {
        let v = Validator { kind: "RouteConfiguration", name: &p.name };
        let name = v.name("name")?;
        if p.vhds.is_some() {
            return Err(v.error("vhds", "set", "unset"));
        }
        let edits = edits(&v, "", &p.request_headers_to_add, &p.request_headers_to_remove)?;
        let answer = self::edits(&v, "", &p.response_headers_to_add, &p.response_headers_to_remove)?;
        if !edits.is_empty() || !answer.is_empty() {
            return Err(v.error("request_headers_to_add", "set", "unset; set them on routes"));
        }
        at_most(&v, "virtual_hosts", p.virtual_hosts.len(), VIRTUAL_HOSTS_MAX)?;
        let mut seen = HashSet::new();
        let mut virtual_hosts = Vec::with_capacity(p.virtual_hosts.len());
        for (i, host) in p.virtual_hosts.iter().enumerate() {
            let at = At { v: &v, path: format!("virtual_hosts[{i}]") };
            let host = virtual_host(&at, host)?;
            if let Some(twice) = host.domains.iter().find(|d| !seen.insert((*d).clone())) {
                return Err(at.error("domains", format!("{twice:?} again"), "each domain once"));
            }
            virtual_hosts.push(host);
        }
        Ok(Self { name, virtual_hosts })
    }
}

/// Where in the resource we are.
struct At<'a> {
    v: &'a Validator<'a>,
    path: String,
}

impl At<'_> {
    fn error(&self, field: &str, seen: impl Into<String>, allowed: impl Into<String>) -> InvalidResource {
        self.v.error(self.field(field), seen, allowed)
    }

    fn field(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }

    fn within(&self, field: &str) -> At<'_> {
        At { v: self.v, path: self.field(field) }
    }

    fn at_most(&self, field: &str, seen: usize, limit: usize) -> Result<()> {
        at_most(self.v, &self.field(field), seen, limit)
    }

    fn text(&self, field: &str, text: &str) -> Result<String> {
        self.at_most(field, text.len(), TEXT_BYTES_MAX)?;
        Ok(text.to_owned())
    }
}

fn at_most(v: &Validator<'_>, field: &str, seen: usize, limit: usize) -> Result<()> {
    if seen <= limit { Ok(()) } else { Err(v.error(field, seen.to_string(), format!("at most {limit}"))) }
}

fn virtual_host(at: &At<'_>, p: &pb::VirtualHost) -> Result<VirtualHost> {
    let unset = [
        ("require_tls", p.require_tls != 0),
        ("matcher", p.matcher.is_some()),
        ("retry_policy", p.retry_policy.is_some()),
        ("request_headers_to_add", !p.request_headers_to_add.is_empty()),
        ("response_headers_to_add", !p.response_headers_to_add.is_empty()),
        ("request_mirror_policies", !p.request_mirror_policies.is_empty()),
    ];
    if let Some((field, _)) = unset.into_iter().find(|(_, set)| *set) {
        return Err(at.error(field, "set", "unset; set it on routes"));
    }
    check_filters(at, &p.typed_per_filter_config, &[])?;
    if p.domains.is_empty() {
        return Err(at.error("domains", "none", "at least one"));
    }
    at.at_most("domains", p.domains.len(), VIRTUAL_HOSTS_MAX)?;
    at.at_most("routes", p.routes.len(), ROUTES_MAX)?;
    let mut domains = Vec::with_capacity(p.domains.len());
    for domain in &p.domains {
        let domain = self::domain(at, domain)?;
        // The same host with and without a port.
        if !domains.contains(&domain) {
            domains.push(domain);
        }
    }
    let mut routes = Vec::with_capacity(p.routes.len());
    for (i, route) in p.routes.iter().enumerate() {
        routes.push(self::route(&at.within(&format!("routes[{i}]")), route)?);
    }
    Ok(VirtualHost { name: at.text("name", &p.name)?, domains, routes })
}

/// Hosts are compared without ports.
fn domain(at: &At<'_>, domain: &str) -> Result<String> {
    let allowed = "a host, *.host, host.* or *, in at most 253 bytes";
    let host = match domain.rsplit_once(':') {
        Some((host, port)) if port == "*" || port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => domain,
    };
    let name = host.strip_prefix('*').or_else(|| host.strip_suffix('*')).unwrap_or(host);
    let usable = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'[' | b']' | b':');
    if host.is_empty() || host.len() > 253 || !name.bytes().all(usable) {
        return Err(at.error(
            "domains",
            format!("{:?}", domain.chars().take(253).collect::<String>()),
            allowed,
        ));
    }
    Ok(host.to_ascii_lowercase())
}

fn route(at: &At<'_>, p: &pb::Route) -> Result<Route> {
    let Some(matches) = &p.r#match else { return Err(at.error("match", "nothing", "a match")) };
    let mut hedge = None;
    let action = match &p.action {
        Some(pb::route::Action::Route(action)) => {
            let forward;
            (forward, hedge) = self::forward(&at.within("route"), action)?;
            Action::Forward(Box::new(forward))
        }
        Some(pb::route::Action::Redirect(r)) => Action::Redirect(redirect(&at.within("redirect"), r)?),
        Some(pb::route::Action::DirectResponse(d)) => {
            Action::Respond(respond(&at.within("direct_response"), d)?)
        }
        Some(_) | None => {
            return Err(at.error("action", "another or none", "route, redirect or direct_response"));
        }
    };
    let at_field = |field| at.within(field).path;
    let request =
        edits(at.v, &at_field("request_headers"), &p.request_headers_to_add, &p.request_headers_to_remove)?;
    let response = edits(
        at.v,
        &at_field("response_headers"),
        &p.response_headers_to_add,
        &p.response_headers_to_remove,
    )?;
    let known = [FAULT, CORS, LOCAL_RATE_LIMIT];
    let Filters { fault, cors, rate_limit } = check_filters(at, &p.typed_per_filter_config, &known)?;
    let mut policy = RoutePolicy {
        request_headers: request,
        response_headers: response,
        fault,
        cors,
        rate_limit,
        hedge,
        ..RoutePolicy::default()
    };
    if let Some(weft) = p.metadata.as_ref().and_then(|m| m.filter_metadata.get(METADATA)) {
        own::decode(weft, &mut policy);
    }
    Ok(Route {
        name: at.text("name", &p.name)?,
        matches: route_match(&at.within("match"), matches)?,
        action,
        policy,
    })
}

fn redirect(at: &At<'_>, r: &pb::RedirectAction) -> Result<Redirect> {
    use pb::redirect_action::{
        PathRewriteSpecifier as P, RedirectResponseCode as Code, SchemeRewriteSpecifier as S,
    };
    let scheme = match &r.scheme_rewrite_specifier {
        None | Some(S::HttpsRedirect(false)) => None,
        Some(S::HttpsRedirect(true)) => Some("https".to_owned()),
        Some(S::SchemeRedirect(scheme)) if scheme == "http" || scheme == "https" => Some(scheme.clone()),
        Some(S::SchemeRedirect(other)) => {
            return Err(at.error("scheme_redirect", format!("{other:?}"), "http or https"));
        }
    };
    let host = match r.host_redirect.as_str() {
        "" => None,
        host => Some(host_text(at, "host_redirect", host)?),
    };
    let port = match u16::try_from(r.port_redirect) {
        Ok(port) => (port > 0).then_some(port),
        Err(_) => return Err(at.error("port_redirect", r.port_redirect.to_string(), "0 to 65535")),
    };
    let path = match &r.path_rewrite_specifier {
        None => None,
        Some(P::PathRedirect(path)) => Some(PathRewrite::Full(path_text(at, "path_redirect", path)?)),
        Some(P::PrefixRewrite(prefix)) => Some(PathRewrite::Prefix(path_text(at, "prefix_rewrite", prefix)?)),
        Some(P::RegexRewrite(r)) => Some(regex_rewrite(&at.within("regex_rewrite"), r)?),
        Some(P::PathRewrite(_)) => return Err(at.error("path_rewrite", "set", "unset")),
    };
    let status = match Code::try_from(r.response_code) {
        Ok(Code::MovedPermanently) => 301,
        Ok(Code::Found) => 302,
        Ok(Code::SeeOther) => 303,
        Ok(Code::TemporaryRedirect) => 307,
        Ok(Code::PermanentRedirect) => 308,
        Err(_) => {
            return Err(at.error("response_code", r.response_code.to_string(), "301, 302, 303, 307 or 308"));
        }
    };
    Ok(Redirect { scheme, host, port, path, status, strip_query: r.strip_query })
}

/// A path that can stand in a request line or a `Location` as it is.
fn path_text(at: &At<'_>, field: &str, path: &str) -> Result<String> {
    let text = at.text(field, path)?;
    if !text.starts_with('/') || !text.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        return Err(at.error(field, format!("{text:?}"), "visible ASCII characters that start with /"));
    }
    Ok(text)
}

fn host_text(at: &At<'_>, field: &str, host: &str) -> Result<String> {
    let usable = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':' | b'[' | b']');
    if host.is_empty() || host.len() > 253 || !host.bytes().all(usable) {
        return Err(at.error(field, format!("{:?}", host.chars().take(64).collect::<String>()), "a host"));
    }
    Ok(host.to_owned())
}

fn respond(at: &At<'_>, d: &pb::DirectResponseAction) -> Result<DirectResponse> {
    use core::data_source::Specifier;
    if d.body_format.is_some() {
        return Err(at.error("body_format", "set", "unset"));
    }
    let body = match d.body.as_ref().and_then(|b| b.specifier.as_ref()) {
        None => String::new(),
        Some(Specifier::InlineString(text)) => text.clone(),
        Some(Specifier::InlineBytes(bytes)) => {
            String::from_utf8(bytes.clone()).map_err(|_| at.error("body.inline_bytes", "no UTF-8", "text"))?
        }
        Some(_) => return Err(at.error("body", "another", "inline_string or inline_bytes")),
    };
    at.at_most("body", body.len(), BODY_BYTES_MAX)?;
    Ok(DirectResponse { status: status(at, "status", d.status)?, body })
}

fn status(at: &At<'_>, field: &str, status: u32) -> Result<u16> {
    match u16::try_from(status) {
        Ok(status @ 200..=599) => Ok(status),
        _ => Err(at.error(field, status.to_string(), "200 to 599")),
    }
}

fn edits(
    v: &Validator<'_>,
    path: &str,
    options: &[core::HeaderValueOption],
    remove: &[String],
) -> Result<HeaderEdits> {
    use core::header_value_option::HeaderAppendAction as Append;
    let at = At { v, path: path.to_owned() };
    at.at_most("to_add", options.len(), CONDITIONS_MAX)?;
    at.at_most("to_remove", remove.len(), CONDITIONS_MAX)?;
    let mut edits = HeaderEdits::default();
    for (i, option) in options.iter().enumerate() {
        let at = at.within(&format!("to_add[{i}]"));
        let Some(header) = &option.header else { return Err(at.error("header", "nothing", "a header")) };
        let name = field_name(&at, &header.key)?;
        let value = plain(&at, &header.value)?;
        #[allow(deprecated)]
        let append = option.append.map(|a| a.value);
        match (Append::try_from(option.append_action), append) {
            (Ok(Append::OverwriteIfExistsOrAdd), _) | (Ok(Append::AppendIfExistsOrAdd), Some(false)) => {
                edits.set.push((name, value));
            }
            (Ok(Append::AppendIfExistsOrAdd), _) => edits.add.push((name, value)),
            _ => {
                return Err(at.error(
                    "append_action",
                    option.append_action.to_string(),
                    "APPEND_IF_EXISTS_OR_ADD or OVERWRITE_IF_EXISTS_OR_ADD",
                ));
            }
        }
    }
    for (i, name) in remove.iter().enumerate() {
        edits.remove.push(field_name(&at.within(&format!("to_remove[{i}]")), name)?);
    }
    Ok(edits)
}

/// Fields that frame, route or belong to one connection are the proxy's own.
fn field_name(at: &At<'_>, name: &str) -> Result<String> {
    let name = name.to_ascii_lowercase();
    if super::is_editable_field(&name) {
        return Ok(name);
    }
    let seen = format!("{:?}", name.chars().take(64).collect::<String>());
    Err(at.error("key", seen, "a header field other than host and those that frame a message or name hops"))
}

/// Without the format commands that others allow.
fn plain(at: &At<'_>, value: &str) -> Result<String> {
    let value = at.text("value", value)?;
    let text = value.replace("%%", "\u{0}");
    if text.contains('%') {
        return Err(at.error("value", format!("{value:?}"), "text; %% for a percent sign"));
    }
    let text = text.replace('\u{0}', "%");
    if text.chars().any(|c| c.is_control() && c != '\t') {
        return Err(at.error("value", format!("{text:?}"), "text without control characters"));
    }
    Ok(text)
}

fn percentage(at: &At<'_>, field: &str, p: Option<&FractionalPercent>) -> Result<Fraction> {
    let Some(p) = p else { return Ok(Fraction::ALL) };
    let denominator = match DenominatorType::try_from(p.denominator) {
        Ok(DenominatorType::Hundred) => 100,
        Ok(DenominatorType::TenThousand) => 10_000,
        Ok(DenominatorType::Million) => 1_000_000,
        Err(_) => return Err(at.error(field, "another denominator", "HUNDRED, TEN_THOUSAND or MILLION")),
    };
    // More than all is all, as others read it.
    Ok(Fraction::new(p.numerator.min(denominator), denominator).unwrap_or(Fraction::ALL))
}
