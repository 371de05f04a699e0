use http::{Request, Response};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn get(fields: &[(&str, &str)]) -> request::Parts {
    let mut request = Request::get("/");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn answer(status: u16, fields: &[(&str, &str)]) -> response::Parts {
    let mut response = Response::builder().status(status);
    for (name, value) in fields {
        response = response.header(*name, *value);
    }
    response.body(()).unwrap().into_parts().0
}

fn policy() -> ir::CachePolicy {
    ir::CachePolicy { body_bytes_max: 1000, ttl_default: None }
}

/// Sends a request through; answers whether its answer was stored.
fn fetch(cache: &mut Cache, asked: &request::Parts, answered: &response::Parts, now: Instant) -> bool {
    let Found::Miss(ticket) = cache.lookup("k", "r", asked, now) else { panic!("nothing is stored") };
    match judge(&policy(), &ticket, answered) {
        Some(pending) => {
            cache.store(pending, Bytes::from_static(b"body"), now);
            true
        }
        None => false,
    }
}

fn hit(found: Found) -> Option<(StatusCode, HeaderMap, Bytes)> {
    match found {
        Found::Hit(status, headers, body) => Some((status, headers, body)),
        _ => None,
    }
}

#[test]
fn a_fresh_answer_is_used_again_with_its_age_and_a_stale_one_is_not() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    assert!(fetch(
        &mut cache,
        &get(&[]),
        &answer(200, &[("cache-control", "max-age=10"), ("age", "3")]),
        now
    ));
    let (status, headers, body) = hit(cache.lookup("k", "r", &get(&[]), now + 5 * SECOND)).unwrap();
    assert_eq!(
        (status, &headers[AGE], &body[..]),
        (StatusCode::OK, &HeaderValue::from_static("8"), &b"body"[..])
    );
    assert!(hit(cache.lookup("k", "r", &get(&[]), now + 7 * SECOND)).is_none());
    assert_eq!(cache.bytes(), 0, "what is stale goes");
}

#[test]
fn only_what_may_be_shared_is_stored() {
    let now = Instant::now();
    let stored = |asked: &[(&str, &str)], status, fields: &[(&str, &str)]| {
        fetch(&mut Cache::default(), &get(asked), &answer(status, fields), now)
    };
    let fresh = ("cache-control", "max-age=10");
    assert!(stored(&[], 200, &[fresh]));
    assert!(stored(&[], 404, &[fresh]));
    assert!(stored(&[], 200, &[("cache-control", "s-maxage=10, max-age=0")]));
    let dated = [("date", "Sun, 06 Nov 1994 08:49:37 GMT"), ("expires", "Sun, 06 Nov 1994 08:50:37 GMT")];
    assert!(stored(&[], 200, &dated));
    assert!(stored(&[("authorization", "x")], 200, &[("cache-control", "public, max-age=10")]));
    for (asked, status, fields) in [
        (&[][..], 200, &[][..]),
        (&[], 500, &[fresh]),
        (&[], 200, &[("cache-control", "max-age=0")]),
        (&[], 200, &[("cache-control", "max-age=x")]),
        (&[], 200, &[("cache-control", "no-store, max-age=10")]),
        (&[], 200, &[("cache-control", "private, max-age=10")]),
        (&[], 200, &[("cache-control", "no-cache=\"x\", max-age=10")]),
        (&[], 200, &[("expires", "0")]),
        (&[], 200, &[fresh, ("age", "10")]),
        (&[], 200, &[fresh, ("vary", "*")]),
        (&[], 200, &[fresh, ("set-cookie", "a=b")]),
        (&[], 200, &[fresh, ("content-length", "1001")]),
        (&[("authorization", "x")], 200, &[fresh]),
    ] {
        assert!(!stored(asked, status, fields), "{asked:?} {status} {fields:?}");
    }
}

#[test]
fn what_a_request_says_of_caches_is_kept_to() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    assert!(fetch(&mut cache, &get(&[]), &answer(200, &[("cache-control", "max-age=10")]), now));
    let later = now + 5 * SECOND;
    for fields in [
        [("cache-control", "no-cache")],
        [("cache-control", "max-age=4")],
        [("cache-control", "min-fresh=6")],
        [("pragma", "no-cache")],
    ] {
        assert!(matches!(cache.lookup("k", "r", &get(&fields), later), Found::Miss(_)), "{fields:?}");
    }
    for fields in [[("cache-control", "no-store")], [("range", "bytes=0-1")]] {
        assert!(matches!(cache.lookup("k", "r", &get(&fields), later), Found::Bypass), "{fields:?}");
    }
    let only = get(&[("cache-control", "only-if-cached")]);
    assert!(hit(cache.lookup("k", "r", &only, later)).is_some());
    assert!(matches!(cache.lookup("other", "r", &only, later), Found::OnlyIfCached));
    assert!(hit(cache.lookup("k", "another route", &get(&[]), later)).is_none());
}

#[test]
fn answers_that_vary_are_kept_apart() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    let fields = [("cache-control", "max-age=10"), ("vary", "Accept-Language")];
    assert!(fetch(&mut cache, &get(&[("accept-language", "de")]), &answer(200, &fields), now));
    assert!(hit(cache.lookup("k", "r", &get(&[("accept-language", "de")]), now)).is_some());
    assert!(hit(cache.lookup("k", "r", &get(&[("accept-language", "fr")]), now)).is_none());
    assert!(hit(cache.lookup("k", "r", &get(&[]), now)).is_none());
}

#[test]
fn a_client_that_has_it_is_told_so() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    let fields = [("cache-control", "max-age=10"), ("etag", "\"1\"")];
    assert!(fetch(&mut cache, &get(&[]), &answer(200, &fields), now));
    for (asked, expected) in [("W/\"1\"", 304), ("\"0\", \"1\"", 304), ("*", 304), ("\"2\"", 200)] {
        let (status, _, body) = hit(cache.lookup("k", "r", &get(&[("if-none-match", asked)]), now)).unwrap();
        assert_eq!((status.as_u16(), body.is_empty()), (expected, expected == 304), "{asked}");
    }
}

#[test]
fn a_change_of_a_target_takes_its_answers_out() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    assert!(fetch(&mut cache, &get(&[]), &answer(200, &[("cache-control", "max-age=10")]), now));
    cache.invalidate("k");
    assert!(hit(cache.lookup("k", "r", &get(&[]), now)).is_none());
    assert_eq!(cache.bytes(), 0);
}

#[test]
fn memory_is_bounded_and_the_least_used_goes_first() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    let big = ir::CachePolicy { body_bytes_max: 16 << 20, ttl_default: Some(SECOND) };
    let body = Bytes::from(vec![b'x'; 1 << 20]);
    let store = |cache: &mut Cache, key: &str| {
        if let Found::Miss(ticket) = cache.lookup(key, "r", &get(&[]), now) {
            cache.store(judge(&big, &ticket, &answer(200, &[])).unwrap(), body.clone(), now);
        }
    };
    store(&mut cache, "first");
    for i in 0..100 {
        store(&mut cache, &i.to_string());
        assert!(hit(cache.lookup("first", "r", &get(&[]), now)).is_some(), "it is in use");
        assert!(cache.bytes() <= BYTES_MAX);
    }
    assert!(hit(cache.lookup("0", "r", &get(&[]), now)).is_none());
    assert!(hit(cache.lookup("99", "r", &get(&[]), now)).is_some());
}
