//! One request of an HTTP/2 connection, on its stream.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::header::{CONTENT_LENGTH, DATE, EXPECT, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, response};
use http_body::Body;

use crate::http::body::ResponseBody;
use crate::http::context::Context as Worker;
use crate::http::server;
use crate::http2::{Incoming, SendError, Sending, Tunnel, interim};
use crate::limits::{H2_STALL_FACTOR, INTERIM_BYTES_MAX};
use crate::listener::connection::{Connection, Downstream};
use crate::listener::http1::body::ClientBody;
use crate::tcp::far_end::FarEnd;

/// What the request path says to a client of one request, beside its answer.
pub(crate) struct Stream {
    respond: RefCell<SendResponse<Bytes>>,
    /// Bytes of interim answers so far.
    interim: Cell<usize>,
    expects: Option<Rc<Expectation>>,
    far_end: RefCell<Option<Box<FarEnd>>>,
}

impl Downstream for Stream {
    /// One that comes too late, or is too much, is dropped.
    fn inform(&self, head: response::Parts) {
        let size = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len();
        self.interim.set(self.interim.get() + head.headers.iter().map(size).sum::<usize>());
        if self.interim.get() <= INTERIM_BYTES_MAX {
            let _ = self.respond.borrow_mut().send_informational(interim(head));
        }
    }

    fn answered(&self, far_end: Option<Box<FarEnd>>) {
        self.far_end.replace(far_end);
    }
}

/// Its client waits with the body for "100 Continue" (RFC 9110 §10.1.1), which it gets once somebody wants the body.
#[derive(Debug, Default)]
pub(crate) struct Expectation {
    wanted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Expectation {
    /// Somebody wants it.
    pub fn want(&self) {
        self.wanted.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Stream {
    fn new(respond: SendResponse<Bytes>, expects: bool) -> Self {
        Self {
            respond: RefCell::new(respond),
            interim: Cell::new(0),
            expects: expects.then(Rc::default),
            far_end: RefCell::default(),
        }
    }

    /// Ready if the client has taken its request back. Meanwhile it gets what it waits for.
    fn poll_left(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut respond = self.respond.borrow_mut();
        if let Some(expects) = &self.expects {
            if expects.wanted.take() {
                let mut head = Response::new(());
                *head.status_mut() = StatusCode::CONTINUE;
                let _ = respond.send_informational(head);
            }
            expects.waker.replace(Some(cx.waker().clone()));
        }
        respond.poll_reset(cx).map(|_| ())
    }
}

/// Serves one request to the end of its answer. It is dropped with its connection.
pub(super) async fn serve(
    worker: &Rc<Worker>,
    connection: &Rc<Connection>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let (head, received) = request.into_parts();
    let has_length = head.headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0");
    let stream = Stream::new(respond, head.headers.contains_key(EXPECT) && !received.is_end_stream());
    let is_head = head.method == Method::HEAD;
    let (body, received) = match head.method {
        // What follows is no content (RFC 9110 §9.3.6): whoever forwards it by its length would take bytes of the tunnel for it.
        Method::CONNECT if has_length => {
            return stream.respond.borrow_mut().send_reset(Reason::PROTOCOL_ERROR);
        }
        Method::CONNECT => (ClientBody::Empty, Some(received)),
        _ if received.is_end_stream() => (ClientBody::Empty, None),
        _ => (ClientBody::Http2(Incoming::new(received, &head.headers), stream.expects.clone()), None),
    };
    let answered = {
        // On the heap at once, as it is large, and for as long as it takes: an answer that streams for long has no room for it.
        let request = Request::from_parts(head, body);
        let mut serving = Box::pin(server::handle(worker.clone(), connection.clone(), &stream, request));
        poll_fn(|cx| match serving.as_mut().poll(cx) {
            Poll::Ready(response) => Poll::Ready(Some(response)),
            Poll::Pending => stream.poll_left(cx).map(|()| None),
        })
        .await
    };
    let Some(response) = answered else { return };
    let (respond, far_end) = (stream.respond.into_inner(), stream.far_end.into_inner());
    answer(worker, connection, respond, response, is_head, received.zip(far_end)).await;
}

async fn answer(
    worker: &Rc<Worker>,
    connection: &Connection,
    mut respond: SendResponse<Bytes>,
    response: Response<ResponseBody>,
    is_head: bool,
    tunnel: Option<(RecvStream, Box<FarEnd>)>,
) {
    let (mut head, body) = response.into_parts();
    head.version = http::Version::HTTP_2;
    let date = || HeaderValue::from_bytes(&connection.date()).unwrap_or(HeaderValue::from_static(""));
    head.headers.entry(DATE).or_insert_with(date);
    // Whatever body is there has no place behind these (RFC 9110 §6.4.1).
    let bodiless = is_head || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let ends = tunnel.is_none() && (bodiless || body.is_end_stream());
    if !ends && let Some(length) = body.size_hint().exact().filter(|_| tunnel.is_none()) {
        head.headers.entry(CONTENT_LENGTH).or_insert_with(|| length.into());
    }
    let Ok(send) = respond.send_response(Response::from_parts(head, ()), ends) else {
        // Such as fields that have no place here, or a client that has just left.
        return respond.send_reset(Reason::INTERNAL_ERROR);
    };
    if let Some((received, far_end)) = tunnel {
        // It counts as a connection of its own: the one that its stream belongs to goes on with others. The worker's runtime
        // ends what is left of it.
        let near = Tunnel::new(send, received);
        let (worker, peer, tls) = (worker.clone(), connection.peer, connection.is_tls());
        tokio::task::spawn_local(async move {
            let open = worker.connections.open(peer, tls);
            let idle = worker.timeouts.tunnel;
            if let Err(error) =
                far_end.tunnel(near, Vec::new(), open.shared(), idle, &Default::default()).await
            {
                tracing::debug!(%peer, error = %error, "tunnel ended");
            }
        });
    } else if !ends {
        send_body(worker, Sending::new(body, send)).await;
    }
}

async fn send_body(worker: &Worker, mut sending: Sending<ResponseBody>) {
    let patience = worker.timeouts.stall * H2_STALL_FACTOR;
    let mut held_up_at = None;
    loop {
        match worker.timer.limit(patience, poll_fn(|cx| sending.poll(cx))).await {
            Ok(Err(SendError::Body(_))) => return sending.break_off(Reason::INTERNAL_ERROR),
            Ok(Ok(()) | Err(SendError::Stream(_))) => return,
            Err(_) if held_up_at.is_some() && held_up_at == sending.held_up_at() => {
                worker.metrics.refused("stalled");
                return sending.break_off(Reason::CANCEL);
            }
            Err(_) => held_up_at = sending.held_up_at(),
        }
    }
}
