//! One anti-entropy stream: frames in, frames out, within one deadline.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::mpsc;
use weft_core::limits::GOSSIP_SESSION_MAX;

use crate::pool::StreamId;
use crate::wire;

/// What a stream tells the task.
#[derive(Debug)]
pub(crate) enum StreamEvent {
    /// A frame came, without its length.
    Frame(StreamId, Vec<u8>),
    /// It is over, one way or another.
    Closed(StreamId),
}

/// Where a stream comes from.
pub(super) enum Origin {
    Accepted(TcpStream),
    Connect(SocketAddr),
}

/// Runs one stream to its end. Frames to send come from `outgoing`; when that closes, ours are all sent. Always ends
/// with [`StreamEvent::Closed`], unless the task that listens is gone.
pub(super) async fn run(
    id: StreamId,
    origin: Origin,
    outgoing: mpsc::Receiver<Bytes>,
    events: mpsc::Sender<StreamEvent>,
) {
    let ended = tokio::time::timeout(GOSSIP_SESSION_MAX, exchange(id, origin, outgoing, &events)).await;
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(?id, "anti-entropy stream: {error}"),
        Err(_) => tracing::debug!(?id, "anti-entropy stream took longer than {GOSSIP_SESSION_MAX:?}"),
    }
    let _ = events.send(StreamEvent::Closed(id)).await;
}

async fn exchange(
    id: StreamId,
    origin: Origin,
    outgoing: mpsc::Receiver<Bytes>,
    events: &mpsc::Sender<StreamEvent>,
) -> io::Result<()> {
    let socket = match origin {
        Origin::Accepted(socket) => socket,
        Origin::Connect(addr) => TcpStream::connect(addr).await?,
    };
    socket.set_nodelay(true)?;
    let (reader, writer) = socket.into_split();
    let mut reading = std::pin::pin!(read_frames(id, reader, events));
    let mut writing = std::pin::pin!(write_frames(writer, outgoing));
    tokio::select! {
        read = &mut reading => {
            read?;
            // The other side has said all; ours may still be on its way.
            writing.await
        }
        written = &mut writing => {
            written?;
            reading.await
        }
    }
}

/// Frames of the other side, until it has said all.
pub(crate) async fn read_frames(
    id: StreamId,
    mut reader: impl AsyncRead + Unpin,
    events: &mpsc::Sender<StreamEvent>,
) -> io::Result<()> {
    loop {
        let mut prefix = [0; 4];
        match reader.read_exact(&mut prefix).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        let len = wire::frame_len(prefix)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("a frame {e}")))?;
        // Grows with what really comes: a peer cannot make us reserve the limit with four bytes.
        let mut frame = Vec::new();
        let read = (&mut reader).take(len as u64).read_to_end(&mut frame).await?;
        if read < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if events.send(StreamEvent::Frame(id, frame)).await.is_err() {
            return Ok(());
        }
    }
}

async fn write_frames(mut writer: OwnedWriteHalf, mut outgoing: mpsc::Receiver<Bytes>) -> io::Result<()> {
    while let Some(frame) = outgoing.recv().await {
        writer.write_all(&frame).await?;
    }
    writer.shutdown().await
}
