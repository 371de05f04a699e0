//! Whether the conditions of a route hold for a request.

use std::borrow::Cow;

use http::header::{CONTENT_TYPE, HeaderMap, HeaderName};
use http::{Method, request};
use regex::Regex;
use weft_xds_proto::resource::route as ir;
use weft_xds_proto::resource::route::pattern;

/// What conditions look at.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its path, in its normal form.
    pub path: &'a str,
    /// Behind the question mark; empty if there is none.
    pub query: &'a str,
    /// Its header fields.
    pub headers: &'a HeaderMap,
}

impl<'a> Seen<'a> {
    /// Of a request, with its path in its normal form.
    pub fn of(head: &'a request::Parts, path: &'a str) -> Self {
        let query = head.uri.query().unwrap_or_default();
        Self { method: &head.method, path, query, headers: &head.headers }
    }
}

/// The conditions of one route.
#[derive(Debug)]
pub struct Matcher {
    path: PathMatcher,
    method: Option<Method>,
    grpc: bool,
    headers: Box<[HeaderMatcher]>,
    query: Box<[QueryMatcher]>,
}

#[derive(Debug)]
enum PathMatcher {
    Exact(Box<str>),
    Prefix(Box<str>),
    Segments(Box<str>),
    Regex(Regex),
}

#[derive(Debug)]
struct HeaderMatcher {
    name: HeaderName,
    text: TextMatcher,
    invert: bool,
}

#[derive(Debug)]
struct QueryMatcher {
    name: Box<str>,
    text: TextMatcher,
    invert: bool,
}

/// A condition on a text.
#[derive(Debug)]
pub enum TextMatcher {
    /// The same.
    Exact(Box<str>),
    /// Its beginning.
    Prefix(Box<str>),
    /// Its end.
    Suffix(Box<str>),
    /// A part of it.
    Contains(Box<str>),
    /// The whole of it.
    Regex(Regex),
    /// There is one.
    Present,
}

impl TextMatcher {
    /// From a checked configuration.
    ///
    /// # Errors
    /// If a pattern is none after all.
    pub fn new(text: &ir::StringMatch) -> Result<Self, String> {
        let boxed = |text: &String| text.as_str().into();
        Ok(match text {
            ir::StringMatch::Exact(text) => Self::Exact(boxed(text)),
            ir::StringMatch::Prefix(text) => Self::Prefix(boxed(text)),
            ir::StringMatch::Suffix(text) => Self::Suffix(boxed(text)),
            ir::StringMatch::Contains(text) => Self::Contains(boxed(text)),
            ir::StringMatch::Regex(text) => Self::Regex(pattern::whole(text)?),
            ir::StringMatch::Present => Self::Present,
        })
    }

    /// Whether it holds.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(expected) => text == &**expected,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
            Self::Suffix(suffix) => text.ends_with(&**suffix),
            Self::Contains(part) => text.contains(&**part),
            Self::Regex(regex) => regex.is_match(text),
            Self::Present => true,
        }
    }
}

impl Matcher {
    /// From a checked configuration.
    ///
    /// # Errors
    /// If a pattern or a name is none after all.
    pub fn new(m: &ir::RouteMatch) -> Result<Self, String> {
        let path = match &m.path {
            ir::PathMatch::Exact(path) => PathMatcher::Exact(path.as_str().into()),
            ir::PathMatch::Prefix(prefix) => PathMatcher::Prefix(prefix.as_str().into()),
            ir::PathMatch::Segments(prefix) => PathMatcher::Segments(prefix.as_str().into()),
            ir::PathMatch::Regex(text) => PathMatcher::Regex(pattern::whole(text)?),
        };
        let method = match &m.method {
            Some(text) => {
                Some(Method::from_bytes(text.as_bytes()).map_err(|e| format!("method {text:?}: {e}"))?)
            }
            None => None,
        };
        let headers = m.headers.iter().map(|h| {
            let name =
                HeaderName::from_bytes(h.name.as_bytes()).map_err(|e| format!("header {:?}: {e}", h.name))?;
            Ok(HeaderMatcher { name, text: TextMatcher::new(&h.value)?, invert: h.invert })
        });
        let query = m.query.iter().map(|q| {
            Ok(QueryMatcher {
                name: q.name.as_str().into(),
                text: TextMatcher::new(&q.value)?,
                invert: q.invert,
            })
        });
        Ok(Self {
            path,
            method,
            grpc: m.grpc,
            headers: headers.collect::<Result<_, String>>()?,
            query: query.collect::<Result<_, String>>()?,
        })
    }

    /// Whether all conditions hold. Costs no allocation unless a field stands several times or a query is encoded.
    pub fn matches(&self, seen: &Seen<'_>) -> bool {
        self.method.as_ref().is_none_or(|m| m == seen.method)
            && self.path.matches(seen.path)
            && (!self.grpc || is_grpc(seen.headers))
            && self.headers.iter().all(|h| h.matches(seen.headers))
            && self.query.iter().all(|q| q.matches(seen.query))
    }

    /// Bytes of the path that a prefix rewrite replaces: what the condition matched.
    pub fn matched_len(&self, path: &str) -> usize {
        match &self.path {
            PathMatcher::Prefix(prefix) | PathMatcher::Segments(prefix) => prefix.len().min(path.len()),
            PathMatcher::Exact(_) | PathMatcher::Regex(_) => path.len(),
        }
    }

    /// The one path that it is for, if it is for one.
    pub(super) fn exact_path(&self) -> Option<&str> {
        match &self.path {
            PathMatcher::Exact(path) => Some(path),
            _ => None,
        }
    }
}

impl PathMatcher {
    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(expected) => path == &**expected,
            Self::Prefix(prefix) => path.starts_with(&**prefix),
            Self::Segments(prefix) => {
                path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::Regex(regex) => regex.is_match(path),
        }
    }
}

impl HeaderMatcher {
    fn matches(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(&self.name).iter();
        let Some(first) = values.next() else {
            // What is not there is not what it must not be.
            return self.invert;
        };
        let holds = match (&self.text, values.next()) {
            (TextMatcher::Present, _) => true,
            (text, None) => first.to_str().is_ok_and(|value| text.matches(value)),
            // One list, as RFC 9110 §5.3 reads them.
            (text, Some(_)) => {
                let all: Result<Vec<_>, _> = headers.get_all(&self.name).iter().map(|v| v.to_str()).collect();
                all.is_ok_and(|all| text.matches(&all.join(",")))
            }
        };
        holds != self.invert
    }
}

impl QueryMatcher {
    /// Of several parameters of one name the first counts.
    fn matches(&self, query: &str) -> bool {
        let found = query.split('&').find_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(name)? == *self.name).then(|| decoded(value))
        });
        match found {
            None => self.invert,
            Some(value) => value.is_some_and(|v| self.text.matches(&v)) != self.invert,
        }
    }
}

/// None if it decodes to no text.
fn decoded(text: &str) -> Option<Cow<'_, str>> {
    if memchr::memchr(b'%', text.as_bytes()).is_none() {
        return Some(Cow::Borrowed(text));
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let digit = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
        match (bytes[i], digit(i + 1), digit(i + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).ok()?);
                i += 3;
            }
            (byte, ..) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    String::from_utf8(out).ok().map(Cow::Owned)
}

/// `application/grpc`, `application/grpc+proto` and the like.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        let rest = value.as_bytes().strip_prefix(b"application/grpc");
        rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}
