//! Traces over real sockets: what a collector and the next hop get.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use prost::Message;
use weft_proxy::telemetry::trace::TraceConfig;
use weft_proxy::telemetry::trace::otlp::{EXPORT, ExportRequest, KeyValue, ResourceSpans, Span};

use crate::support::*;

type Batches = Arc<Mutex<Vec<ResourceSpans>>>;

/// A collector that refuses its first call as a busy one does.
async fn collector() -> (SocketAddr, Batches) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let batches = Batches::default();
    let calls = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let taken = batches.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (taken, calls) = (taken.clone(), calls.clone());
            let service = service_fn(move |request: Request<Incoming>| {
                let (taken, calls) = (taken.clone(), calls.clone());
                async move {
                    assert_eq!(request.uri().path(), EXPORT);
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let first = calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
                    if !first {
                        // Behind the frame's flag and length.
                        taken.lock().extend(ExportRequest::decode(&body[5..]).unwrap().resource_spans);
                    }
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", HeaderValue::from_static(if first { "14" } else { "0" }));
                    let frames: Vec<Result<Frame<Bytes>, std::convert::Infallible>> =
                        vec![Ok(Frame::data(Bytes::from_static(&[0; 5]))), Ok(Frame::trailers(trailers))];
                    let body = StreamBody::new(futures::stream::iter(frames));
                    Response::builder().header("content-type", "application/grpc").body(body)
                }
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    (addr, batches)
}

fn spans(batches: &Batches) -> Vec<Span> {
    batches.lock().iter().flat_map(|b| &b.scope_spans).flat_map(|s| s.spans.clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sampled_request_is_a_span_at_the_collector_and_its_parent_at_the_next_hop() {
    let (addr, batches) = collector().await;
    let (seen, sees) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
    let heads = seen.clone();
    let (upstream, _task) = raw_upstream(move |mut stream, _| {
        let heads = heads.clone();
        async move {
            while let Some(head) = read_head(&mut stream).await {
                heads.lock().push(head);
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await.unwrap();
            }
        }
    })
    .await;
    let mut config = config(&orders(&[upstream], ""));
    config.trace =
        Some(TraceConfig { endpoint: format!("http://{addr}").parse().unwrap(), sample_percent: 0.0 });
    let proxy = start(config).await;
    for flags in ["01", "00"] {
        let parent = format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}");
        let request = Request::get("/x")
            .header("host", "orders")
            .header("traceparent", &parent)
            .header("tracestate", "vendor=1")
            .body(empty())
            .unwrap();
        let reply = Client::http1(proxy.outbound).await.call(request).await.unwrap();
        assert_eq!(reply.status, StatusCode::OK);
        sees.lock().push(parent);
    }
    assert_eq!(get(proxy.outbound, "orders", "/begins-here").await.status, StatusCode::OK);
    let mut all = Vec::new();
    for _ in 0..1000 {
        all = spans(&batches);
        if !all.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(all.len(), 1, "the one that the caller wants: {all:?}");
    let span = &all[0];
    assert_eq!(span.parent_span_id, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
    assert_eq!((span.name.as_str(), span.trace_state.as_str()), ("GET orders", "vendor=1"));
    assert!(span.attributes.contains(&KeyValue::number("http.response.status_code", 200)), "{span:?}");
    let process = batches.lock()[0].resource.clone().unwrap();
    assert!(process.attributes.contains(&KeyValue::text("service.name", "test")), "{process:?}");

    let heads = seen.lock().clone();
    let own: String = span.span_id.iter().map(|b| format!("{b:02x}")).collect();
    let told = format!("traceparent: 00-0af7651916cd43dd8448eb211c80319c-{own}-01\r\n");
    assert!(heads[0].contains(&told) && heads[0].contains("tracestate: vendor=1\r\n"), "{}", heads[0]);
    assert!(heads[1].contains(&format!("traceparent: {}\r\n", sees.lock()[1])), "{}", heads[1]);
    assert!(heads[2].contains("-02\r\n"), "all hops decide alike: {}", heads[2]);
    let metrics = get(proxy.admin, "admin", "/metrics").await.body;
    assert!(metrics.contains("weft_proxy_spans_exported_total 1"), "{metrics}");
    assert!(metrics.contains("weft_proxy_span_exports_failed_total 1"), "it was tried again: {metrics}");
}

/// Spans that wait are sent when the proxy ends, and a collector that is not there holds nobody up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_sent_at_the_end_and_a_missing_collector_delays_nothing() {
    let (addr, batches) = collector().await;
    let upstream = Upstream::start("a").await;
    for (collector, count) in [(addr, 1), (closed_port(), 1)] {
        let mut config = config(&orders(&[upstream.addr], ""));
        config.trace = Some(TraceConfig {
            endpoint: format!("http://{collector}").parse().unwrap(),
            sample_percent: 100.0,
        });
        let proxy = start(config).await;
        assert_eq!(get(proxy.outbound, "orders", "/").await.status, StatusCode::OK);
        let end = tokio::time::timeout(Duration::from_secs(8), proxy.running.drain_and_shutdown()).await;
        assert!(end.is_ok(), "it ends");
        assert_eq!(spans(&batches).len(), count);
    }
}

/// Without a collector nothing is read or changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_tracing_the_fields_of_callers_pass_as_they_came() {
    let upstream = Upstream::start("a").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let request = Request::get("/request").header("host", "orders").header("traceparent", "nonsense");
    let reply = Client::http1(proxy.outbound).await.call(request.body(empty()).unwrap()).await.unwrap();
    assert!(reply.body.contains("traceparent: nonsense"), "{}", reply.body);
}
