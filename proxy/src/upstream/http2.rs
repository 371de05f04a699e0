//! HTTP/2 to endpoints (RFC 9113), many exchanges at a time on a connection, of which h2 makes and reads the frames.
//!
//! A connection has a task, which ends with it. The body of a request is sent by the task that serves its client; only a
//! request whose answer has begun before its body has ended gets a task, for the rest of that body.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::task::noop_waker_ref;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, SendStream};
use http::{Method, Request, Response, StatusCode, response};
use http_body::{Body, Frame, SizeHint};
use tokio::task::JoinHandle;

use super::connect::ConnectError;
use super::request_body::{RequestBody, RequestBodyError};
use super::stream::UpstreamStream;
use crate::http2::{Incoming, SendError, Sending, Tunnel};
use crate::limits::{self, INTERIM_ANSWERS_MAX};

/// Why an exchange failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Stream(#[from] h2::Error),
    /// The client's fault.
    #[error(transparent)]
    Body(#[from] RequestBodyError),
}

impl Error {
    /// The endpoint speaks another protocol, or this one badly.
    pub fn is_malformed(&self) -> bool {
        matches!(self, Self::Stream(error) if error.is_library())
    }

    /// The endpoint has done nothing with the request, whatever its method: it refused the stream (RFC 9113 §8.7), or it had
    /// said goodbye to earlier ones (§6.8).
    pub fn is_unprocessed(&self) -> bool {
        let Self::Stream(error) = self else { return false };
        let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
        error.is_remote() && (refused || error.is_go_away())
    }
}

impl From<SendError<RequestBodyError>> for Error {
    fn from(error: SendError<RequestBodyError>) -> Self {
        match error {
            SendError::Body(error) => Self::Body(error),
            SendError::Stream(error) => Self::Stream(error),
        }
    }
}

/// A connection to an endpoint; clones share it. It closes when all of them and its streams are gone.
#[derive(Clone)]
pub(crate) struct Conn(SendRequest<Bytes>);

impl Conn {
    /// Agrees on a connection, and drives it until its end.
    ///
    /// # Errors
    /// If it breaks at once.
    pub async fn new(io: UpstreamStream) -> Result<Self, h2::Error> {
        let (conn, connection) = builder().handshake(io).await?;
        // Its requests hear of the error.
        tokio::task::spawn_local(connection);
        Ok(Self(conn))
    }

    /// The same for one extended CONNECT, which may be asked for once the endpoint's settings offer it (RFC 8441 §3).
    ///
    /// # Errors
    /// If it breaks, or they do not.
    pub async fn extended(io: UpstreamStream) -> Result<Self, ConnectError> {
        let mut builder = builder();
        builder.initial_max_send_streams(STREAMS_BEFORE_SETTINGS);
        let (conn, mut connection) = builder.handshake(io).await?;
        while !conn.is_extended_connect_protocol_enabled() {
            if conn.current_max_send_streams() != STREAMS_BEFORE_SETTINGS {
                return Err(ConnectError::NoExtendedConnect);
            }
            // They can be looked at, and not waited for.
            if let Ok(ended) = tokio::time::timeout(SETTINGS_LOOK_INTERVAL, &mut connection).await {
                ended?;
                return Err(ConnectError::Io(std::io::ErrorKind::UnexpectedEof.into()));
            }
        }
        tokio::task::spawn_local(connection);
        Ok(Self(conn))
    }

    /// Whether requests may begin on it: it has not ended, and the endpoint has not said goodbye.
    pub fn is_open(&mut self) -> bool {
        let mut cx = Context::from_waker(noop_waker_ref());
        !matches!(self.0.poll_ready(&mut cx), Poll::Ready(Err(_)))
    }
}

/// As the number of streams that may be open this says that no settings have come: they put another one in its place,
/// whether they name one or not.
const STREAMS_BEFORE_SETTINGS: usize = 97;
const SETTINGS_LOOK_INTERVAL: std::time::Duration = std::time::Duration::from_millis(1);

fn builder() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .max_send_buffer_size(limits::H2_SEND_BUFFER_BYTES)
        .initial_window_size(limits::H2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::H2_CONNECTION_WINDOW_BYTES)
        .max_header_list_size(u32::try_from(limits::HEAD_BYTES_MAX).unwrap_or(u32::MAX));
    builder
}

/// Why there is no answer, and whether the endpoint was told nothing of the request that it could have acted on.
pub(crate) struct Failed {
    pub why: Error,
    pub unsent: bool,
}

