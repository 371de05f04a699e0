//! Whoever may be at the other end: each parser of ours takes an input or refuses it, whatever it is, and what it takes means
//! one thing. Known inputs are in `tests/corpus`.
//!
//! Parsers with more to say of their input have such tests beside them: heads, chunks and TLS hellos (`listener`, `http1`,
//! `upstream`, `tcp`), paths (`route`), trace contexts, deadlines, PROXY protocol headers and authorization.

use std::collections::HashMap;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION,
    CONNECTION, CONTENT_TYPE, COOKIE, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN, TE, VIA,
};
use http::{Method, Request, Response, Version, request};
use weft_corpus::{feed, feed_text};
use weft_xds_proto::resource::cluster::HashOn;
use weft_xds_proto::resource::guard::TokenIssuer;
use weft_xds_proto::resource::route as ir;

use crate::admin;
use crate::cluster::probe::grpc;
use crate::config::declared::{Declared, DeclaredTcp, ListenAt, Takes};
use crate::handover::wire::{self, FromNew, FromOld};
use crate::http::{headers, target};
use crate::jwks::Sources;
use crate::policy::cache::{self, Cache, Found};
use crate::policy::compression::{self, Wish};
use crate::policy::cors::{Asked, Cors};
use crate::policy::jwt::{Keys, Tokens};
use crate::policy::sticky::Sticky;
use crate::proxy_protocol::Network;
use crate::route::host;
use crate::route::matcher::{Matcher, Seen};
use crate::telemetry::access_log::format::{Format, Piece, TEXT};
use crate::telemetry::tap::Filter;
use crate::tls::live::Certificates;
use crate::xds::cache as disk;

macro_rules! corpus {
    ($parser:literal) => {
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/", $parser)
    };
}

/// The example of RFC 7515 §A.3, and some time at which it holds.
const ISSUER: &str = "joe";
const JWKS: &[u8] = include_bytes!(corpus!("jwks/good-rfc7515"));
const TOKEN: &[u8] = include_bytes!(corpus!("jwt/good-rfc7515"));
const NOW: u64 = 1_300_000_000;

fn parts(method: Method, fields: &[(HeaderName, HeaderValue)]) -> request::Parts {
    let (mut head, ()) = Request::new(()).into_parts();
    head.method = method;
    head.headers.extend(fields.iter().map(|(name, value)| (Some(name.clone()), value.clone())));
    head
}

fn answer(fields: HeaderMap) -> http::response::Parts {
    let (mut head, ()) = Response::new(()).into_parts();
    head.headers = fields;
    head
}

/// `name: value` lines; those that are none are left out.
fn fields(bytes: &[u8]) -> HeaderMap {
    let field = |line: &[u8]| {
        let colon = line.iter().position(|b| *b == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        Some((name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?))
    };
    bytes.split(|b| *b == b'\n').filter_map(field).collect()
}

/// With each byte but letters and digits as `%XX`.
fn escaped(text: &str) -> String {
    let one = |b: u8| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02x}") };
    text.bytes().map(one).collect()
}

#[test]
fn no_token_holds_but_the_one_that_was_signed() {
    let rule = TokenIssuer {
        issuer: ISSUER.to_owned(),
        jwks: Some(String::from_utf8_lossy(JWKS).into_owned()),
        ..TokenIssuer::default()
    };
    let tokens = Tokens::new("orders", &[rule], &Certificates::default(), &Sources::default()).unwrap();
    feed(corpus!("jwt"), "[A-Za-z0-9_-]{0,80}(\\.[A-Za-z0-9_-]{0,80}){0,3}", |token| {
        let Ok(field) = HeaderValue::from_bytes(&[b"Bearer ", token].concat()) else { return false };
        let head = parts(Method::GET, &[(AUTHORIZATION, field)]);
        let taken = tokens.verify(&head.headers, NOW).is_ok_and(|verified| verified.is_some());
        assert!(!taken || token.trim_ascii() == TOKEN.trim_ascii(), "another token holds");
        taken
    });
}

