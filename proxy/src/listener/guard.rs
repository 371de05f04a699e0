//! The byte stream of a downstream connection, with a [`Scanner`] between the socket and the HTTP/1 parser.
//!
//! The parser sees only heads that are complete and clean. In place of one that is not it gets [`REFUSED_HEAD`], so
//! that the answer leaves in order, behind those of requests that came before on the same connection; the request
//! path knows it by [`is_refused`] and answers with the status of the [`Refusal`]. After a fault inside a body, whose
//! head is on its way already, reads fail, and with them the request.
//!
//! Behind a request that may end HTTP on the connection the bytes are held until its answer says so or not
//! ([`super::connection::Downstream::answered`]). They are then given to the tunnel ([`Guard::into_parts`]), or scanned as HTTP.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::connection::Connection;
use super::refusal::Refusal;
use super::scanner::{Position, Refused, Scanned, Scanner};
use crate::limits::READ_BUFFER_BYTES_MAX;

/// Method of the head that stands for a refused one. A client that sends it itself is not refused: only the mark
/// on its connection counts.
const REFUSED_METHOD: &str = "WEFT-REFUSED";
const REFUSED_HEAD: &[u8] = b"WEFT-REFUSED / HTTP/1.1\r\nHost: refused\r\nConnection: close\r\n\r\n";

/// See [`Guard::poll_write_vectored`].
const SMALL_WRITE_BYTES: usize = 1024;

/// After a refusal, or an answer before the end of its request, the rest of what the client sends is read and dropped,
/// up to so many bytes and so long: closing a socket with unread bytes resets it, and the answer with it.
const LINGER_BYTES: usize = 1024 * 1024;
const LINGER_TIME: Duration = Duration::from_secs(1);

/// The head of a request that is refused and could not be given here.
pub(crate) fn refused_head() -> http::request::Parts {
    let mut head = http::Request::new(()).into_parts().0;
    head.method = http::Method::from_bytes(REFUSED_METHOD.as_bytes()).unwrap_or(http::Method::TRACE);
    head
}

/// Why the request that the parser made of [`REFUSED_HEAD`] is refused; `None` for all others.
pub(crate) fn is_refused(method: &http::Method, connection: &Connection) -> Option<Refusal> {
    let refusal = connection.refusal()?;
    (method.as_str() == REFUSED_METHOD).then_some(refusal)
}

/// See the module.
pub(crate) struct Guard<S> {
    inner: S,
    connection: Rc<Connection>,
    /// `None` for HTTP/2, whose frames need no guard.
    scanner: Option<Scanner>,
    /// Read, not scanned yet or an incomplete head.
    held: Vec<u8>,
    held_is_new: bool,
    /// Scanned, to be given to the parser before anything else.
    ready: Vec<u8>,
    ready_at: usize,
    end: End,
    linger: Option<Linger>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Bytes go on.
    Open,
    /// The stand-in is the last that the parser gets.
    Silent,
    /// Reads fail.
    Broken,
}

struct Linger {
    left: usize,
    until: Pin<Box<Sleep>>,
}

impl<S> Guard<S> {
    /// For HTTP/1. `seen` was read from `inner` already.
    pub fn http1(inner: S, seen: Vec<u8>, connection: Rc<Connection>) -> Self {
        Self {
            scanner: Some(Scanner::new()),
            held_is_new: !seen.is_empty(),
            held: seen,
            ..Self::bare(inner, connection)
        }
    }

    /// For HTTP/2: only notes that bytes move.
    pub fn http2(inner: S, seen: Vec<u8>, connection: Rc<Connection>) -> Self {
        Self { ready: seen, ..Self::bare(inner, connection) }
    }

    fn bare(inner: S, connection: Rc<Connection>) -> Self {
        Self {
            inner,
            connection,
            scanner: None,
            held: Vec::new(),
            held_is_new: false,
            ready: Vec::new(),
            ready_at: 0,
            end: End::Open,
            linger: None,
        }
    }

    fn refuse(&mut self, refused: Refused) {
        let refusal = match refused {
            Refused::Head(refusal) => {
                self.ready.extend_from_slice(REFUSED_HEAD);
                self.end = End::Silent;
                refusal
            }
            Refused::Body(refusal) => {
                self.end = End::Broken;
                refusal
            }
        };
        self.held = Vec::new();
        self.connection.refuse(refusal);
    }

    /// Scans what is held and moves what may pass to `ready`.
    fn scan_held(&mut self) {
        let Some(scanner) = &mut self.scanner else { return };
        self.held_is_new = false;
        let scanned = scanner.scan(&self.held);
        self.ready.extend_from_slice(&self.held[..scanned.passable]);
        self.held.drain(..scanned.passable);
        if self.held.is_empty() {
            // Heads are rarely split: do not keep the room.
            self.held = Vec::new();
        }
        Self::locate(&self.connection, scanner, &scanned, !self.held.is_empty());
        if let Some(refused) = scanned.refusal {
            self.refuse(refused);
        }
    }

