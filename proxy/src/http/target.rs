//! Which host a request is for: from its target if that says so, else from its `Host` field (RFC 9112 §3.2).

use http::header::HOST;
use http::{Method, Version, request};

use super::error::RequestError;
use crate::listener::refusal::Refusal;
use crate::route::host;

/// The host as the client wrote it, and made comparable.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// For the `Host` field of the forwarded request.
    pub authority: String,
    /// Lower case, no port.
    pub host: String,
}

impl Target {
    /// A service, by its name.
    pub fn service(name: &str) -> Self {
        Self { authority: name.to_owned(), host: name.to_owned() }
    }
}

/// What the request line and `Host` say.
///
/// # Errors
/// For other schemes, and missing, invalid or contradictory hosts.
pub(crate) fn of(head: &request::Parts) -> Result<Target, RequestError> {
    // `host` or `host:port` alone is for CONNECT, `*` for OPTIONS (RFC 9112 §3.2.3 and §3.2.4); others would take the
    // host from elsewhere.
    let no_scheme = head.uri.scheme().is_none();
    if no_scheme && head.uri.authority().is_some() || head.uri.path() == "*" && head.method != Method::OPTIONS
    {
        return Err(Refusal::RequestLine.into());
    }
    if let Some(scheme) = head.uri.scheme_str()
        && scheme != "http"
        && !(scheme == "https" && head.version == Version::HTTP_2)
    {
        return Err(RequestError::Scheme(scheme.chars().take(32).collect()));
    }
    let field = field(head)?;
    let authority = match (head.uri.authority(), field) {
        (Some(authority), Some(field))
            if head.version == Version::HTTP_2 && !same(authority.as_str(), field) =>
        {
            return Err(RequestError::TwoHosts { host: field.to_owned(), authority: authority.to_string() });
        }
        // The target wins over Host (RFC 9112 §3.2.2).
        (Some(authority), _) => authority.as_str(),
        (None, Some(field)) => field,
        (None, None) => return Err(RequestError::NoHost),
    };
    let host = host::normalise(authority)
        .map_err(|why| RequestError::BadHost { host: authority.chars().take(100).collect(), why })?;
    Ok(Target { authority: authority.to_owned(), host: host.into_owned() })
}

/// The one `Host` field. HTTP/1 with several was refused before; HTTP/2 may still carry them.
fn field(head: &request::Parts) -> Result<Option<&str>, RequestError> {
    let mut fields = head.headers.get_all(HOST).iter();
    let Some(field) = fields.next() else { return Ok(None) };
    let text = field.to_str().unwrap_or("?");
    match fields.next() {
        Some(second) => Err(RequestError::TwoHosts {
            host: text.to_owned(),
            authority: second.to_str().unwrap_or("?").to_owned(),
        }),
        None => Ok(Some(text)),
    }
}

fn same(a: &str, b: &str) -> bool {
    a.eq_ignore_ascii_case(b)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn target(method: &str, uri: &str, version: Version, hosts: &[&str]) -> Result<Target, RequestError> {
        let mut request = Request::builder().method(method).uri(uri).version(version);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        of(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn host_comes_from_the_target_or_else_from_the_field() {
        for (uri, version, hosts) in [
            ("/", Version::HTTP_11, &["Orders:80"][..]),
            ("http://Orders:80/x", Version::HTTP_11, &["other"]),
            ("http://Orders:80/x", Version::HTTP_10, &[]),
            ("http://Orders:80/x", Version::HTTP_2, &[]),
            ("https://Orders:80/x", Version::HTTP_2, &["orders:80"]),
        ] {
            let expected = Target { authority: "Orders:80".into(), host: "orders".into() };
            assert_eq!(target("GET", uri, version, hosts).unwrap(), expected, "{uri} {hosts:?}");
        }
    }

    #[test]
    fn what_names_no_single_host_is_refused() {
        let error = |method, uri, version, hosts: &[&str]| {
            target(method, uri, version, hosts).unwrap_err().to_string()
        };
        assert!(error("GET", "/", Version::HTTP_11, &[]).contains("missing"));
        assert!(error("GET", "/", Version::HTTP_11, &["a", "b"]).contains("differ"));
        assert!(error("GET", "/", Version::HTTP_11, &["a/b"]).contains("not valid"));
        assert!(error("GET", "http://a/", Version::HTTP_2, &["b"]).contains("differ"));
        assert!(error("GET", "ftp://a/", Version::HTTP_11, &["a"]).contains("ftp"));
        assert!(error("GET", "https://a/", Version::HTTP_11, &["a"]).contains("https"));
        assert!(error("GET", "a:80", Version::HTTP_11, &["b"]).contains("request line"));
        assert!(error("GET", "*", Version::HTTP_11, &["a"]).contains("request line"));
    }
}
