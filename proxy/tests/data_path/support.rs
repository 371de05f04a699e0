//! Upstreams, proxies and clients of these tests.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use weft_proxy::app::{self, RunningProxy};
use weft_proxy::config::{ProxyConfig, StaticConfig};

pub type Body = BoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

pub fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

/// A body in frames, with trailers at its end.
pub fn streamed(chunks: Vec<Bytes>, trailers: Option<HeaderMap>) -> Body {
    let frames = chunks.into_iter().map(Frame::data).chain(trailers.map(Frame::trailers)).map(Ok);
    StreamBody::new(tokio_stream::iter(frames.collect::<Vec<_>>())).boxed()
}

/// An HTTP/1 and HTTP/2 server that does what the path says.
pub struct Upstream {
    pub addr: SocketAddr,
    served: Arc<AtomicUsize>,
    task: Option<JoinHandle<()>>,
    name: String,
}

impl Upstream {
    pub async fn start(name: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut upstream = Self { addr, served: Arc::default(), task: None, name: name.to_owned() };
        upstream.serve(listener);
        upstream
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }

    /// Closes everything at once.
    pub async fn kill(&mut self) {
        let task = self.task.take().unwrap();
        task.abort();
        let _ = task.await;
    }

    pub async fn revive(&mut self) {
        let listener = TcpListener::bind(self.addr).await.unwrap();
        self.serve(listener);
    }

    fn serve(&mut self, listener: TcpListener) {
        let (served, name) = (self.served.clone(), self.name.clone());
        self.task = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (served, name) = (served.clone(), name.clone());
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        served.fetch_add(1, Ordering::SeqCst);
                        respond(name.clone(), request)
                    });
                    let _ = auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        }));
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

type Answer = Result<Response<Body>, std::convert::Infallible>;

async fn respond(name: String, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    let number = |prefix: &str| path.strip_prefix(prefix).and_then(|n| n.parse::<u64>().ok());
    let mut response = Response::builder().header("x-upstream", &name);
    let body = if path == "/echo" {
        // With its trailers, which HTTP/1 sends only if they are named.
        if let Some(names) = request.headers().get("trailer") {
            response = response.header("trailer", names);
        }
        request.into_body().map_err(Into::into).boxed()
    } else if path == "/text" {
        response = response.header("content-type", "text/plain");
        request.into_body().map_err(Into::into).boxed()
    } else if path == "/request" {
        let mut text = format!("{} {}\n", request.method(), request.uri());
        for (field, value) in request.headers() {
            text.push_str(&format!("{field}: {}\n", value.to_str().unwrap()));
        }
        full(text)
    } else if let Some(status) = number("/status/") {
        response = response.status(u16::try_from(status).unwrap());
        if status == 304 {
            response = response.header("etag", "\"1\"");
        }
        empty()
    } else if let Some(millis) = number("/slow/") {
        tokio::time::sleep(Duration::from_millis(millis)).await;
        full(name)
    } else if let Some(bytes) = number("/bytes/") {
        let chunk = Bytes::from(vec![b'x'; 64 * 1024]);
        let chunks = vec![chunk; usize::try_from(bytes).unwrap() / (64 * 1024)];
        streamed(chunks, None)
    } else if request.method() == Method::HEAD {
        // Over HTTP/2 nobody takes a body away that does not belong there.
        response = response.header("content-length", name.len());
        empty()
    } else {
        full(name)
    };
    Ok(response.body(body).unwrap())
}

/// An upstream that sees raw bytes. `script` gets each connection with its number, from 0.
pub async fn raw_upstream<F, Fut>(script: F) -> (SocketAddr, JoinHandle<()>)
where
    F: Fn(TcpStream, usize) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut number = 0;
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(script(stream, number));
            number += 1;
        }
    });
    (addr, task)
}

/// Reads one request without a body. `None` when the peer closed.
pub async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        let byte = stream.read_u8().await.ok()?;
        seen.push(byte);
    }
    Some(String::from_utf8(seen).unwrap())
}

