//! Which answers are compressed, and what their heads say then (RFC 9110 §8.4, §12.5.3). The work itself is
//! [`crate::http`]'s.

use http::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, VARY,
};
use http::{Method, StatusCode, request, response};
use weft_xds_proto::resource::route as ir;

/// What a request says, looked at before it is given away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    gzip: bool,
}

impl Wish {
    /// Of a request. A HEAD has no body to compress.
    pub fn of(head: &request::Parts) -> Self {
        Self { gzip: head.method != Method::HEAD && accepts_gzip(&head.headers) }
    }
}

/// Whether `gzip`, or whatever is not named, is accepted with a weight above 0.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let (mut named, mut any) = (None, None);
    for value in headers.get_all(ACCEPT_ENCODING) {
        for part in value.to_str().unwrap_or_default().split(',') {
            let (coding, parameters) = part.split_once(';').unwrap_or((part, ""));
            let weight =
                parameters.trim().split_at_checked(2).filter(|(name, _)| name.eq_ignore_ascii_case("q="));
            let weight = weight.map(|(_, q)| q.trim().parse::<f32>().unwrap_or(0.0));
            let wanted = weight.unwrap_or(1.0) > 0.0;
            match coding.trim() {
                coding if coding.eq_ignore_ascii_case("gzip") || coding.eq_ignore_ascii_case("x-gzip") => {
                    named = Some(wanted);
                }
                "*" => any = Some(wanted),
                _ => {}
            }
        }
    }
    named.or(any).unwrap_or(false)
}

/// Changes the head of an answer that is to be compressed; false if it is not.
pub fn prepare(policy: &ir::Compression, wish: Wish, head: &mut response::Parts) -> bool {
    if !is_compressible(policy, head) {
        return false;
    }
    // Also said of what is sent as it is: a cache must keep the two apart.
    add_vary(&mut head.headers);
    if !wish.gzip {
        return false;
    }
    let headers = &mut head.headers;
    headers.remove(CONTENT_LENGTH);
    // Ranges are of the body as the service has it.
    headers.remove(ACCEPT_RANGES);
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    if let Some(weak) = headers.get(ETAG).and_then(weakened) {
        headers.insert(ETAG, weak);
    }
    true
}

fn is_compressible(policy: &ir::Compression, head: &response::Parts) -> bool {
    let headers = &head.headers;
    let length = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let bodyless = head.status.is_informational()
        || [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED, StatusCode::PARTIAL_CONTENT]
            .contains(&head.status);
    let no_transform = headers.get_all(CACHE_CONTROL).iter().any(|value| {
        let text = value.to_str().unwrap_or_default();
        text.split(',').any(|d| d.trim().eq_ignore_ascii_case("no-transform"))
    });
    !bodyless
        && !no_transform
        && !headers.contains_key(CONTENT_ENCODING)
        && !headers.contains_key(CONTENT_RANGE)
        && length.is_none_or(|n| n >= u64::from(policy.bytes_min))
        && headers.get(CONTENT_TYPE).is_some_and(|v| is_text(v.to_str().unwrap_or_default()))
}

/// Types that shrink: text, and what is text under another name. Not gRPC, which frames what it sends.
fn is_text(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.starts_with("text/") && essence != "text/event-stream"
        || essence.ends_with("+json")
        || essence.ends_with("+xml")
        || matches!(
            essence.as_str(),
            "application/json"
                | "application/javascript"
                | "application/xml"
                | "application/x-ndjson"
                | "application/wasm"
                | "application/manifest+json"
                | "image/svg+xml"
        )
}

fn add_vary(headers: &mut HeaderMap) {
    let said = headers.get_all(VARY).iter().any(|value| {
        let text = value.to_str().unwrap_or_default();
        text.split(',').any(|n| n.trim() == "*" || n.trim().eq_ignore_ascii_case("accept-encoding"))
    });
    if !said {
        headers.append(VARY, HeaderValue::from_static("accept-encoding"));
    }
}

/// The bytes are others now, so a strong validator would be wrong.
fn weakened(etag: &HeaderValue) -> Option<HeaderValue> {
    let text = etag.to_str().ok()?;
    (!text.starts_with("W/")).then(|| HeaderValue::try_from(format!("W/{text}")).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};

    use super::*;

    fn wish(accept: &str) -> Wish {
        Wish::of(&Request::get("/").header("accept-encoding", accept).body(()).unwrap().into_parts().0)
    }

    fn prepared(fields: &[(&str, &str)], accept: &str) -> (bool, response::Parts) {
        let mut response = Response::builder();
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        let mut head = response.body(()).unwrap().into_parts().0;
        (prepare(&ir::Compression { bytes_min: 100 }, wish(accept), &mut head), head)
    }

    #[test]
    fn a_client_must_want_gzip() {
        for (accept, wanted) in [
            ("gzip", true),
            ("br, GZIP;q=0.5", true),
            ("*", true),
            ("*;q=0, gzip", true),
            ("gzip;q=0", false),
            ("gzip;Q=0", false),
            ("gzip;q=0, *", false),
            ("br", false),
            ("", false),
        ] {
            assert_eq!(wish(accept).gzip, wanted, "{accept}");
        }
    }

    #[test]
    fn a_compressed_answer_says_so_and_no_longer_what_is_wrong() {
        let fields = [
            ("content-type", "application/json; charset=utf-8"),
            ("content-length", "100"),
            ("etag", "\"1\""),
            ("accept-ranges", "bytes"),
        ];
        let (done, head) = prepared(&fields, "gzip");
        assert!(done);
        assert_eq!(head.headers[CONTENT_ENCODING], "gzip");
        assert_eq!(head.headers[ETAG], "W/\"1\"");
        assert_eq!(head.headers[VARY], "accept-encoding");
        assert!(!head.headers.contains_key(CONTENT_LENGTH) && !head.headers.contains_key(ACCEPT_RANGES));
        let (done, head) = prepared(&fields, "br");
        assert!(!done);
        assert_eq!(
            (&head.headers[VARY], &head.headers[ETAG]),
            (&"accept-encoding".parse().unwrap(), &"\"1\"".parse().unwrap())
        );
    }

    #[test]
    fn what_is_short_binary_encoded_or_must_not_be_changed_is_left_alone() {
        for fields in [
            &[("content-type", "text/plain"), ("content-length", "99")][..],
            &[("content-type", "image/png")],
            &[("content-type", "application/grpc")],
            &[("content-type", "text/event-stream")],
            &[("content-type", "text/plain"), ("content-encoding", "br")],
            &[("content-type", "text/plain"), ("cache-control", "public, no-transform")],
            &[("content-type", "text/plain"), ("content-range", "bytes 0-1/2")],
            &[],
        ] {
            let (done, head) = prepared(fields, "gzip");
            assert!(!done && !head.headers.contains_key(VARY), "{fields:?}");
        }
    }
}