    fn locate(connection: &Connection, scanner: &Scanner, scanned: &Scanned, held: bool) {
        if scanned.passable > 0 {
            // A head that follows has its own time.
            connection.at(Position::Idle);
        }
        connection.at(scanner.position(held));
    }

    fn give_ready(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let rest = &self.ready[self.ready_at..];
        if rest.is_empty() {
            return false;
        }
        let take = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..take]);
        self.ready_at += take;
        if self.ready_at == self.ready.len() {
            self.ready = Vec::new();
            self.ready_at = 0;
        }
        true
    }
}

impl<S> Guard<S> {
    /// The stream, with what was read from it and not given away.
    pub fn into_parts(self) -> (S, Vec<u8>) {
        let mut seen = self.ready;
        seen.drain(..self.ready_at);
        seen.extend_from_slice(&self.held);
        (self.inner, seen)
    }

    /// Looks whether it is decided what the bytes behind a request are. False: they wait.
    fn decide(&mut self) -> bool {
        let Some(scanner) = self.scanner.as_mut().filter(|s| s.is_undecided()) else { return true };
        if !self.connection.is_answered(scanner.heads()) {
            // Some are read all the same, to notice a client that goes away.
            return self.held.len() < READ_BUFFER_BYTES_MAX;
        }
        if self.connection.is_switched() {
            return false;
        }
        scanner.goes_on();
        self.held_is_new = !self.held.is_empty();
        self.connection.at(scanner.position(self.held_is_new));
        true
    }

    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.connection.takes(written.is_ready());
        if written.is_ready() {
            self.connection.moved();
        }
        written
    }
}

impl<S: AsyncRead + Unpin> Guard<S> {
    /// Reads and scans in the parser's own buffer; only an incomplete head is copied.
    fn poll_scan(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<Step>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let fresh = &buf.filled()[before..];
        if fresh.is_empty() {
            return Poll::Ready(Ok(Step::Done));
        }
        self.connection.moved();
        let Some(scanner) = &mut self.scanner else { return Poll::Ready(Ok(Step::Done)) };
        if scanner.is_opaque() {
            buf.set_filled(before);
            return Poll::Ready(Ok(Step::Again));
        }
        if !self.held.is_empty() {
            self.held.extend_from_slice(fresh);
            buf.set_filled(before);
            self.scan_held();
            return Poll::Ready(Ok(Step::Again));
        }
        let scanned = scanner.scan(fresh);
        if scanned.refusal.is_none() && !scanner.is_opaque() {
            self.held.extend_from_slice(&fresh[scanned.passable..]);
        }
        buf.set_filled(before + scanned.passable);
        Self::locate(&self.connection, scanner, &scanned, !self.held.is_empty());
        if let Some(refused) = scanned.refusal {
            self.refuse(refused);
        }
        Poll::Ready(Ok(if scanned.passable > 0 { Step::Done } else { Step::Again }))
    }
}

enum Step {
    Done,
    Again,
}

impl<S: AsyncRead + Unpin> AsyncRead for Guard<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.decide() {
                this.connection.remember(cx.waker());
                return Poll::Pending;
            }
            if this.held_is_new {
                this.scan_held();
            }
            if this.give_ready(buf) {
                return Poll::Ready(Ok(()));
            }
            match this.end {
                End::Open => {}
                // Looks like a client that waits for its answer.
                End::Silent => return Poll::Pending,
                End::Broken => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "malformed body")));
                }
            }
            if this.connection.take_head_late() && !this.held.is_empty() {
                this.refuse(Refused::Head(Refusal::HeadTimeout));
                this.connection.at(Position::Body);
                continue;
            }
            this.connection.remember(cx.waker());
            match ready!(this.poll_scan(cx, buf))? {
                Step::Done => return Poll::Ready(Ok(())),
                Step::Again => {}
            }
        }
    }
}