#[test]
fn any_keys_verify_nothing_that_they_have_not_signed() {
    let algorithms =
        ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA", "none", ""];
    feed(
        corpus!("jwks"),
        r#"\{"keys":\[(\{"kty":"(RSA|EC|OKP)","(n|e|x|y|crv)":"[A-Za-z0-9_-]{0,44}"\},?){0,3}\]\}"#,
        |text| {
            let Ok(keys) = Keys::parse(text) else { return false };
            for algorithm in algorithms {
                for length in [0, 64, 96, 256] {
                    keys.verify(algorithm, None, b"signed", &vec![1; length]).unwrap_err();
                }
            }
            true
        },
    );
}

#[test]
fn a_host_is_the_same_once_it_is_comparable() {
    feed_text(corpus!("host"), "(\\[[0-9a-f:.%]{0,40}\\]|[A-Za-z0-9._@-]{0,40})(:[0-9]{0,6})?", |text| {
        let Ok(name) = host::normalise(text) else { return false };
        assert_eq!(host::normalise(&name).as_deref(), Ok(&*name));
        assert_eq!(host::normalise(&format!("{name}:80")).as_deref(), Ok(&*name));
        assert!(host::service(&name).is_none_or(|service| name.starts_with(service)));
        true
    });
}

/// A request line's target, a space, and its `Host`.
#[test]
fn a_target_names_one_host() {
    feed_text(
        corpus!("target"),
        "((https?://)?[a-zA-Z0-9.:@\\[\\]-]{0,30})?(/[a-z?=*]{0,10})? [a-zA-Z0-9.:\\[\\]-]{0,30}",
        |text| {
            let (uri, host) = text.split_once(' ').unwrap_or((text, ""));
            let (Ok(uri), Ok(host)) = (uri.parse(), HeaderValue::from_str(host)) else { return false };
            let mut head = parts(Method::GET, &[(HOST, host)]);
            head.uri = uri;
            let one = target::of(&head);
            head.version = Version::HTTP_2;
            for target in [&one, &target::of(&head)].into_iter().flatten() {
                assert_eq!(host::normalise(&target.authority).as_deref(), Ok(&*target.host));
            }
            one.is_ok()
        },
    );
}

/// Taken is what tells that trailers are welcome.
#[test]
fn nothing_for_one_hop_only_goes_on() {
    feed(
        corpus!("connection"),
        "((connection|te|via|keep-alive|x-a|host): [a-z0-9 ,;=.-]{0,30}\n){0,5}",
        |text| {
            let mut all = fields(text);
            let hops = headers::hops(&all);
            headers::append_via(&mut all, Version::HTTP_11);
            assert_eq!(headers::hops(&all), hops + 1);
            let kept = [HOST, VIA].map(|name| all.get_all(&name).iter().cloned().collect::<Vec<_>>());
            let listed: Vec<_> = all.get_all(CONNECTION).iter().flat_map(headers::tokens).collect();
            let listed: Vec<_> = listed.into_iter().filter_map(|t| HeaderName::from_bytes(t).ok()).collect();
            let trailers = headers::strip_hop_by_hop(&mut all);
            assert!(headers::HOP_BY_HOP.iter().all(|name| !all.contains_key(name)));
            assert_eq!(kept, [HOST, VIA].map(|name| all.get_all(&name).iter().cloned().collect::<Vec<_>>()));
            let gone =
                |name: &HeaderName| !all.contains_key(name) || name.as_str().starts_with("x-forwarded-");
            assert!(
                listed
                    .iter()
                    .all(|name| gone(name) || [HOST, VIA, http::header::CONTENT_LENGTH].contains(name))
            );
            headers::announce_trailers(&mut all, true);
            assert_eq!(all[TE], "trailers");
            trailers
        },
    );
}

