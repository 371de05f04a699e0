use http::header::HeaderValue;
use http::{Method, StatusCode, Version};
use weft_core::metrics::Registry;

use super::context::{TRACEPARENT, TRACESTATE};
use super::*;
use crate::telemetry::flag::{Flag, Flags};

fn tracer(sample_percent: f64) -> (Arc<Tracer>, mpsc::Receiver<otlp::Span>, Metrics) {
    let config = TraceConfig { endpoint: "http://127.0.0.1:4317".parse().unwrap(), sample_percent };
    let metrics = Metrics::new(Registry::new());
    let (tracer, queue) = Tracer::new(&config, &metrics);
    (tracer, queue, metrics)
}

fn from(parent: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(TRACEPARENT, HeaderValue::from_static(parent));
    headers.insert(TRACESTATE, HeaderValue::from_static("a=1"));
    headers
}

const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

#[test]
fn a_callers_decision_holds_whatever_is_configured() {
    let (never, _queue, _) = tracer(0.0);
    let mut headers = from(SAMPLED);
    let ids = never.begin(&mut headers, || 7).unwrap();
    assert_eq!(ids.parent, Some([0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31]));
    assert_eq!(headers[TRACEPARENT], "00-0af7651916cd43dd8448eb211c80319c-0000000000000007-01");
    assert_eq!(headers[TRACESTATE], "a=1");

    let (always, _queue, _) = tracer(100.0);
    let mut headers = from(UNSAMPLED);
    assert_eq!(always.begin(&mut headers, || 7), None);
    assert_eq!(headers[TRACEPARENT], UNSAMPLED, "as it came");
}

#[test]
fn a_trace_that_begins_here_is_sampled_by_its_share_and_told_either_way() {
    let (half, _queue, _) = tracer(50.0);
    for (random, flags) in [(1, "-03"), (u64::MAX, "-02")] {
        let mut headers = HeaderMap::new();
        let ids = half.begin(&mut headers, || random);
        assert_eq!(ids.is_some(), flags == "-03");
        assert!(headers[TRACEPARENT].to_str().unwrap().ends_with(flags), "{headers:?}");
        assert!(ids.is_none_or(|ids| ids.parent.is_none()));
    }
    let (all, _queue, _) = tracer(100.0);
    assert!(all.begin(&mut HeaderMap::new(), || u64::MAX).is_some());
    let (none, _queue, _) = tracer(0.0);
    assert!(none.begin(&mut HeaderMap::new(), || 0).is_none());
}

fn entry() -> Entry {
    Entry {
        direction: Direction::Outbound,
        client: "127.0.0.1:4000".parse().unwrap(),
        method: Method::GET,
        host: "orders:80".to_owned(),
        path: "/a?secret".to_owned(),
        protocol: Some(Version::HTTP_11),
        status: Some(StatusCode::NOT_FOUND),
        flags: Flags::default(),
        bytes: 0,
        took: Duration::from_millis(5),
        head: None,
        service: "orders".to_owned(),
        route: String::new(),
        endpoint: "10.0.0.1:80".parse().ok(),
        tries: 2,
        trace_id: String::new(),
    }
}

#[test]
fn a_span_says_what_the_request_was_in_the_words_of_open_telemetry() {
    let (tracer, mut queue, _) = tracer(100.0);
    let mut headers = from(SAMPLED);
    let ids = tracer.begin(&mut headers, || 7).unwrap();
    tracer.end(ids, context::state_of(&headers), &entry(), Duration::from_secs(10));
    let span = queue.try_recv().unwrap();
    assert_eq!(
        (span.trace_id.len(), span.span_id, span.kind),
        (16, 7_u64.to_be_bytes().to_vec(), otlp::CLIENT)
    );
    assert_eq!((span.name.as_str(), span.trace_state.as_str()), ("GET orders", "a=1"));
    assert_eq!(span.end_time_unix_nano - span.start_time_unix_nano, 5_000_000);
    let text = |key: &str, value: &str| {
        assert!(span.attributes.contains(&otlp::KeyValue::text(key, value)), "{key}")
    };
    text("http.request.method", "GET");
    text("url.path", "/a");
    text("server.address", "orders");
    text("network.peer.address", "10.0.0.1");
    assert!(span.attributes.contains(&otlp::KeyValue::number("http.request.resend_count", 1)));
    assert_eq!(span.status.unwrap().code, otlp::ERROR, "404 is an error of who asks");

    let inbound = Entry { direction: Direction::Inbound, ..entry() };
    tracer.end(ids, String::new(), &inbound, Duration::from_secs(10));
    let span = queue.try_recv().unwrap();
    assert_eq!((span.kind, span.status), (otlp::SERVER, None), "and none of who answers");

    let flags = Flags::default().with(Flag::ClientGone);
    tracer.end(ids, String::new(), &Entry { status: None, flags, ..entry() }, Duration::from_secs(10));
    let span = queue.try_recv().unwrap();
    assert!(span.attributes.contains(&otlp::KeyValue::text("error.type", "client-gone")));
}

#[test]
fn spans_without_room_are_dropped_and_counted() {
    let (tracer, _queue, metrics) = tracer(100.0);
    let ids = tracer.begin(&mut HeaderMap::new(), || 7).unwrap();
    for _ in 0..SPANS_WAITING_MAX + 3 {
        tracer.end(ids, String::new(), &entry(), Duration::from_secs(1));
    }
    assert_eq!(metrics.spans_dropped.get(), 3);
}
