//! HTTP/1.1 with clients (RFC 9112), one request after the other on a connection.
//!
//! Behind the [`Guard`], which passes heads on when they are whole and refuses what could be understood in two ways. The
//! connection's task does all there is to do for it: it reads a head, serves the request, reads its body as it is asked for,
//! and writes the answer. An idle connection has no room to read into; it keeps what its last heads took.
//!
//! ```text
//!   head ─▶ service, which may read the body ─▶ head and body of the answer ─┬─▶ next head
//!           (meanwhile: has the client left?)                                ├─▶ the end
//!                                                                            └─▶ a tunnel
//! ```

pub(crate) mod body;
pub(super) mod head;

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use self::body::{ClientBody, RequestStream};
use self::head::Served;
use super::connection::Connection;
use super::guard::{self, Guard};
use super::refusal::Refusal;
use crate::http::body::ResponseBody;
use crate::http1::body::Left;
use crate::http1::sending::{Output, SendError, Sending};
use crate::http1::{READ_BYTES, head_end, poll_read};
use crate::scratch;

/// Why a connection ended other than in order.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the client left in the middle of a request")]
    Left,
    #[error("the answer broke off")]
    Answer,
    #[error("it was cut off")]
    Cut,
}

/// What a connection's task and the body of the request that it serves have in common.
struct Conn<S> {
    io: Guard<S>,
    /// Read and not used yet.
    input: BytesMut,
    output: Output,
    /// No part of the answer has been written: there is still room for "100 Continue".
    unanswered: bool,
    /// Somebody may still read the body of the request.
    has_body: bool,
    /// What is left of a body that nobody reads any more.
    unread: Option<Left>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Conn<S> {
    /// Reads more of a body; 0 at the end of the stream.
    fn poll_read(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<io::Result<usize>> {
        poll_read(Pin::new(&mut self.io), cx, &mut self.input, room)
    }

    /// The same when nothing may come for long.
    fn poll_read_idle(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        scratch::with(|room| {
            let mut room = ReadBuf::new(room);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut room))?;
            self.input.extend_from_slice(room.filled());
            Poll::Ready(Ok(room.filled().len()))
        })
    }

    /// Whether the client has left, as far as that can be known: what it sends behind its request waits.
    fn has_left(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.has_body || !self.input.is_empty() {
            return Poll::Pending;
        }
        match ready!(self.poll_read_idle(cx)) {
            Ok(n) if n > 0 => Poll::Pending,
            Ok(_) | Err(_) => Poll::Ready(()),
        }
    }

    /// Puts interim answers before what is written next. Tells whether there were any.
    fn take_interim(&mut self, connection: &Connection) -> bool {
        let interim = connection.interim();
        self.output.bytes().extend_from_slice(interim.as_deref().unwrap_or_default());
        interim.is_some()
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.output.poll_write(cx, Pin::new(&mut self.io)))?;
        // TLS may hold some of it.
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Passes over what is left of the request's body, as far as it has arrived. Answers whether that was all of it.
    fn pass_over_body(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(mut left) = self.unread.take() else { return !self.has_body };
        if left.pass_over(&mut self.input) {
            return true;
        }
        matches!(self.poll_read(cx, READ_BYTES), Poll::Ready(Ok(n)) if n > 0)
            && left.pass_over(&mut self.input)
    }
}

/// What became of a connection.
pub(crate) enum End<S> {
    Closed,
    /// HTTP ended on it; with what was read behind the last request.
    Switched(Guard<S>, BytesMut),
}

/// Serves the requests of a connection until its end.
///
/// # Errors
/// If the client or an answer breaks off, or the connection is cut.
pub(crate) async fn serve<S, F>(
    io: Guard<S>,
    connection: &Rc<Connection>,
    service: impl Fn(Request<ClientBody>) -> Pin<Box<F>>,
) -> Result<End<S>, Broken>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    F: Future<Output = Response<ResponseBody>>,
{
    let conn = Rc::new(RefCell::new(Conn {
        io,
        input: BytesMut::new(),
        output: Output::default(),
        unanswered: true,
        has_body: false,
        unread: None,
    }));
    loop {
        let Some(request) = next_request(&conn, connection).await? else { break };
        let (served, request) = begin(&conn, connection, request);
        let mut serving = service(request);
        let response = poll_fn(|cx| {
            alive(connection, cx)?;
            let served = serving.as_mut().poll(cx);
            let mut conn = conn.borrow_mut();
            if let Poll::Ready(response) = served {
                conn.take_interim(connection);
                return Poll::Ready(Ok(response));
            }
            // No more of them than the client takes.
            while conn.poll_write(cx)?.is_ready() && conn.take_interim(connection) {}
            ready!(conn.has_left(cx));
            Poll::Ready(Err(Broken::Left))
        })
        .await?;
        // With it goes its hold on the body.
        drop(serving);
        let switched = connection.is_switched();
        let keep = answer(&conn, connection, served, response).await?;
        if switched {
            let Ok(conn) = Rc::try_unwrap(conn) else { return Err(Broken::Left) };
            let Conn { io, input, .. } = conn.into_inner();
            return Ok(End::Switched(io, input));
        }
        if !keep {
            break;
        }
    }
    poll_fn(|cx| {
        alive(connection, cx)?;
        ready!(Pin::new(&mut conn.borrow_mut().io).poll_shutdown(cx))?;
        Poll::Ready(Ok(End::Closed))
    })
    .await
}

