//! Which requests a route is for.

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;

use super::super::{CONDITIONS_MAX, PathMatch, RouteMatch, StringMatch, ValueMatch, pattern};
use super::{At, Result};

pub(super) fn route_match(at: &At<'_>, p: &pb::RouteMatch) -> Result<RouteMatch> {
    use pb::route_match::PathSpecifier as P;
    let unset = [
        ("runtime_fraction", p.runtime_fraction.is_some()),
        ("cookies", !p.cookies.is_empty()),
        ("tls_context", p.tls_context.is_some()),
        ("dynamic_metadata", !p.dynamic_metadata.is_empty()),
        ("filter_state", !p.filter_state.is_empty()),
    ];
    if let Some((field, _)) = unset.into_iter().find(|(_, set)| *set) {
        return Err(at.error(field, "set", "unset"));
    }
    if p.case_sensitive.is_some_and(|c| !c.value) {
        return Err(at.error("case_sensitive", "false", "true"));
    }
    let path = match &p.path_specifier {
        Some(P::Path(path)) => PathMatch::Exact(at.text("path", path)?),
        Some(P::Prefix(prefix)) => PathMatch::Prefix(at.text("prefix", prefix)?),
        Some(P::PathSeparatedPrefix(prefix)) => {
            if !prefix.starts_with('/') || prefix.ends_with('/') {
                return Err(at.error(
                    "path_separated_prefix",
                    format!("{prefix:?}"),
                    "a path with / at its beginning and not at its end",
                ));
            }
            PathMatch::Segments(at.text("path_separated_prefix", prefix)?)
        }
        Some(P::SafeRegex(regex)) => PathMatch::Regex(whole(at, "safe_regex", &regex.regex)?),
        Some(P::ConnectMatcher(_) | P::PathMatchPolicy(_)) | None => {
            return Err(at.error(
                "path_specifier",
                "another or none",
                "prefix, path, safe_regex or path_separated_prefix",
            ));
        }
    };
    at.at_most("headers", p.headers.len(), CONDITIONS_MAX)?;
    at.at_most("query_parameters", p.query_parameters.len(), CONDITIONS_MAX)?;
    let (mut method, mut headers, mut query) = (None, Vec::new(), Vec::new());
    for (i, h) in p.headers.iter().enumerate() {
        let at = at.within(&format!("headers[{i}]"));
        let condition = header(&at, h)?;
        match (&condition.value, condition.name.as_str()) {
            (StringMatch::Exact(text), ":method") if !condition.invert && method.is_none() => {
                method = Some(text.clone());
            }
            (_, name) if name.starts_with(':') => {
                return Err(at.error("name", format!("{name:?}"), "a header field, or :method with exact"));
            }
            _ => headers.push(condition),
        }
    }
    for (i, q) in p.query_parameters.iter().enumerate() {
        use pb::query_parameter_matcher::QueryParameterMatchSpecifier as Q;
        let at = at.within(&format!("query_parameters[{i}]"));
        let (value, invert) = match &q.query_parameter_match_specifier {
            Some(Q::StringMatch(m)) => (string_match(&at, m)?, false),
            Some(Q::PresentMatch(present)) => (StringMatch::Present, !present),
            None => (StringMatch::Present, false),
        };
        query.push(ValueMatch { name: at.text("name", &q.name)?, value, invert });
    }
    Ok(RouteMatch { path, method, headers, query, grpc: p.grpc.is_some() })
}

fn whole(at: &At<'_>, field: &str, text: &str) -> Result<String> {
    pattern::whole(text).map_err(|why| at.error(field, why, "a regular expression"))?;
    Ok(text.to_owned())
}

fn header(at: &At<'_>, h: &pb::HeaderMatcher) -> Result<ValueMatch> {
    use pb::header_matcher::HeaderMatchSpecifier as H;
    let mut invert = h.invert_match;
    #[allow(deprecated)]
    let value = match &h.header_match_specifier {
        None => StringMatch::Present,
        Some(H::PresentMatch(present)) => {
            invert ^= !present;
            StringMatch::Present
        }
        Some(H::StringMatch(m)) => string_match(at, m)?,
        Some(H::ExactMatch(text)) => StringMatch::Exact(at.text("exact_match", text)?),
        Some(H::PrefixMatch(text)) => StringMatch::Prefix(at.text("prefix_match", text)?),
        Some(H::SuffixMatch(text)) => StringMatch::Suffix(at.text("suffix_match", text)?),
        Some(H::ContainsMatch(text)) => StringMatch::Contains(at.text("contains_match", text)?),
        Some(H::SafeRegexMatch(m)) => StringMatch::Regex(whole(at, "safe_regex_match", &m.regex)?),
        Some(H::RangeMatch(_)) => return Err(at.error("range_match", "set", "unset")),
    };
    if h.treat_missing_header_as_empty {
        return Err(at.error("treat_missing_header_as_empty", "true", "false"));
    }
    let name = h.name.to_ascii_lowercase();
    if name.is_empty() || name.len() > 256 {
        return Err(at.error("name", format!("{} bytes", name.len()), "1 to 256 bytes"));
    }
    Ok(ValueMatch { name, value, invert })
}

pub(super) fn string_match(at: &At<'_>, m: &matcher::StringMatcher) -> Result<StringMatch> {
    use matcher::string_matcher::MatchPattern as M;
    if m.ignore_case {
        return Err(at.error("string_match.ignore_case", "true", "false"));
    }
    Ok(match &m.match_pattern {
        Some(M::Exact(text)) => StringMatch::Exact(at.text("string_match", text)?),
        Some(M::Prefix(text)) => StringMatch::Prefix(at.text("string_match", text)?),
        Some(M::Suffix(text)) => StringMatch::Suffix(at.text("string_match", text)?),
        Some(M::Contains(text)) => StringMatch::Contains(at.text("string_match", text)?),
        Some(M::SafeRegex(m)) => StringMatch::Regex(whole(at, "string_match.safe_regex", &m.regex)?),
        Some(_) | None => {
            return Err(at.error(
                "string_match",
                "another or none",
                "exact, prefix, suffix, contains or safe_regex",
            ));
        }
    })
}