/// Taken is what has a parameter `a`.
#[test]
fn a_parameter_is_what_stands_escaped_in_the_query() {
    let matcher = |value: ir::StringMatch| {
        let query = vec![ir::ValueMatch { name: "a".to_owned(), value, invert: false }];
        Matcher::new(&ir::RouteMatch { query, ..ir::RouteMatch::any() }).unwrap()
    };
    let present = matcher(ir::StringMatch::Present);
    let holds = |matcher: &Matcher, query: &str| {
        matcher.matches(&Seen { method: &Method::GET, path: "/", query, headers: &HeaderMap::new() })
    };
    feed_text(corpus!("query"), "([ab]{0,2}(%[0-9a-fA-F]{0,2})?=?[a-z%0-9]{0,8}&?){0,4}", |text| {
        let exact = matcher(ir::StringMatch::Exact(text.to_owned()));
        let query = format!("b=1&%61={}&a=2", escaped(text));
        assert!(holds(&exact, &query) && holds(&present, &query));
        holds(&present, text)
    });
}

/// Taken is what has the cookie.
#[test]
fn a_client_with_the_cookie_that_it_was_given_sticks() {
    let on = HashOn::Cookie("SID".to_owned());
    let of = |field: &[u8]| {
        let field = HeaderValue::from_bytes(field).ok()?;
        Some(Sticky::of(&on, &HeaderMap::from_iter([(COOKIE, field)]), None, 7))
    };
    feed(corpus!("cookie"), "([ ;]{0,2}(SID|sid|a)=?[a-z0-9=\" ]{0,8};?){0,4}", |field| {
        let Some(first) = of(field) else { return false };
        let Some(given) = &first.set_cookie else { return first.key.is_some() };
        let pair = given.as_bytes().split(|b| *b == b';').next().unwrap();
        let again = of(&[field, b";", pair].concat()).unwrap();
        assert_eq!(again, Sticky { key: first.key, set_cookie: None });
        false
    });
}

/// Taken is what accepts gzip.
#[test]
fn accept_encoding_is_read_whatever_it_says() {
    let policy = ir::Compression { bytes_min: 0 };
    feed(
        corpus!("accept_encoding"),
        "( ?(gzip|x-gzip|br|\\*|identity)( ?; ?q=[0-9.]{0,5})?,?){0,4}",
        |field| {
            let Ok(field) = HeaderValue::from_bytes(field) else { return false };
            let wish = Wish::of(&parts(Method::GET, &[(ACCEPT_ENCODING, field.clone())]));
            let text = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("text/plain"))]);
            let compressed = compression::prepare(&policy, wish, &mut answer(text));
            assert!(!compressed || field.as_bytes().iter().any(|b| matches!(b, b'g' | b'G' | b'*')));
            compressed
        },
    );
}

/// Of an answer, which is asked for again with the same fields. Taken is what is stored.
#[test]
fn an_answer_is_stored_only_if_nothing_in_it_forbids_that() {
    let policy = ir::CachePolicy { ttl_default: Some(Duration::from_secs(60)), ..ir::CachePolicy::default() };
    let near = "((cache-control: (no-store|private|public|max-age=[0-9]{0,22}|s-maxage=\"[0-9]{0,3}\"|, ?){0,4}|age: [0-9]{0,20}|\
                vary: [a-z*, ]{0,10}|expires: [A-Za-z0-9, :]{0,30}|date: Sun, 06 Nov [0-9]{0,5} 08:49:37 GMT)\n){0,4}";
    feed(corpus!("cache_control"), near, |text| {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let Found::Miss(ticket) = cache.lookup("a/", "r", &parts(Method::GET, &[]), now) else {
            panic!("a plain request of an empty cache")
        };
        let head = answer(fields(text));
        let pending = cache::judge(&policy, &ticket, &head);
        let stored = pending.is_some();
        if let Some(pending) = pending {
            cache.store(pending, Bytes::from_static(b"body"), now);
        }
        let forbidden = head.headers.get_all("cache-control").iter().any(|value| {
            let mut all = value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii);
            all.any(|d| d.eq_ignore_ascii_case(b"no-store") || d.eq_ignore_ascii_case(b"private"))
        });
        assert!(!(stored && forbidden));
        let mut asked = parts(Method::GET, &[]);
        asked.headers = fields(text);
        for later in [0, 1, 59, 86_400, 1 << 32] {
            cache.lookup("a/", "r", &asked, now + Duration::from_secs(later));
        }
        assert_eq!(cache.bytes(), 0, "nothing is kept for that long");
        stored
    });
}

