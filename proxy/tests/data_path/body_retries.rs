//! Requests with a body that are sent again: calls of gRPC (gRFC A6), and idempotent methods.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use tokio::net::TcpListener;

use crate::support::*;

/// What an endpoint does with a request.
#[derive(Clone, Copy)]
enum Does {
    /// Answers with a code of gRPC, and what it says of another try.
    Code(u32, Option<&'static str>),
    /// The same before it has read the request's body.
    CodeAtOnce(u32),
    Status(u16),
    Resets,
    SaysNothing,
}

const UNAVAILABLE: Does = Does::Code(14, None);
const OK: Does = Does::Code(0, None);

/// Body, and tries before, of each request whose body came to its end.
type Requests = Arc<Mutex<Vec<(Bytes, Option<String>)>>>;

/// An endpoint of HTTP/2 with what it does with one request after the other, and in the end with all others.
struct Scripted {
    addr: SocketAddr,
    seen: Requests,
}

async fn scripted(script: &[Does]) -> Scripted {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let script = Arc::new(Mutex::new(script.iter().copied().collect::<VecDeque<_>>()));
    let seen = Requests::default();
    let all = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (script, all) = (script.clone(), all.clone());
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    let does = script.lock().unwrap().pop_front().unwrap_or(OK);
                    tokio::spawn(answer(request, respond, does, all.clone()));
                }
            });
        }
    });
    Scripted { addr, seen }
}

async fn answer(
    request: Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    does: Does,
    all: Requests,
) {
    let before = request.headers().get("grpc-previous-rpc-attempts");
    let before = before.map(|v| v.to_str().unwrap().to_owned());
    let mut body = request.into_body();
    let code = |code: u32| {
        Response::builder().header("content-type", "application/grpc").header("grpc-status", code)
    };
    if let Does::CodeAtOnce(number) = does {
        let _ = respond.send_response(code(number).body(()).unwrap(), true);
        return;
    }
    let mut whole = Vec::new();
    while let Some(data) = body.data().await {
        let Ok(data) = data else { return };
        body.flow_control().release_capacity(data.len()).unwrap();
        whole.extend_from_slice(&data);
    }
    all.lock().unwrap().push((whole.into(), before));
    let response = match does {
        Does::Code(number, None) | Does::CodeAtOnce(number) => code(number),
        Does::Code(number, Some(pushback)) => code(number).header("grpc-retry-pushback-ms", pushback),
        Does::Status(status) => Response::builder().status(status),
        Does::Resets => return respond.send_reset(h2::Reason::INTERNAL_ERROR),
        Does::SaysNothing => return tokio::time::sleep(Duration::from_secs(20)).await,
    };
    let _ = respond.send_response(response.body(()).unwrap(), true);
}

/// A sidecar in front of such an endpoint, with a rule for calls.
async fn sidecar(endpoint: &Scripted, rule: &str) -> Proxy {
    let document = |kind: &str, rule: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {}}}\nspec:\n  parentRefs: [{{kind: Service, group: '', name: orders}}]\n  rules:\n    - {rule}\n",
            kind.to_lowercase()
        )
    };
    let http = document(
        "HTTPRoute",
        "{retry: {codes: [503], attempts: 1, backoff: 1ms}, backendRefs: [{name: orders}]}",
    );
    proxy(&(orders(&[endpoint.addr], "    protocol: http2\n") + &document("GRPCRoute", rule) + &http)).await
}

const TWICE: &str = "{retry: {attempts: 2, backoff: 1ms}, backendRefs: [{name: orders}]}";

/// Calls with these pieces of a body; answers the code.
async fn call(proxy: &Proxy, pieces: &[&[u8]]) -> String {
    let mut client = Client::http2(proxy.outbound).await;
    let body = streamed(pieces.iter().map(|p| Bytes::copy_from_slice(p)).collect(), None);
    let mut request = client.request(Method::POST, "orders", "/shop.Orders/Place", body);
    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let reply = client.call(request).await.unwrap();
    assert_eq!(reply.status, StatusCode::OK);
    reply.header("grpc-status").to_owned()
}