/// Whoever wants to wake the task may, and it is not cut off.
fn alive(connection: &Connection, cx: &Context<'_>) -> Result<(), Broken> {
    connection.remember(cx.waker());
    if connection.is_cut() { Err(Broken::Cut) } else { Ok(()) }
}

/// The head of the next request; `None` if there will be none.
async fn next_request<S: AsyncRead + AsyncWrite + Unpin>(
    conn: &RefCell<Conn<S>>,
    connection: &Connection,
) -> Result<Option<Bytes>, Broken> {
    let mut searched = 0;
    poll_fn(|cx| {
        let mut conn = conn.borrow_mut();
        loop {
            alive(connection, cx)?;
            if let Some(end) = head_end(&conn.input, &mut searched) {
                return Poll::Ready(Ok(Some(conn.input.split_to(end).freeze())));
            }
            if connection.is_closing() && conn.input.is_empty() {
                return Poll::Ready(Ok(None));
            }
            if ready!(conn.poll_read_idle(cx))? == 0 {
                return Poll::Ready(if conn.input.is_empty() { Ok(None) } else { Err(Broken::Left) });
            }
        }
    })
    .await
}

/// A request of its head. One that is none is refused as the guard's are.
fn begin<S: AsyncRead + AsyncWrite + Unpin + 'static>(
    conn: &Rc<RefCell<Conn<S>>>,
    connection: &Connection,
    head: Bytes,
) -> (Served, Request<ClientBody>) {
    let Some((head, served)) = head::parse(&head) else {
        connection.refuse(Refusal::RequestLine);
        return (Served::refused(), Request::from_parts(guard::refused_head(), ClientBody::Empty));
    };
    let mut shared = conn.borrow_mut();
    shared.unanswered = true;
    shared.has_body = !served.body.is_empty();
    shared.unread = None;
    let body = if shared.has_body {
        ClientBody::Http1(RequestStream::new(conn.clone(), served.body, served.expects_continue))
    } else {
        ClientBody::Empty
    };
    (served, Request::from_parts(head, body))
}

/// Writes an answer. Tells whether another request may follow.
async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    conn: &RefCell<Conn<S>>,
    connection: &Connection,
    served: Served,
    response: Response<ResponseBody>,
) -> Result<bool, Broken> {
    let (head, body) = response.into_parts();
    let switched = connection.is_switched();
    let (mut keep, framing) = {
        let mut conn = conn.borrow_mut();
        conn.unanswered = false;
        let wanted = served.keep && !connection.is_closing();
        served.encode(&head, &body, (wanted, switched), connection.date(), conn.output.bytes())
    };
    let mut sending = Sending::new(body, framing).with_trailers(served.takes_trailers);
    let sent = poll_fn(|cx| {
        alive(connection, cx)?;
        let mut conn = conn.borrow_mut();
        let Conn { io, output, .. } = &mut *conn;
        if let Poll::Ready(sent) = sending.poll(cx, output, Pin::new(io)) {
            return Poll::Ready(Ok(sent));
        }
        ready!(conn.has_left(cx));
        Poll::Ready(Err(Broken::Left))
    })
    .await?;
    match sent {
        Ok(()) => {}
        Err(SendError::Io(error)) => return Err(error.into()),
        Err(SendError::Body(_) | SendError::Length(_)) => {
            // What there is of it goes out; its end does not.
            poll_fn(|cx| {
                alive(connection, cx)?;
                conn.borrow_mut().poll_write(cx).map_err(Broken::Io)
            })
            .await?;
            return Err(Broken::Answer);
        }
    }
    drop(sending);
    if keep && !switched {
        keep = poll_fn(|cx| Poll::Ready(conn.borrow_mut().pass_over_body(cx))).await;
    }
    Ok(keep)
}
