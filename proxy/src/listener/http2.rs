//! HTTP/2 with clients (RFC 9113), of which h2 makes and reads the frames.
//!
//! The requests of one connection run inside the connection's own task: what arrived together is answered together, in one
//! write, and an answer wakes no other task. All tasks of a worker take turns on one thread anyway.
//!
//! ```text
//!   accept streams ─▶ run them: request ─▶ head and body of the answer, or a tunnel in a task of its own ─┐
//!         ▲                                                                                               ▼
//!         └──────────────────────────────────────────────────────────────────────── write what they said ─┘
//! ```

mod alive;
pub(crate) mod stream;

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncWrite};

use self::alive::Alive;
use super::connection::Connection;
use super::guard::Guard;
use crate::http::context::Context as Worker;
use crate::limits;

/// Why a connection ended other than in order.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error(transparent)]
    Http2(#[from] h2::Error),
    #[error(
        "it was cut off: its client took or gave nothing for too long, or took back most of its requests"
    )]
    Cut,
}

/// Serves the requests of a connection until its end. Those that are still there then have nobody to answer, and are dropped.
///
/// # Errors
/// If the client breaks the protocol or the connection, or it is cut.
pub(crate) async fn serve<S>(
    io: Guard<S>,
    worker: &Rc<Worker>,
    connection: &Rc<Connection>,
) -> Result<(), Broken>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    connection.speaks_http2();
    let mut handshake = h2::server::Builder::new()
        .enable_connect_protocol()
        .max_send_buffer_size(limits::H2_SEND_BUFFER_BYTES)
        .max_concurrent_streams(limits::H2_STREAMS_MAX)
        .initial_window_size(limits::H2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::H2_CONNECTION_WINDOW_BYTES)
        .max_header_list_size(u32::try_from(limits::HEAD_BYTES_MAX).unwrap_or(u32::MAX))
        .handshake::<_, Bytes>(io);
    let mut h2 = poll_fn(|cx| {
        alive(connection, cx)?;
        std::pin::Pin::new(&mut handshake).poll(cx).map_err(Broken::Http2)
    })
    .await?;
    let mut client = Alive::new(h2.ping_pong());
    let mut streams = FuturesUnordered::new();
    let mut told = false;
    poll_fn(|cx| {
        alive(connection, cx)?;
        if connection.is_closing() && !std::mem::replace(&mut told, true) {
            h2.graceful_shutdown();
        }
        if client.poll_gone(cx).is_ready() {
            h2.abrupt_shutdown(h2::Reason::NO_ERROR);
        }
        // This also writes what the streams have said.
        while let Poll::Ready(accepted) = h2.poll_accept(cx) {
            let Some(accepted) = accepted else { return Poll::Ready(Ok(())) };
            let (request, respond) = accepted?;
            streams.push(Box::pin(stream::serve(worker, connection, request, respond)));
        }
        // What they say wakes this task, which comes back when others have had their turn: what is written then is more.
        while let Poll::Ready(Some(())) = streams.poll_next_unpin(cx) {}
        Poll::Pending
    })
    .await
}

/// Whoever wants to wake the task may, and it is not cut off.
fn alive(connection: &Connection, cx: &Context<'_>) -> Result<(), Broken> {
    connection.remember(cx.waker());
    if connection.is_cut() { Err(Broken::Cut) } else { Ok(()) }
}