fn bodies(endpoint: &Scripted) -> Vec<(Bytes, Option<String>)> {
    endpoint.seen.lock().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_is_repeated_with_its_whole_body_where_its_route_says_so() {
    let endpoint = scripted(&[UNAVAILABLE, UNAVAILABLE]).await;
    let proxy = sidecar(&endpoint, TWICE).await;
    assert_eq!(call(&proxy, &[b"one", b"two"]).await, "0");
    let all = |tries: [Option<&str>; 3]| {
        tries.map(|t| (Bytes::from_static(b"onetwo"), t.map(str::to_owned))).to_vec()
    };
    assert_eq!(bodies(&endpoint), all([None, Some("1"), Some("2")]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_breaks_off_or_takes_too_long_or_is_answered_early_is_repeated() {
    for (does, seen) in [(Does::Resets, 2), (Does::SaysNothing, 2), (Does::CodeAtOnce(14), 1)] {
        let endpoint = scripted(&[does]).await;
        let times = "    timeouts: {backend-request: 300ms}\n";
        let document = format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {{name: g}}\nspec:\n  parentRefs: [{{kind: Service, group: '', name: orders}}]\n  rules:\n    - {TWICE}\n"
        );
        let more = format!("    protocol: http2\n{times}{document}");
        let proxy = proxy(&orders(&[endpoint.addr], &more)).await;
        assert_eq!(call(&proxy, &[b"one", b"two"]).await, "0");
        assert_eq!(bodies(&endpoint).len(), seen);
        assert!(bodies(&endpoint).iter().all(|(body, _)| body == "onetwo"));
    }
}

/// D08: once is once, where nobody has said that twice does no harm.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_route_allows_is_sent_once() {
    for (rule, does, code) in [
        ("{backendRefs: [{name: orders}]}", UNAVAILABLE, "14"),
        (TWICE, Does::Code(9, None), "9"),
        (
            "{retry: {codes: [INTERNAL, CANCELLED], backoff: 1ms}, backendRefs: [{name: orders}]}",
            UNAVAILABLE,
            "14",
        ),
        // Its server says that another try would do no good.
        (TWICE, Does::Code(14, Some("-1")), "14"),
        (TWICE, Does::Code(14, Some("soon")), "14"),
    ] {
        let endpoint = scripted(&[does]).await;
        let proxy = sidecar(&endpoint, rule).await;
        assert_eq!(call(&proxy, &[b"one"]).await, code, "{rule}");
        assert_eq!(bodies(&endpoint).len(), 1, "{rule}");
    }
    let endpoint = scripted(&[Does::Code(14, Some("1"))]).await;
    let proxy = sidecar(&endpoint, TWICE).await;
    assert_eq!(call(&proxy, &[b"one"]).await, "0");
    assert_eq!(bodies(&endpoint).len(), 2, "it has said when");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_too_large_to_be_kept_is_sent_once_and_whole() {
    let endpoint = scripted(&[UNAVAILABLE]).await;
    let proxy = sidecar(&endpoint, TWICE).await;
    let piece = [b'x'; 40 * 1024];
    assert_eq!(call(&proxy, &[&piece, &piece]).await, "14");
    let seen = bodies(&endpoint);
    assert_eq!((seen.len(), seen[0].0.len()), (1, 80 * 1024));
}

/// D08 once more: of requests of HTTP, only methods that are idempotent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_is_repeated_with_its_body_and_a_post_is_not() {
    for http2 in [true, false] {
        for (method, status, tries) in [(Method::PUT, 200, 2), (Method::POST, 503, 1)] {
            let endpoint = scripted(&[Does::Status(503), Does::Status(200)]).await;
            let proxy = sidecar(&endpoint, TWICE).await;
            let mut client = match http2 {
                true => Client::http2(proxy.outbound).await,
                false => Client::http1(proxy.outbound).await,
            };
            let request = client.request(method, "orders", "/", full("an order"));
            assert_eq!(client.call(request).await.unwrap().status, status);
            assert_eq!(bodies(&endpoint), vec![(Bytes::from_static(b"an order"), None); tries]);
        }
    }
}

/// With a length and in chunks, to an endpoint of HTTP/1.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_of_http_1_gets_the_body_again_as_well() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    for (chunked, expected) in [(false, "an order"), (true, "3\r\nan \r\n5\r\norder\r\n0\r\n\r\n")] {
        let seen = Arc::<Mutex<Vec<String>>>::default();
        let all = seen.clone();
        let (addr, _task) = raw_upstream(move |mut stream, _| {
            let all = all.clone();
            async move {
                while read_head(&mut stream).await.is_some() {
                    let mut body = vec![0; expected.len()];
                    stream.read_exact(&mut body).await.unwrap();
                    let first = {
                        let mut all = all.lock().unwrap();
                        all.push(String::from_utf8(body).unwrap());
                        all.len() == 1
                    };
                    let status = if first { "503 X" } else { "200 OK" };
                    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        })
        .await;
        let route = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\nspec:\n  parentRefs: [{kind: Service, group: '', name: orders}]\n  rules:\n    - {retry: {codes: [503], backoff: 1ms}, backendRefs: [{name: orders}]}\n";
        let proxy = proxy(&orders(&[addr], route)).await;
        let mut client = Client::http1(proxy.outbound).await;
        let body = match chunked {
            true => streamed(vec!["an ".into(), "order".into()], None),
            false => full("an order"),
        };
        let request = client.request(Method::PUT, "orders", "/", body);
        assert_eq!(client.call(request).await.unwrap().status, StatusCode::OK);
        assert_eq!(*seen.lock().unwrap(), [expected, expected]);
    }
}