/// A closed port: it was free a moment ago.
pub fn closed_port() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Static configuration of one cluster, `orders`; `more` are further keys of it.
pub fn orders(endpoints: &[SocketAddr], more: &str) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(|e| format!("\"{e}\"")).collect();
    format!("clusters:\n  - name: orders\n    endpoints: [{}]\n{more}", endpoints.join(", "))
}

pub fn config(yaml: &str) -> ProxyConfig {
    let mut config = ProxyConfig::new("test");
    let (rest, file) = weft_meshconfig::document::divide(yaml);
    assert_eq!(file.problems, []);
    let mut parsed: StaticConfig = weft_core::config::parse_yaml(Path::new("test.yaml"), &rest).unwrap();
    parsed.documents = file.documents.into_iter().map(|(document, _)| document).collect();
    config.static_config = Some(parsed.into());
    config.drain_timeout = Duration::from_secs(5);
    config
}

pub struct Proxy {
    pub running: RunningProxy,
    pub outbound: SocketAddr,
    pub admin: SocketAddr,
}

pub async fn proxy(yaml: &str) -> Proxy {
    start(config(yaml)).await
}

pub async fn start(config: ProxyConfig) -> Proxy {
    let running = app::start(config).await.unwrap();
    let outbound = running.addrs().outbound.unwrap_or_else(closed_port);
    let admin = running.addrs().admin;
    let proxy = Proxy { running, outbound, admin };
    // A static cluster is there from the first moment or very soon after.
    for _ in 0..200 {
        if get(proxy.admin, "admin", "/clusters").await.body.contains("outbound ") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    proxy
}

/// A whole answer.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
    pub trailers: Option<HeaderMap>,
}

impl Reply {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }
}

/// One connection of a client.
pub enum Client {
    Http1(hyper::client::conn::http1::SendRequest<Body>),
    Http2(hyper::client::conn::http2::SendRequest<Body>),
}

impl Client {
    pub async fn http1(addr: SocketAddr) -> Self {
        Self::http1_over(TcpStream::connect(addr).await.unwrap()).await
    }

    /// From an address of this machine.
    pub async fn http1_from(source: IpAddr, addr: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(source, 0)).unwrap();
        Self::http1_over(socket.connect(addr).await.unwrap()).await
    }

    async fn http1_over(stream: TcpStream) -> Self {
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self::Http1(sender)
    }

    pub async fn http2(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        let io = TokioIo::new(stream);
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        Self::Http2(sender)
    }

    pub async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, hyper::Error> {
        match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Http2(sender) => sender.send_request(request).await,
        }
    }

    pub async fn call(&mut self, request: Request<Body>) -> Result<Reply, hyper::Error> {
        let (head, body) = self.send(request).await?.into_parts();
        let body = body.collect().await?;
        let trailers = body.trailers().cloned();
        let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        Ok(Reply { status: head.status, headers: head.headers, body, trailers })
    }

    pub async fn get(&mut self, host: &str, path: &str) -> Reply {
        let request = self.request(Method::GET, host, path, empty());
        self.call(request).await.unwrap()
    }

    /// A request in the form that the protocol wants.
    pub fn request(&self, method: Method, host: &str, path: &str, body: Body) -> Request<Body> {
        let request = Request::builder().method(method);
        match self {
            Self::Http1(_) => request.uri(path).header("host", host),
            Self::Http2(_) => request.version(Version::HTTP_2).uri(format!("http://{host}{path}")),
        }
        .body(body)
        .unwrap()
    }
}

/// One GET on a connection of its own.
pub async fn get(addr: SocketAddr, host: &str, path: &str) -> Reply {
    Client::http1(addr).await.get(host, path).await
}

/// Sends bytes as they are; answers all that comes back until the peer closes.
pub async fn raw(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    // The peer may answer and close before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    tokio::time::timeout(Duration::from_secs(5), read).await.expect("the connection is closed").ok();
    String::from_utf8_lossy(&answer).into_owned()
}

/// Tries until it holds, for ten seconds.
pub async fn until<F, Fut>(what: &str, check: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<(), String>>,
{
    let mut last = String::new();
    for _ in 0..200 {
        match check().await {
            Ok(()) => return,
            Err(seen) => last = seen,
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never: {what}; last seen: {last}");
}
