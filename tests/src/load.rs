//! Requests without a pause, none of which may fail.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::http_client;

/// Clients of each kind, each with one request at a time.
const CLIENTS: usize = 4;

/// Fewer requests than this would show nothing.
const REQUESTS_MIN: u64 = 100;

/// How long it may take until there are as many: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// How clients use connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connections {
    /// One for each request.
    New,
    /// HTTP/1.1, kept as long as the other side does not say that it closes.
    Kept,
    /// The same with HTTP/2.
    Http2,
}

/// Runs until [`Load::finish`].
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Asks for `/x` of a host, again and again.
    pub fn start(to: SocketAddr, host: &'static str) -> Self {
        Self::with(to, host, &[Connections::New])
    }

    /// By all these kinds of clients.
    pub fn with(to: SocketAddr, host: &'static str, kinds: &[Connections]) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let client = |kind: Connections| {
            let (stop, done) = (stop.clone(), done.clone());
            tokio::spawn(async move {
                let go_on = || !stop.load(Ordering::Relaxed);
                let count = |_: ()| done.fetch_add(1, Ordering::Relaxed);
                match kind {
                    Connections::New => {
                        while go_on() {
                            let answer = http_client::get(to, host, "/x").await.expect("an answer");
                            assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
                            count(());
                        }
                    }
                    Connections::Kept => {
                        while go_on() {
                            let io = TokioIo::new(TcpStream::connect(to).await.expect("connects"));
                            let (mut sender, task) = http1::handshake(io).await.expect("HTTP/1.1");
                            let task = tokio::spawn(task);
                            let mut open = true;
                            while open && go_on() {
                                sender.ready().await.expect("not closed without a word");
                                let answer = sender.send_request(request("/x".to_owned(), host)).await;
                                open = whole(answer).await;
                                count(());
                            }
                            task.abort();
                        }
                    }
                    Connections::Http2 => {
                        while go_on() {
                            let io = TokioIo::new(TcpStream::connect(to).await.expect("connects"));
                            let handshake = http2::handshake(TokioExecutor::new(), io);
                            let (mut sender, task) = handshake.await.expect("HTTP/2");
                            let task = tokio::spawn(task);
                            // Not ready: the other side has said goodbye.
                            while go_on() && sender.ready().await.is_ok() {
                                let uri = format!("http://{host}/x");
                                match sender.try_send_request(request(uri, host)).await {
                                    Ok(answer) => {
                                        whole(Ok(answer)).await;
                                        count(());
                                    }
                                    // It was not sent, so it is sent again.
                                    Err(mut error) => {
                                        let unsent = error.take_message().is_some();
                                        assert!(unsent || was_ignored(error.error()), "an answer: {error:?}");
                                        break;
                                    }
                                }
                            }
                            task.abort();
                        }
                    }
                }
            })
        };
        let clients = kinds.iter().flat_map(|kind| [*kind; CLIENTS]).map(client).collect();
        Self { stop, done, clients }
    }

    /// How many were answered so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Ends it, once there was enough to show something.
    ///
    /// # Panics
    /// If a request was not answered by 200, or there were hardly any.
    pub async fn finish(self) {
        let patience = tokio::time::Instant::now() + PATIENCE;
        let fails = || self.clients.iter().any(JoinHandle::is_finished);
        while self.done() <= REQUESTS_MIN && !fails() && tokio::time::Instant::now() < patience {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.expect("every request was answered");
        }
        assert!(self.done.load(Ordering::Relaxed) > REQUESTS_MIN, "there was load");
    }
}

fn request(uri: String, host: &str) -> Request<Empty<Bytes>> {
    Request::get(uri).header("host", host).body(Empty::new()).expect("a request")
}

/// RFC 9113 §6.8: of requests behind the last one that GOAWAY names nothing was done, whatever their method; a client
/// library may have sent one between the two GOAWAYs of a graceful end. Nothing but its text tells them from others.
fn was_ignored(error: &hyper::Error) -> bool {
    let text = format!("{error:?}");
    text.contains("GoAway(") && text.contains("NO_ERROR, Remote")
}

/// Reads an answer to its end. Whether the connection goes on.
async fn whole(answer: hyper::Result<http::Response<hyper::body::Incoming>>) -> bool {
    let (head, body) = answer.expect("an answer").into_parts();
    assert_eq!(head.status, StatusCode::OK, "{head:?}");
    body.collect().await.expect("a whole answer");
    head.headers.get("connection").is_none_or(|value| value != "close")
}
