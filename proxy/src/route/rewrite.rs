//! Paths and targets for the next hop, and for clients that are sent elsewhere.

use http::header::HeaderValue;
use regex::Regex;
use weft_xds_proto::resource::route as ir;
use weft_xds_proto::resource::route::pattern;

/// A path made from another.
#[derive(Debug)]
pub enum Rewrite {
    /// This one.
    Full(Box<str>),
    /// This instead of what the route matched.
    Prefix(Box<str>),
    /// Parts replaced.
    Regex(Regex, Box<str>),
}

impl Rewrite {
    /// From a checked configuration.
    ///
    /// # Errors
    /// If a pattern is none after all.
    pub fn new(r: &ir::PathRewrite) -> Result<Self, String> {
        Ok(match r {
            ir::PathRewrite::Full(path) => Self::Full(path.as_str().into()),
            ir::PathRewrite::Prefix(prefix) => Self::Prefix(prefix.as_str().into()),
            ir::PathRewrite::Regex { pattern: text, substitution } => {
                let regex = pattern::part(text)?;
                let substitution = pattern::substitution(substitution, &regex)?;
                Self::Regex(regex, substitution.into())
            }
        })
    }

    /// The new path. `matched` bytes at its beginning are what the route's condition matched. It starts with `/`.
    pub fn path(&self, path: &str, matched: usize) -> String {
        let new = match self {
            Self::Full(path) => path.to_string(),
            Self::Prefix(prefix) => format!("{prefix}{}", path.get(matched..).unwrap_or_default()),
            Self::Regex(regex, with) => regex.replace_all(path, &**with).into_owned(),
        };
        if new.starts_with('/') { new } else { format!("/{new}") }
    }
}

/// Where a client is sent.
#[derive(Debug)]
pub struct Redirect {
    scheme: Option<Box<str>>,
    host: Option<Box<str>>,
    port: Option<u16>,
    path: Option<Rewrite>,
    /// 3xx.
    pub status: http::StatusCode,
    strip_query: bool,
}

impl Redirect {
    /// From a checked configuration.
    ///
    /// # Errors
    /// If a pattern or the status is none after all.
    pub fn new(r: &ir::Redirect) -> Result<Self, String> {
        let boxed = |text: &Option<String>| text.as_deref().map(Into::into);
        Ok(Self {
            scheme: boxed(&r.scheme),
            host: boxed(&r.host),
            port: r.port,
            path: r.path.as_ref().map(Rewrite::new).transpose()?,
            status: http::StatusCode::from_u16(r.status).map_err(|e| e.to_string())?,
            strip_query: r.strip_query,
        })
    }

    /// The `Location`; none if what the request brought makes no header value. `authority` is the request's host as
    /// written, `matched` as in [`Rewrite::path`].
    ///
    /// A port is said if it is given, or was said before and scheme stays; not if it is the scheme's own
    /// (`HTTPRequestRedirectFilter.port` of the Gateway API).
    pub fn location(
        &self,
        scheme: &str,
        authority: &str,
        path: &str,
        matched: usize,
        query: Option<&str>,
    ) -> Option<HeaderValue> {
        let new_scheme = self.scheme.as_deref().unwrap_or(scheme);
        let (old_host, old_port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse::<u16>().ok()),
            _ => (authority, None),
        };
        let host = self.host.as_deref().unwrap_or(old_host);
        let port = self.port.or(if self.scheme.is_none() { old_port } else { None });
        let own = |port: u16| matches!((new_scheme, port), ("http", 80) | ("https", 443));
        let path = match &self.path {
            Some(rewrite) => rewrite.path(path, matched),
            None => path.to_owned(),
        };
        let mut location = format!("{new_scheme}://{host}");
        if let Some(port) = port.filter(|p| !own(*p)) {
            location.push_str(&format!(":{port}"));
        }
        location.push_str(&path);
        if let Some(query) = query.filter(|_| !self.strip_query) {
            location.push('?');
            location.push_str(query);
        }
        HeaderValue::try_from(location).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirect() -> ir::Redirect {
        ir::Redirect { scheme: None, host: None, port: None, path: None, status: 302, strip_query: false }
    }

    fn location(r: ir::Redirect, authority: &str) -> String {
        let redirect = Redirect::new(&r).unwrap();
        redirect.location("http", authority, "/a/b", 2, Some("q=1")).unwrap().to_str().unwrap().to_owned()
    }

    #[test]
    fn a_redirect_keeps_what_it_does_not_change() {
        let https = ir::Redirect { scheme: Some("https".to_owned()), ..redirect() };
        let port = ir::Redirect { port: Some(8443), ..https.clone() };
        let own = ir::Redirect { port: Some(443), ..https.clone() };
        let host = ir::Redirect { host: Some("other".to_owned()), ..redirect() };
        let path = ir::PathRewrite::Prefix("/new".to_owned());
        let prefix = ir::Redirect { path: Some(path), strip_query: true, ..redirect() };
        for (r, authority, expected) in [
            (redirect(), "shop:8080", "http://shop:8080/a/b?q=1"),
            (redirect(), "[::1]", "http://[::1]/a/b?q=1"),
            (https, "shop:8080", "https://shop/a/b?q=1"),
            (port, "shop", "https://shop:8443/a/b?q=1"),
            (own, "shop:80", "https://shop/a/b?q=1"),
            (host, "shop:80", "http://other/a/b?q=1"),
            (prefix, "shop", "http://shop/new/b"),
        ] {
            assert_eq!(location(r.clone(), authority), expected, "{r:?}");
        }
    }
}
