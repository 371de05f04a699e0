//! A body on its way out, and what waits to be written.

use std::io::{self, IoSlice, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame};
use tokio::io::AsyncWrite;

use super::body::Framing;
use super::write_field;

/// Pieces of a body up to this size are copied behind what waits, so that all of it is written at once.
const COPIED_BYTES: usize = 4 * 1024;

/// From so much on that waits, nothing more is asked of the body.
const WAITING_BYTES: usize = 16 * 1024;

/// Room that is kept for the next request.
const KEPT_BYTES: usize = 4 * 1024;

/// What waits to be written: bytes of ours, then a piece of a body, then the end of its chunk.
#[derive(Debug, Default)]
pub(crate) struct Output {
    bytes: Vec<u8>,
    at: usize,
    data: Bytes,
    chunk_end: bool,
}

impl Output {
    /// Where to put what comes next; only while no piece of a body waits.
    pub fn bytes(&mut self) -> &mut Vec<u8> {
        debug_assert!(self.data.is_empty(), "bytes of ours go before the piece that waits");
        &mut self.bytes
    }

    fn waits(&self) -> usize {
        self.bytes.len() - self.at + self.data.len()
    }

    /// Writes what waits.
    ///
    /// # Errors
    /// If the connection takes nothing more.
    pub fn poll_write<W: AsyncWrite + ?Sized>(
        &mut self,
        cx: &mut Context<'_>,
        mut io: Pin<&mut W>,
    ) -> Poll<io::Result<()>> {
        while self.waits() > 0 {
            let ours = &self.bytes[self.at..];
            let n = match (ours.is_empty(), self.data.is_empty()) {
                (_, true) => ready!(io.as_mut().poll_write(cx, ours))?,
                (true, _) => ready!(io.as_mut().poll_write(cx, &self.data))?,
                _ => {
                    let both = [IoSlice::new(ours), IoSlice::new(&self.data)];
                    ready!(io.as_mut().poll_write_vectored(cx, &both))?
                }
            };
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_ours = n.min(ours.len());
            self.at += of_ours;
            self.data.advance(n - of_ours);
            if self.at == self.bytes.len() {
                self.bytes.clear();
                self.bytes.shrink_to(KEPT_BYTES);
                self.at = 0;
                if self.data.is_empty() && std::mem::take(&mut self.chunk_end) {
                    // Written with what follows.
                    self.bytes.extend_from_slice(b"\r\n");
                    break;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Why a message could not be written to its end.
#[derive(Debug)]
pub(crate) enum SendError<E> {
    Io(io::Error),
    /// The body broke off, so that the message cannot be ended as a whole one.
    Body(E),
    /// The body is not as long as its head says.
    Length(&'static str),
}

impl<E> From<io::Error> for SendError<E> {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A body until it has been written.
#[derive(Debug)]
pub(crate) struct Sending<B> {
    body: B,
    /// With the length that is left.
    framing: Framing,
    ended: bool,
    trailers: bool,
}

impl<B: Body<Data = Bytes> + Unpin> Sending<B> {
    /// With a length of 0 there is no body, whatever it says.
    pub fn new(body: B, framing: Framing) -> Self {
        let ended = framing == Framing::Length(0);
        Self { body, framing, ended, trailers: true }
    }

    /// Whether trailers may be sent (RFC 9110 §6.5.1).
    pub fn with_trailers(self, trailers: bool) -> Self {
        Self { trailers, ..self }
    }

    /// Writes until all of it is written. What is small is written at once with what is before it.
    pub fn poll<W: AsyncWrite + ?Sized>(
        &mut self,
        cx: &mut Context<'_>,
        output: &mut Output,
        mut io: Pin<&mut W>,
    ) -> Poll<Result<(), SendError<B::Error>>> {
        loop {
            let mut waits_for_body = false;
            while !self.ended && output.data.is_empty() && output.waits() < WAITING_BYTES {
                match Pin::new(&mut self.body).poll_frame(cx) {
                    Poll::Ready(Some(frame)) => self.frame(frame.map_err(SendError::Body)?, output)?,
                    Poll::Ready(None) => self.end(output)?,
                    Poll::Pending => {
                        waits_for_body = true;
                        break;
                    }
                }
            }
            ready!(output.poll_write(cx, io.as_mut()))?;
            if (self.ended || waits_for_body) && output.waits() == 0 {
                ready!(io.as_mut().poll_flush(cx))?;
                return if self.ended { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
        }
    }

    fn frame(&mut self, frame: Frame<Bytes>, output: &mut Output) -> Result<(), SendError<B::Error>> {
        let data = match frame.into_data() {
            Ok(data) if data.is_empty() => return Ok(()),
            Ok(data) => data,
            Err(frame) => {
                if let (Framing::Chunked, Ok(trailers)) = (self.framing, frame.into_trailers()) {
                    output.bytes.extend_from_slice(b"0\r\n");
                    for (name, value) in trailers.iter().filter(|_| self.trailers) {
                        write_field(&mut output.bytes, name, value);
                    }
                    output.bytes.extend_from_slice(b"\r\n");
                    self.ended = true;
                }
                return Ok(());
            }
        };
        let chunked = match &mut self.framing {
            Framing::Length(left) => {
                let rest = left.checked_sub(data.len() as u64);
                *left = rest.ok_or(SendError::Length("the body is longer than its Content-Length"))?;
                false
            }
            Framing::Chunked => {
                // A Vec takes all.
                let _ = write!(output.bytes, "{:x}\r\n", data.len());
                true
            }
            Framing::UntilClose => false,
        };
        if data.len() <= COPIED_BYTES {
            output.bytes.extend_from_slice(&data);
            if chunked {
                output.bytes.extend_from_slice(b"\r\n");
            }
        } else {
            output.data = data;
            output.chunk_end = chunked;
        }
        if self.body.is_end_stream() { self.end(output) } else { Ok(()) }
    }

    fn end(&mut self, output: &mut Output) -> Result<(), SendError<B::Error>> {
        match self.framing {
            Framing::Length(left) if left > 0 => {
                return Err(SendError::Length("the body is shorter than its Content-Length"));
            }
            // Behind the piece that waits, with the end of its chunk.
            Framing::Chunked if !output.data.is_empty() => return Ok(()),
            Framing::Chunked => output.bytes.extend_from_slice(b"0\r\n\r\n"),
            _ => {}
        }
        self.ended = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::sync::mpsc;

    use super::*;
    use crate::upstream::request_body::{RequestBody, RequestBodyError};

    /// Takes so many bytes at once.
    struct Slow(Vec<u8>, usize);

    impl AsyncWrite for Slow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let n = buf.len().min(self.1);
            self.0.extend_from_slice(&buf[..n]);
            Poll::Ready(Ok(n))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// What is written of a head and these pieces.
    fn written(
        pieces: &[Vec<u8>],
        framing: Framing,
        at_once: usize,
    ) -> Result<Vec<u8>, SendError<RequestBodyError>> {
        let (sender, receiver) = mpsc::channel(pieces.len() + 1);
        for piece in pieces {
            sender.try_send(Bytes::from(piece.clone())).unwrap();
        }
        sender.try_send(Bytes::new()).unwrap();
        let mut sending = Sending::new(RequestBody::Copied(receiver), framing);
        let (mut output, mut slow) = (Output::default(), Slow(Vec::new(), at_once));
        output.bytes().extend_from_slice(b"HEAD");
        let mut cx = Context::from_waker(futures::task::noop_waker_ref());
        match sending.poll(&mut cx, &mut output, Pin::new(&mut slow)) {
            Poll::Ready(done) => done.map(|()| slow.0),
            Poll::Pending => unreachable!("all of it is there"),
        }
    }

    proptest! {
        #[test]
        fn a_body_is_written_as_it_is_framed(
            sizes in proptest::collection::vec(1usize..9_000, 0..6),
            at_once in 1usize..20_000,
        ) {
            let pieces: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(i, n)| vec![b'a' + i as u8; *n]).collect();
            let length = Framing::Length(sizes.iter().sum::<usize>() as u64);
            let plain = [b"HEAD".to_vec(), pieces.concat()].concat();
            // One of length 0 is not asked for.
            prop_assert_eq!(&written(&pieces, length, at_once).unwrap(), &plain);
            prop_assert_eq!(&written(&pieces, Framing::UntilClose, at_once).unwrap(), &plain);
            let mut chunks = b"HEAD".to_vec();
            for piece in &pieces {
                chunks.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                chunks.extend_from_slice(piece);
                chunks.extend_from_slice(b"\r\n");
            }
            chunks.extend_from_slice(b"0\r\n\r\n");
            prop_assert_eq!(written(&pieces, Framing::Chunked, at_once).unwrap(), chunks);
        }
    }

    /// D02: the endpoint would take what follows for the rest, or the rest for what follows.
    #[test]
    fn a_body_that_is_not_as_long_as_its_request_says_breaks_it_off() {
        let body = [vec![b'x'; 10]];
        for (length, expected) in [(9, "longer"), (11, "shorter")] {
            let Err(SendError::Length(why)) = written(&body, Framing::Length(length), 100) else {
                panic!("it is not")
            };
            assert_eq!(why, format!("the body is {expected} than its Content-Length"));
        }
    }
}