/// All of these in one place, if they fit.
fn joined<'a>(bufs: &[io::IoSlice<'_>], place: &'a mut [u8]) -> Option<&'a [u8]> {
    if bufs.iter().map(|b| b.len()).sum::<usize>() > place.len() {
        return None;
    }
    let mut len = 0;
    for buf in bufs {
        let end = len + buf.len();
        place.get_mut(len..end)?.copy_from_slice(buf);
        len = end;
    }
    Some(&place[..len])
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // The usual answer, a small head and a small body: copying it costs less than `writev` does beyond `send`.
        let mut small = [0; SMALL_WRITE_BYTES];
        let written = match joined(bufs, &mut small) {
            Some(all) => Pin::new(&mut self.inner).poll_write(cx, all),
            None => Pin::new(&mut self.inner).poll_write_vectored(cx, bufs),
        };
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
            // Behind a request that was to end HTTP too.
            let unfinished = this.scanner.as_ref().is_some_and(|s| s.position(false) == Position::Body);
            if this.end == End::Open && !unfinished {
                return Poll::Ready(Ok(()));
            }
        }
        let linger = this.linger.get_or_insert_with(|| Linger {
            left: LINGER_BYTES,
            until: Box::pin(tokio::time::sleep(LINGER_TIME)),
        });
        let mut scratch = [0; 4096];
        while linger.left > 0 {
            let mut dropped = ReadBuf::new(&mut scratch);
            match Pin::new(&mut this.inner).poll_read(cx, &mut dropped) {
                Poll::Ready(Ok(())) if !dropped.filled().is_empty() => {
                    linger.left = linger.left.saturating_sub(dropped.filled().len());
                }
                // The answer is out either way.
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => {
                    ready!(linger.until.as_mut().poll(cx));
                    return Poll::Ready(Ok(()));
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::listener::connection::Connections;

    fn guarded(seen: &[u8]) -> (Guard<tokio::io::DuplexStream>, tokio::io::DuplexStream, Rc<Connection>) {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let connections = Rc::new(Connections::default());
        let connection = connections.open("127.0.0.1:1".parse().unwrap(), false).shared().clone();
        (Guard::http1(near, seen.to_vec(), connection.clone()), far, connection)
    }

    async fn read_some(guard: &mut Guard<tokio::io::DuplexStream>) -> Vec<u8> {
        let mut buf = vec![0; 16 * 1024];
        let n = guard.read(&mut buf).await.unwrap();
        buf.truncate(n);
        buf
    }

    #[tokio::test]
    async fn a_split_head_reaches_the_parser_whole() {
        let (mut guard, mut far, _) = guarded(b"GET / HT");
        far.write_all(b"TP/1.1\r\nHo").await.unwrap();
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let reader = async { assert_eq!(read_some(&mut guard).await, head) };
        let writer = async {
            tokio::task::yield_now().await;
            far.write_all(b"st: a\r\n\r\nGET").await.unwrap();
        };
        tokio::join!(reader, writer);
        assert_eq!(guard.held, b"GET");
    }

    #[tokio::test]
    async fn a_refused_head_is_replaced_behind_what_came_before() {
        let (mut guard, mut far, connection) = guarded(b"");
        let good = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
        let bad = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi";
        far.write_all(&[good.as_slice(), bad].concat()).await.unwrap();
        assert_eq!(read_some(&mut guard).await, good);
        assert_eq!(read_some(&mut guard).await, REFUSED_HEAD);
        assert_eq!(connection.refusal(), Some(Refusal::SeveralLengths));
        let method = http::Method::from_bytes(b"WEFT-REFUSED").unwrap();
        assert_eq!(is_refused(&method, &connection), Some(Refusal::SeveralLengths));
        assert_eq!(is_refused(&http::Method::GET, &connection), None);
    }

    #[tokio::test]
    async fn reads_fail_after_a_fault_in_a_body() {
        let (mut guard, mut far, connection) = guarded(b"");
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        far.write_all(&[head.as_slice(), b"ZZ\r\n"].concat()).await.unwrap();
        assert_eq!(read_some(&mut guard).await, head);
        assert!(guard.read(&mut [0; 10]).await.is_err());
        assert_eq!(connection.refusal(), Some(Refusal::Chunk));
    }

    /// A client that pipelines always has part of a head under way.
    #[tokio::test]
    async fn each_head_has_its_own_time() {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        let connections = Rc::new(Connections::default());
        let open = connections.open("127.0.0.1:1".parse().unwrap(), false);
        let mut guard = Guard::http1(near, Vec::new(), open.shared().clone());
        far.write_all(b"GET / HT").await.unwrap();
        for _ in 0..100 {
            far.write_all(b"TP/1.1\r\nHost: a\r\n\r\nGET / HT").await.unwrap();
            assert!(read_some(&mut guard).await.starts_with(b"GET"));
            connections.sweep();
        }
        assert!(!open.shared().take_head_late());
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_refusal_the_rest_is_read_before_the_socket_is_closed() {
        let (mut guard, mut far, _) = guarded(b"");
        far.write_all(b"GET\r\n").await.unwrap();
        assert_eq!(read_some(&mut guard).await, REFUSED_HEAD);
        let shutdown = tokio::spawn(async move {
            far.write_all(&[b'x'; 200_000]).await.unwrap();
            far.read_to_end(&mut Vec::new()).await.unwrap();
            drop(far);
        });
        guard.shutdown().await.unwrap();
        shutdown.await.unwrap();
    }
}