/// An origin, and in further lines what is asked for. Taken is an origin that is allowed.
#[test]
fn only_origins_that_are_named_are_allowed() {
    let cors = Cors::new(&ir::Cors {
        origins: vec![
            ir::StringMatch::Exact("https://a.test".to_owned()),
            ir::StringMatch::Regex("https://[a-z]+\\.b\\.test".to_owned()),
        ],
        methods: vec!["GET".to_owned()],
        headers: vec!["*".to_owned()],
        credentials: true,
        ..ir::Cors::default()
    })
    .unwrap();
    feed(corpus!("cors"), "https?://[a-z./:]{0,12}\\.?[ab]\\.test(\n[A-Za-z, *-]{0,20}){0,2}", |text| {
        let mut lines = text.split(|b| *b == b'\n').map(HeaderValue::from_bytes);
        let Some(Ok(origin)) = lines.next() else { return false };
        let asks = lines.flatten();
        let names = [ACCESS_CONTROL_REQUEST_METHOD, ACCESS_CONTROL_REQUEST_HEADERS];
        let mut all = vec![(ORIGIN, origin.clone())];
        all.extend(names.into_iter().zip(asks));
        let named = |origin: &[u8]| {
            let middle = origin.strip_prefix(b"https://").and_then(|rest| rest.strip_suffix(b".b.test"));
            origin == b"https://a.test"
                || middle.is_some_and(|m| !m.is_empty() && m.iter().all(u8::is_ascii_lowercase))
        };
        let is_named = named(origin.as_bytes());
        match cors.ask(&parts(Method::GET, &all)) {
            Asked::Actual(seen) => assert!(is_named && seen == origin),
            other => assert!(!is_named && other == Asked::Nothing),
        }
        match cors.ask(&parts(Method::OPTIONS, &all)) {
            Asked::Preflight(answer) => assert_eq!(answer.is_empty(), !is_named),
            other => assert!(all.len() == 1 && matches!(other, Asked::Actual(_)) == is_named),
        }
        is_named
    });
}

#[test]
fn a_health_answer_is_one_message_that_says_serving() {
    feed(corpus!("grpc_health"), "\0\0\0\0[\u{0}-\u{4}]\u{8}[\u{0}-\u{4}]{0,3}", |bytes| {
        let serves = grpc::judge_message(bytes).is_ok();
        let length = u64::try_from(bytes.len()).unwrap();
        assert!(!serves || bytes[..5] == (length - 5).to_be_bytes()[3..], "more than one message, or less");
        serves
    });
}

/// Each input twice: as a file, and as the content of one, where no checksum stands before it.
#[test]
fn a_cache_on_disk_is_read_as_it_was_written_or_not_at_all() {
    let again = |bytes: &[u8]| {
        let Ok(held) = disk::decode(bytes) else { return false };
        assert_eq!(disk::decode(&disk::encode(held.clone())).unwrap(), held);
        true
    };
    feed(corpus!("xds_cache"), "weftxds\0\u{1}\0\0\0[\0-\u{7f}]{0,60}", |bytes| {
        let payload = bytes.get(24..).unwrap_or(bytes);
        let mut sound = b"weftxds\0\x01\0\0\0".to_vec();
        sound.extend((payload.len() as u64).to_le_bytes());
        sound.extend(crc32fast::hash(payload).to_le_bytes());
        sound.extend(payload);
        again(&sound);
        again(bytes)
    });
}

#[test]
fn a_log_format_says_what_was_written() {
    feed_text(
        corpus!("log_format"),
        "([a-z \"]{0,5}\\{(status|path|time|[a-z_]{0,6})\\}?){0,5}[a-z{}]{0,4}",
        |text| {
            let Ok(format) = text.parse::<Format>() else { return false };
            if let Format::Text(pieces) = format {
                let words = pieces.iter().map(|piece| match piece {
                    Piece::Literal(text) => text.clone(),
                    Piece::Field(field) => format!("{{{}}}", field.word()),
                });
                assert_eq!(words.collect::<String>(), if text == "text" { TEXT } else { text });
            }
            true
        },
    );
}

