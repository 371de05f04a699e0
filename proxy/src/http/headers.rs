//! Header fields that are for one hop only, and those that proxies add (RFC 9110 §7.6).

use std::net::IpAddr;

use http::Version;
use http::header::{
    CONNECTION, CONTENT_LENGTH, Entry, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use smallvec::SmallVec;

use super::present::Present;
use crate::policy::forwarding::append_to_list;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

/// Name by which our proxies know each other in `Via`.
const PSEUDONYM: &str = "weft";

/// What is for one hop only (RFC 9110 §7.6.1).
pub(crate) const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    TRANSFER_ENCODING,
    TE,
    UPGRADE,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
];

/// Removes what was meant for this hop only. Answers whether the sender takes trailers (`TE: trailers`).
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) -> bool {
    if !Present::of(headers).any(Present::HOP_BY_HOP) {
        return false;
    }
    let trailers = headers.get_all(TE).iter().any(|v| tokens(v).any(|t| t.eq_ignore_ascii_case(b"trailers")));
    let listed: SmallVec<[HeaderName; 4]> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(tokens)
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .filter(may_be_listed)
        .collect();
    if headers.contains_key(TRANSFER_ENCODING) {
        // The coding decides where the body ends (RFC 9112 §6.3); a length beside it is wrong.
        headers.remove(CONTENT_LENGTH);
    }
    for name in HOP_BY_HOP.iter().chain(&listed) {
        headers.remove(name);
    }
    trailers
}

/// What is wrong with the fields that say where an answer ends, if anything is. Our side of the connection reads on
/// where others read otherwise, so nothing of such an answer is passed on (RFC 9112 §6.3). No transfer coding but
/// `chunked` was asked for.
pub(crate) fn doubtful_framing(headers: &HeaderMap) -> Option<&'static str> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let length = lengths.next();
    if lengths.next().is_some() {
        return Some("it has several Content-Length fields");
    }
    if length.is_some_and(|l| l.is_empty() || !l.as_bytes().iter().all(u8::is_ascii_digit)) {
        return Some("its Content-Length is not a plain decimal number");
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let coding = codings.next()?;
    if length.is_some() {
        return Some("it has both Content-Length and Transfer-Encoding");
    }
    let chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked") && codings.next().is_none();
    (!chunked).then_some("its Transfer-Encoding is other than chunked")
}

/// Removes from a trailer section what frames or routes a message or belongs to one connection (RFC 9110 §6.5.1): the
/// next hop may send it in a protocol where it is malformed.
pub(crate) fn strip_trailers(trailers: &mut HeaderMap) {
    strip_hop_by_hop(trailers);
    for name in [CONTENT_LENGTH, HOST, TRAILER] {
        trailers.remove(name);
    }
}

/// A client must not use `Connection` to take away what this proxy or the app relies on.
fn may_be_listed(name: &HeaderName) -> bool {
    let kept = [HOST, CONTENT_LENGTH, VIA, X_FORWARDED_FOR, X_FORWARDED_PROTO];
    !kept.contains(name)
}

/// Bytes and not text: one odd token must not hide the others.
pub(crate) fn tokens(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|t| !t.is_empty())
}

