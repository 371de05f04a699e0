//! Bytes both ways between two connections, until both ways have ended.
//!
//! ```text
//!   near ── read ──▶ the worker's room ── write ──▶ far        what does not fit is kept, and nothing more is read
//!   near ◀── write ── the worker's room ◀── read ── far        the end of one way is passed on; the other goes on
//! ```
//! A tunnel in which nothing waits holds no buffer. Who is slow slows the other down: that is the back-pressure.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use weft_core::metrics::Counter;

use crate::limits::TUNNEL_HALF_CLOSED_TIMEOUT;
use crate::listener::connection::Connection;
use crate::scratch;
use crate::telemetry::tunnels::TunnelMetrics;

/// Why a tunnel ended other than by both sides closing it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("nothing moved in the tunnel for too long, or the proxy stops")]
    Cut,
}

/// Relays until both ways have ended. What each side sent before is passed on first, and `to_near` says how
/// many bytes have gone to the near end. The connection's sweep ends it when
/// nothing moves for `idle`.
///
/// # Errors
/// If a side breaks off, or it is cut; the caller then closes both.
pub(crate) async fn relay<N, F>(
    near: (&mut N, Vec<u8>),
    far: (&mut F, Vec<u8>),
    connection: &Connection,
    idle: std::time::Duration,
    metrics: &TunnelMetrics,
    to_near: &Cell<u64>,
) -> Result<(), Broken>
where
    N: AsyncRead + AsyncWrite + Unpin,
    F: AsyncRead + AsyncWrite + Unpin,
{
    let (near, from_near) = near;
    let (far, from_far) = far;
    let (mut there, mut back) = (Way::new(from_near), Way::new(from_far));
    connection.becomes_tunnel(idle);
    let mut half_closed = false;
    poll_fn(|cx| {
        connection.remember(cx.waker());
        if connection.is_cut() {
            return Poll::Ready(Err(Broken::Cut));
        }
        let there = there.poll(cx, near, far, connection, &metrics.sent)?;
        let polled = back.poll(cx, far, near, connection, &metrics.received);
        to_near.set(back.written);
        let back = polled?;
        match (there, back) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            (Poll::Pending, Poll::Pending) => Poll::Pending,
            _ => {
                if !half_closed {
                    half_closed = true;
                    connection.becomes_tunnel(idle.min(TUNNEL_HALF_CLOSED_TIMEOUT));
                }
                Poll::Pending
            }
        }
    })
    .await
}

/// One direction.
///
/// ```text
///   Open ── end of what is read, and all of it written ──▶ Ending ── end passed on ──▶ Ended
/// ```
struct Way {
    state: State,
    /// Read and not written yet, from `at` on.
    kept: Vec<u8>,
    at: usize,
    /// Written and not flushed yet.
    unflushed: bool,
    /// Bytes so far.
    written: u64,
}

enum State {
    Open,
    Ending,
    Ended,
}