#[test]
fn a_query_of_the_admin_port_is_a_filter_or_refused() {
    feed_text(
        corpus!("tap"),
        "((service|status|path|client|min-ms|flag|direction|limit)=[a-z0-9/%+.:-]{0,10}&?){0,4}",
        |text| {
            let query = admin::query(text);
            let filter = query.as_ref().ok().and_then(|all| Filter::from_query(all, &["limit"]).ok());
            if let Ok(all) = query {
                let pairs = all.iter().map(|(key, value)| format!("{}={}", escaped(key), escaped(value)));
                let again = admin::query(&pairs.collect::<Vec<_>>().join("&")).unwrap();
                assert_eq!(again, all);
                let filter_again = Filter::from_query(&again, &["limit"]).ok();
                assert_eq!(filter_again, filter);
            }
            let one: HashMap<_, _> = [("path".to_owned(), text.to_owned())].into();
            assert_eq!(Filter::from_query(&one, &[]).is_ok(), text.starts_with('/'));
            filter.is_some()
        },
    );
}

/// Written again from what was understood, it means the same.
#[test]
fn a_declared_listener_is_what_is_written() {
    let written = |one: &Declared| {
        let mut text = format!("{}={},protocol={}", one.at, one.service(), one.protocol());
        if let ListenAt::Unix { mode, .. } = &one.at {
            text += &format!(",mode={mode:o}");
        }
        if let Takes::Tls { domain: Some(domain) } = &one.takes {
            text += &format!(",domain={domain}");
        }
        if !one.accept_proxy.is_empty() {
            let all: Vec<_> = one.accept_proxy.iter().map(Network::to_string).collect();
            text += &format!(",accept-proxy={}", all.join("+"));
        }
        text
    };
    let near = "(127\\.0\\.0\\.1:[0-9]{0,6}|\\[[0-9a-f:%]{0,12}\\]:1|unix:/?[a-z]{0,4})=(\\*|[a-z.-]{0,12})\
                (,(protocol|mode|domain|accept-proxy|send-proxy|cert|key|min-version)=[a-z0-9./+]{0,10}){0,4}";
    feed_text(corpus!("declared"), near, |text| {
        let bytes = text.parse::<DeclaredTcp>();
        let Ok(one) = text.parse::<Declared>() else { return false };
        let again: Declared = written(&one).parse().unwrap();
        let same = Declared { send_proxy: one.send_proxy, tls: one.tls.clone(), ..again };
        assert_eq!(same, one);
        if let Ok(DeclaredTcp(bytes)) = bytes {
            assert_eq!(bytes.at, one.at);
        }
        true
    });
}

#[test]
fn a_handover_message_is_sent_on_as_it_came() {
    fn passes<M: serde::de::DeserializeOwned + serde::Serialize + PartialEq + std::fmt::Debug>(
        bytes: &[u8],
    ) -> bool {
        let (mut one, mut two) = UnixStream::pair().unwrap();
        // Inputs are smaller than what a socket holds.
        one.write_all(bytes).unwrap();
        one.shutdown(Shutdown::Write).unwrap();
        let Ok(Some((message, other))) = wire::receive::<M>(&mut two) else { return false };
        wire::send(&mut two, &message, &other).unwrap();
        assert_eq!(wire::receive::<M>(&mut one).unwrap(), Some((message, other)));
        true
    }
    feed(corpus!("handover"), "\0\0\0[\0- ]\0\0\0[\0-\u{4}][a-z{}\":,0-9\\[\\]]{0,40}", |bytes| {
        let (new, old) = (passes::<FromNew>(bytes), passes::<FromOld>(bytes));
        assert!(!(new && old), "a message has one sender");
        new || old
    });
}
