//! The connection to one server at a time: connect, open the stream, move messages. It decides nothing.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Endpoint, Uri};
use tonic::{Response, Status, Streaming};
use weft_core::tls::Dialling;
use weft_xds_proto::envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use weft_xds_proto::envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};

/// Longest wait for a connection. Servers are near; there are others.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection without an answer to a ping within [`KEEP_ALIVE_TIMEOUT`] is given up, so that a server that vanished
/// without a word is noticed (P32).
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Longest wait for the first word of a server that was asked for something.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Requests that the server has not taken yet. Above it the server does not read, and another one is used.
const REQUESTS_WAITING_MAX: usize = 256;

/// Largest response, in bytes. Weft's servers split theirs far below; a single resource may be large.
const RESPONSE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What happens on the link.
#[derive(Debug)]
pub enum LinkEvent {
    /// The wait is over: choose a server and [`Link::connect`].
    Due,
    /// The connection stands: send the first requests.
    Connected(SocketAddr),
    /// The server accepted the stream.
    Accepted(SocketAddr),
    /// A message.
    Response(Box<DeltaDiscoveryResponse>),
    /// The connection or the attempt ended, with the reason.
    Failed(String),
}

/// The link to the control plane. Exactly one state at a time; the owner drives it with [`Link::next`].
pub struct Link {
    state: State,
    /// With which every connection is made, if there is any.
    tls: Option<Arc<Dialling>>,
}

enum State {
    Waiting { until: Instant },
    Connecting { server: SocketAddr, attempt: BoxFuture<Result<Open, String>> },
    Open(Open),
}

struct Open {
    server: SocketAddr,
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Incoming,
    since: Instant,
    /// The server has said something. From then on its connection is watched by pings alone.
    answered: bool,
    answer_due: Option<Instant>,
}

enum Incoming {
    /// Some servers answer the call itself only with their first response.
    Calling(BoxFuture<Result<Response<Streaming<DeltaDiscoveryResponse>>, Status>>),
    Streaming(Box<Streaming<DeltaDiscoveryResponse>>),
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl Link {
    /// Not connected, and due at once.
    pub fn new(tls: Option<Arc<Dialling>>) -> Self {
        Self { state: State::Waiting { until: Instant::now() }, tls }
    }

    /// The open connection's server.
    pub fn server(&self) -> Option<SocketAddr> {
        match &self.state {
            State::Open(open) => Some(open.server),
            _ => None,
        }
    }

    /// How long the connection has been open.
    pub fn open_for(&self) -> Option<Duration> {
        match &self.state {
            State::Open(open) => Some(open.since.elapsed()),
            _ => None,
        }
    }

    /// Starts to connect to a server; whatever was under way is dropped.
    pub fn connect(&mut self, server: SocketAddr) {
        self.state = State::Connecting { server, attempt: Box::pin(open(server, self.tls.clone())) };
    }

    /// Drops the connection; [`LinkEvent::Due`] follows after `wait`.
    pub fn wait(&mut self, wait: Duration) {
        self.state = State::Waiting { until: Instant::now() + wait };
    }

    /// Queues requests. `expects_answer`: the server has to say something soon.
    ///
    /// # Errors
    /// If there is no connection, or the server does not read.
    pub fn send(&mut self, requests: Vec<DeltaDiscoveryRequest>, expects_answer: bool) -> Result<(), String> {
        let State::Open(open) = &mut self.state else { return Err("not connected".to_owned()) };
        if expects_answer && !open.answered && open.answer_due.is_none() {
            open.answer_due = Some(Instant::now() + ANSWER_TIMEOUT);
        }
        for request in requests {
            open.requests.try_send(request).map_err(|e| match e {
                mpsc::error::TrySendError::Full(_) => {
                    format!("{} does not read: {REQUESTS_WAITING_MAX} requests wait", open.server)
                }
                mpsc::error::TrySendError::Closed(_) => format!("{} closed the stream", open.server),
            })?;
        }
        Ok(())
    }

    /// The next event. Safe to drop and call again: nothing is lost. After `Failed`, the owner calls [`Self::wait`] or
    /// [`Self::connect`].
    pub async fn next(&mut self) -> LinkEvent {
        match &mut self.state {
            State::Waiting { until } => {
                tokio::time::sleep_until(*until).await;
                LinkEvent::Due
            }
            State::Connecting { server, attempt } => {
                let server = *server;
                match attempt.await {
                    Ok(open) => {
                        self.state = State::Open(open);
                        LinkEvent::Connected(server)
                    }
                    Err(reason) => LinkEvent::Failed(format!("cannot connect to {server}: {reason}")),
                }
            }
            State::Open(open) => open.next().await,
        }
    }
}

impl Default for Link {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Open {
    async fn next(&mut self) -> LinkEvent {
        let server = self.server;
        let due = self.answer_due;
        let overdue = async move {
            match due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        match &mut self.responses {
            Incoming::Calling(call) => {
                let answer = tokio::select! {
                    answer = call => answer,
                    () = overdue => return no_answer(server),
                };
                match answer {
                    Ok(stream) => {
                        self.responses = Incoming::Streaming(Box::new(stream.into_inner()));
                        LinkEvent::Accepted(server)
                    }
                    Err(status) => ended(server, &status),
                }
            }
            Incoming::Streaming(stream) => {
                let message = tokio::select! {
                    message = stream.message() => message,
                    () = overdue => return no_answer(server),
                };
                match message {
                    Ok(Some(response)) => {
                        self.answered = true;
                        self.answer_due = None;
                        LinkEvent::Response(Box::new(response))
                    }
                    Ok(None) => LinkEvent::Failed(format!("{server} ended the stream")),
                    Err(status) => ended(server, &status),
                }
            }
        }
    }
}

fn ended(server: SocketAddr, status: &Status) -> LinkEvent {
    LinkEvent::Failed(format!("{server} ended the stream: {} ({:?})", status.message(), status.code()))
}

fn no_answer(server: SocketAddr) -> LinkEvent {
    LinkEvent::Failed(format!("{server} did not answer within {ANSWER_TIMEOUT:?}"))
}

/// The DNS name that a server's certificate is for, whatever its address: sidecars learn addresses from gossip.
const SERVER_NAME: &str = "server.weft";

async fn secured(server: SocketAddr, tls: Arc<Dialling>) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
    let stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    tls.over(stream, SERVER_NAME).await.map(TokioIo::new)
}

async fn open(server: SocketAddr, tls: Option<Arc<Dialling>>) -> Result<Open, String> {
    let channel = Endpoint::from_shared(format!("http://{server}"))
        .map_err(|e| e.to_string())?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let connecting = async {
        match tls {
            None => channel.connect().await,
            Some(tls) => {
                let connect = move |_: Uri| secured(server, tls.clone());
                channel.connect_with_connector(tower::service_fn(connect)).await
            }
        }
    };
    // The connect time-out of the transport covers TCP alone; a server may also accept and then say nothing.
    let channel = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(e)) => return Err(root_cause(&e)),
        Err(_) => return Err(format!("no answer within {CONNECT_TIMEOUT:?}")),
    };
    let (requests, receiver) = mpsc::channel(REQUESTS_WAITING_MAX);
    let mut client =
        AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(RESPONSE_BYTES_MAX);
    let call = async move { client.delta_aggregated_resources(ReceiverStream::new(receiver)).await };
    Ok(Open {
        server,
        requests,
        responses: Incoming::Calling(Box::pin(call)),
        since: Instant::now(),
        answered: false,
        answer_due: None,
    })
}

/// "transport error" says nothing; its innermost cause does.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
