//! One end of a connection, as a program holds it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{End, Event, Net};

/// What may be on the way or unread in one direction, as a socket's buffers hold it.
const WINDOW_BYTES: usize = 256 * 1024;

/// Reads from one pipe and writes to the other.
pub(super) struct SimStream {
    net: Net,
    read: u64,
    write: u64,
}

impl SimStream {
    pub(super) fn new(net: Net, read: u64, write: u64) -> Self {
        Self { net, read, write }
    }
}

impl AsyncRead for SimStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.net.state.lock();
        let Some(pipe) = state.pipes.get_mut(&self.read) else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        };
        if pipe.end == Some(End::Reset) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if !pipe.arrived.is_empty() {
            let length = pipe.arrived.len().min(buffer.remaining());
            buffer.put_slice(&pipe.arrived[..length]);
            pipe.arrived.advance(length);
            let writer = pipe.writer.take();
            drop(state);
            if let Some(writer) = writer {
                writer.wake();
            }
            return Poll::Ready(Ok(()));
        }
        if pipe.end.is_some() {
            return Poll::Ready(Ok(()));
        }
        pipe.reader = Some(context.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.net.state.lock();
        let Some(pipe) = state.pipes.get_mut(&self.write) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        if pipe.refused || pipe.writer_gone {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = WINDOW_BYTES.saturating_sub(pipe.in_flight + pipe.arrived.len());
        if room == 0 {
            pipe.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let length = room.min(bytes.len());
        pipe.in_flight += length;
        let (from, to) = (pipe.from, pipe.to);
        let bytes = Bytes::copy_from_slice(&bytes[..length]);
        state.send(from, to, Event::Data { pipe: self.write, bytes });
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.net.state.lock();
        let open =
            state.pipes.get_mut(&self.write).is_some_and(|p| !std::mem::replace(&mut p.writer_gone, true));
        if open {
            state.end(self.write, End::Finished);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        let mut state = self.net.state.lock();
        let open =
            state.pipes.get_mut(&self.write).is_some_and(|p| !std::mem::replace(&mut p.writer_gone, true));
        if open {
            state.end(self.write, End::Finished);
        }
        if let Some(pipe) = state.pipes.get_mut(&self.read) {
            pipe.reader_gone = true;
            // What is on its way is answered with a reset; what is not read any more is of no use.
            pipe.arrived.clear();
        }
        state.sweep();
    }
}