/// Says to the next hop that trailers are welcome; on HTTP/1 `TE` itself is for one hop.
pub(crate) fn announce_trailers(headers: &mut HeaderMap, http1: bool) {
    headers.insert(TE, TRAILERS);
    if http1 {
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
}

/// How often a proxy of ours was passed before, as `Via` says.
pub(crate) fn hops(headers: &HeaderMap) -> usize {
    headers.get_all(VIA).iter().flat_map(tokens).filter(|t| t.ends_with(PSEUDONYM.as_bytes())).count()
}

/// Appends this hop to `Via`.
pub(crate) fn append_via(headers: &mut HeaderMap, received: Version) {
    let hop = match received {
        Version::HTTP_2 => "2 weft",
        Version::HTTP_10 => "1.0 weft",
        _ => "1.1 weft",
    };
    headers.append(VIA, HeaderValue::from_static(hop));
}

/// Appends who sent the request and how. What came before stays, as one list however many fields it had: it is from
/// other hops, and an app that looks at one field must see all of them.
pub(crate) fn append_forwarded(headers: &mut HeaderMap, peer: &HeaderValue, tls: bool) {
    append_to_list(headers, X_FORWARDED_FOR, peer);
    if let Entry::Vacant(vacant) = headers.entry(X_FORWARDED_PROTO) {
        vacant.insert(HeaderValue::from_static(if tls { "https" } else { "http" }));
    }
}

/// The same in `forwarded` (RFC 7239 §4), for those who carry it: one that ends before the last hop would say that the hop
/// before was the last. Without `by`: nobody asks for this proxy's address.
pub(crate) fn append_to_forwarded(head: &mut http::request::Parts, peer: IpAddr, tls: bool) {
    if !head.headers.contains_key(FORWARDED) {
        return;
    }
    let mut element = match peer {
        IpAddr::V4(ip) => format!("for={ip}"),
        IpAddr::V6(ip) => format!("for=\"[{ip}]\""),
    };
    let authority = head.uri.authority().map(|authority| authority.as_str());
    let host = authority.or_else(|| head.headers.get(HOST).and_then(|host| host.to_str().ok()));
    if let Some(host) = host.filter(|host| !host.contains(['"', '\\'])) {
        element.extend([";host=\"", host, "\""]);
    }
    element.push_str(if tls { ";proto=https" } else { ";proto=http" });
    if let Ok(element) = HeaderValue::try_from(element) {
        append_to_list(&mut head.headers, FORWARDED, &element);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        fields.iter().map(|(n, v)| (n.parse::<HeaderName>().unwrap(), v.parse().unwrap())).collect()
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn fields_of_one_hop_are_removed_and_others_stay() {
        let mut headers = map(&[
            ("host", "a"),
            ("connection", "close, X-Mine"),
            ("connection", "x-other"),
            ("x-mine", "1"),
            ("x-other", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic x"),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("http2-settings", "AAMAAABkAAQAAP__"),
            ("trailer", "x-sum"),
            ("accept", "*/*"),
        ]);
        assert!(!strip_hop_by_hop(&mut headers));
        assert_eq!(names(&headers), ["accept", "host", "trailer"]);
    }

    #[test]
    fn te_trailers_is_understood_and_announced_again() {
        let mut headers = map(&[("te", "deflate;q=0.5, Trailers"), ("connection", "te")]);
        assert!(strip_hop_by_hop(&mut headers));
        assert!(headers.is_empty());
        announce_trailers(&mut headers, true);
        assert_eq!(names(&headers), ["connection", "te"]);
    }

    #[test]
    fn connection_cannot_take_away_what_we_rely_on() {
        let mut headers = map(&[
            ("connection", "host, content-length, x-forwarded-for, via"),
            ("host", "a"),
            ("content-length", "3"),
            ("x-forwarded-for", "10.0.0.1"),
            ("via", "1.1 other"),
        ]);
        strip_hop_by_hop(&mut headers);
        assert_eq!(names(&headers), ["content-length", "host", "via", "x-forwarded-for"]);
    }

    #[test]
    fn via_counts_our_hops() {
        let mut headers = map(&[("via", "1.1 cdn, 2 weft")]);
        assert_eq!(hops(&headers), 1);
        append_via(&mut headers, Version::HTTP_11);
        assert_eq!(hops(&headers), 2);
        append_via(&mut headers, Version::HTTP_2);
        assert_eq!(headers.get_all(VIA).iter().count(), 3);
    }

    #[test]
    fn forwarded_is_continued_by_this_hop_and_never_begun() {
        let head = |uri: &str, fields: &[(&str, &str)]| {
            let (mut head, ()) = http::Request::get(uri).body(()).unwrap().into_parts();
            head.headers = map(fields);
            head
        };
        let mut one = head("/", &[("host", "a.example:80"), ("forwarded", "for=10.9.9.9;proto=https")]);
        append_to_forwarded(&mut one, [10, 0, 0, 2].into(), false);
        let ours = "for=10.0.0.2;host=\"a.example:80\";proto=http";
        assert_eq!(one.headers[FORWARDED], format!("for=10.9.9.9;proto=https, {ours}"));
        let mut two = head("http://b.example/", &[("forwarded", "for=a"), ("forwarded", "for=b")]);
        append_to_forwarded(&mut two, "2001:db8::1".parse().unwrap(), true);
        let all: Vec<_> = two.headers.get_all(FORWARDED).iter().collect();
        assert_eq!(all, ["for=a, for=b, for=\"[2001:db8::1]\";host=\"b.example\";proto=https"]);
        let mut quoted = head("/", &[("host", "a\";for=b"), ("forwarded", "for=a")]);
        append_to_forwarded(&mut quoted, [10, 0, 0, 2].into(), false);
        assert_eq!(quoted.headers[FORWARDED], "for=a, for=10.0.0.2;proto=http");
        let mut none = head("/", &[("host", "a")]);
        append_to_forwarded(&mut none, [10, 0, 0, 2].into(), false);
        assert!(!none.headers.contains_key(FORWARDED));
    }

    #[test]
    fn forwarded_for_is_a_list_in_order_of_hops() {
        let mut headers = map(&[("x-forwarded-for", "10.0.0.1")]);
        let peer = |text: &'static str| HeaderValue::from_static(text);
        append_forwarded(&mut headers, &peer("10.0.0.2"), true);
        assert_eq!(headers[X_FORWARDED_FOR], "10.0.0.1, 10.0.0.2");
        assert_eq!(headers[X_FORWARDED_PROTO], "https");
        append_forwarded(&mut headers, &peer("10.0.0.3"), false);
        assert_eq!(headers[X_FORWARDED_FOR], "10.0.0.1, 10.0.0.2, 10.0.0.3");
        assert_eq!(headers[X_FORWARDED_PROTO], "https", "the first hop knows");
        let mut two = map(&[("x-forwarded-for", "10.0.0.1"), ("x-forwarded-for", "10.0.0.2")]);
        append_forwarded(&mut two, &peer("10.0.0.3"), false);
        let all: Vec<_> = two.get_all(X_FORWARDED_FOR).iter().collect();
        assert_eq!(all, ["10.0.0.1, 10.0.0.2, 10.0.0.3"]);
    }
}