/// Sends a request and waits for the head of its answer. The head of a request that can be sent again stays whole; its body is
/// used up as far as it was read. Interim answers (RFC 9110 §15.2) are told: but for 100, which nobody is
/// asked for, and those beyond [`INTERIM_ANSWERS_MAX`].
///
/// # Errors
/// If there is no answer; the stream is reset then, as it is if this is dropped.
pub(crate) async fn send(
    Conn(mut conn): Conn,
    request: &mut Request<RequestBody>,
    inform: &dyn Fn(response::Parts),
) -> Result<Response<Answer>, Failed> {
    let ready = poll_fn(|cx| conn.poll_ready(cx)).await;
    ready.map_err(|error| Failed { why: error.into(), unsent: true })?;
    let tunnels = request.method() == Method::CONNECT;
    let ends = !tunnels && !request.body().streams();
    let whole = matches!(request.body(), RequestBody::Empty);
    let sent = conn.send_request(head_of(request), ends);
    let (mut answer, stream) = sent.map_err(|error| Failed { why: error.into(), unsent: whole })?;
    let (mut upload, stream) = if ends || tunnels {
        (None, Some(stream))
    } else {
        let body = std::mem::replace(request.body_mut(), RequestBody::Empty);
        (Some(Sending::new(body, stream)), None)
    };
    let answered = poll_fn(|cx| {
        if let Some(sending) = &mut upload {
            match sending.poll(cx) {
                Poll::Ready(Ok(())) => upload = None,
                Poll::Ready(Err(SendError::Body(error))) => {
                    sending.break_off(Reason::CANCEL);
                    return Poll::Ready(Err(error.into()));
                }
                // It may have answered before it stopped to listen.
                Poll::Ready(Err(SendError::Stream(_))) => upload = None,
                Poll::Pending => {}
            }
        }
        poll_head(&mut answer, cx, inform).map_err(Error::Stream)
    })
    .await;
    let head = answered.map_err(|why| Failed { unsent: whole && why.is_unprocessed(), why })?;
    let (head, received) = head.into_parts();
    let incoming = Incoming::new(received, &head.headers);
    let tunnel = stream.filter(|_| tunnels && head.status == StatusCode::OK);
    Ok(Response::from_parts(head, Answer { incoming, tunnel, rest: upload.map(Rest::new) }))
}

/// A head for h2, which takes it away: the same once more if the request may be sent again, else its own.
fn head_of(request: &mut Request<RequestBody>) -> Request<()> {
    if request.body().is_sent_once() {
        let body = std::mem::replace(request.body_mut(), RequestBody::Empty);
        let (head, _) = std::mem::replace(request, Request::new(body)).into_parts();
        return Request::from_parts(head, ());
    }
    let mut head = Request::new(());
    *head.method_mut() = request.method().clone();
    *head.uri_mut() = request.uri().clone();
    *head.version_mut() = request.version();
    *head.headers_mut() = request.headers().clone();
    if let Some(protocol) = request.extensions().get::<h2::ext::Protocol>() {
        head.extensions_mut().insert(protocol.clone());
    }
    head
}

fn poll_head(
    answer: &mut ResponseFuture,
    cx: &mut Context<'_>,
    inform: &dyn Fn(response::Parts),
) -> Poll<Result<Response<h2::RecvStream>, h2::Error>> {
    // Those beyond are read and forgotten, in front of the answer as behind each other.
    for _ in 0..INTERIM_ANSWERS_MAX {
        let Poll::Ready(Some(interim)) = answer.poll_informational(cx) else { break };
        let (head, ()) = interim?.into_parts();
        if head.status != StatusCode::CONTINUE {
            inform(head);
        }
    }
    Pin::new(answer).poll(cx)
}

/// The rest of the request's body, in a task: an endpoint may answer while it reads on, and the client send on without
/// taking the answer.
struct Rest(JoinHandle<Result<(), RequestBodyError>>);

impl Rest {
    fn new(mut sending: Sending<RequestBody>) -> Self {
        Self(tokio::task::spawn_local(async move {
            match poll_fn(|cx| sending.poll(cx)).await {
                Err(SendError::Body(error)) => {
                    sending.break_off(Reason::CANCEL);
                    Err(error)
                }
                // An endpoint that does not take the rest may answer well all the same.
                Ok(()) | Err(SendError::Stream(_)) => Ok(()),
            }
        }))
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The body of an answer. If it is dropped before its end, or before the request's body has ended, the stream is reset.
pub(crate) struct Answer {
    incoming: Incoming,
    tunnel: Option<SendStream<Bytes>>,
    rest: Option<Rest>,
}

impl Answer {
    /// The stream, which the answer 200 to an extended CONNECT has made free of HTTP.
    pub fn into_tunnel(self) -> Option<Tunnel> {
        Some(Tunnel::new(self.tunnel?, self.incoming.into_stream()))
    }

    /// Fails when the rest of the request did, by the client's fault.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        let Some(Rest(task)) = &mut self.rest else { return Ok(()) };
        let Poll::Ready(ended) = Pin::new(task).poll(cx) else { return Ok(()) };
        self.rest = None;
        match ended {
            Ok(Err(error)) => Err(error.into()),
            Ok(Ok(())) | Err(_) => Ok(()),
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.poll_rest(cx)?;
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        Poll::Ready(frame.map(|frame| frame.map_err(Error::Stream)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