impl Way {
    fn new(kept: Vec<u8>) -> Self {
        Self { state: State::Open, kept, at: 0, unflushed: false, written: 0 }
    }

    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        connection: &Connection,
        bytes: &Counter,
    ) -> io::Result<Poll<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        match scratch::with(|room| self.step(cx, from, to, room, connection, bytes)) {
            Poll::Ready(done) => done.map(Poll::Ready),
            Poll::Pending => Ok(Poll::Pending),
        }
    }

    fn step<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        room: &mut [u8],
        connection: &Connection,
        bytes: &Counter,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            match self.state {
                State::Open => {}
                State::Ending => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.state = State::Ended;
                    continue;
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
            while self.at < self.kept.len() {
                let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.kept[self.at..]))?;
                self.wrote(written, connection, bytes)?;
                self.at += written;
            }
            if !self.kept.is_empty() {
                (self.kept, self.at) = (Vec::new(), 0);
            }
            let mut buf = ReadBuf::new(room);
            match Pin::new(&mut *from).poll_read(cx, &mut buf) {
                Poll::Ready(read) => read?,
                Poll::Pending => {
                    if self.unflushed {
                        ready!(Pin::new(&mut *to).poll_flush(cx))?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
            let read = buf.filled();
            if read.is_empty() {
                self.state = State::Ending;
                continue;
            }
            connection.moved();
            let mut written = 0;
            while written < read.len() {
                match Pin::new(&mut *to).poll_write(cx, &read[written..]) {
                    Poll::Ready(n) => {
                        let n = n?;
                        self.wrote(n, connection, bytes)?;
                        written += n;
                    }
                    Poll::Pending => {
                        self.kept = read[written..].to_vec();
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    fn wrote(&mut self, n: usize, connection: &Connection, bytes: &Counter) -> io::Result<()> {
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        connection.moved();
        self.unflushed = true;
        bytes.inc_by(n as u64);
        self.written += n as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;
    use crate::limits::TUNNEL_IDLE_TIMEOUT;
    use crate::listener::connection::{Connections, OpenConnection};

    fn open() -> (Rc<Connections>, OpenConnection) {
        let all = Rc::new(Connections::default());
        let open = all.open("127.0.0.1:1".parse().unwrap(), false);
        (all, open)
    }

    async fn run(
        near: &mut DuplexStream,
        far: &mut DuplexStream,
        connection: &Connection,
    ) -> Result<(), Broken> {
        let metrics = TunnelMetrics::detached();
        let (near, far) = ((near, b"early ".to_vec()), (far, b"first ".to_vec()));
        relay(near, far, connection, TUNNEL_IDLE_TIMEOUT, &metrics, &Cell::default()).await
    }

    #[tokio::test]
    async fn what_came_before_goes_first_and_one_way_may_end_before_the_other() {
        let (_all, open) = open();
        let ((mut client, mut near), (mut far, mut server)) = (duplex(64), duplex(64));
        let client = async move {
            client.write_all(b"question").await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let server = async move {
            let mut question = String::new();
            server.read_to_string(&mut question).await.unwrap();
            // Only now that the question has ended, and more than fits at once.
            server.write_all(&[b'x'; 1000]).await.unwrap();
            server.shutdown().await.unwrap();
            question
        };
        let (relayed, answer, question) =
            tokio::join!(run(&mut near, &mut far, open.shared()), client, server);
        relayed.unwrap();
        assert_eq!(question, "early question");
        assert_eq!(answer, format!("first {}", "x".repeat(1000)));
    }

    /// Memory holds one read of a tunnel, not what its writer has.
    #[tokio::test]
    async fn a_reader_that_takes_nothing_stops_the_writer() {
        let (_all, open) = open();
        let ((mut client, mut near), (mut far, _server)) = (duplex(1000), duplex(1000));
        let mut written = 0;
        let writer = async {
            loop {
                let writing = client.write(&[0; 1000]);
                match tokio::time::timeout(std::time::Duration::from_millis(50), writing).await {
                    Ok(n) => written += n.unwrap(),
                    Err(_) => return,
                }
            }
        };
        tokio::select! {
            ended = run(&mut near, &mut far, open.shared()) => panic!("{ended:?}"),
            () = writer => {}
        }
        assert!(written <= 3 * 1000, "{written} bytes were taken");
    }

    #[tokio::test]
    async fn it_ends_when_nothing_moves_and_when_a_side_breaks_off() {
        let (all, one) = open();
        let ((_client, mut near), (mut far, _server)) = (duplex(64), duplex(64));
        let sweeps = async {
            // 1 h, as `Connection` counts it.
            for _ in 0..=2 * TUNNEL_IDLE_TIMEOUT.as_secs() {
                tokio::task::yield_now().await;
                all.sweep();
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = run(&mut near, &mut far, one.shared()) => assert!(matches!(ended, Err(Broken::Cut))),
            () = sweeps => unreachable!(),
        }
        let (_all, two) = open();
        let ((client, mut near), (mut far, server)) = (duplex(64), duplex(64));
        drop((client, server));
        assert!(matches!(run(&mut near, &mut far, two.shared()).await, Err(Broken::Io(_))));
    }
}
