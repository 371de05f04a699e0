//! HTTP/2 by hand, frame by frame (RFC 9113 §6).

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;

/// A connection of a client.
pub struct Wire(TcpStream);

impl Wire {
    /// With the preface and no settings of its own.
    pub async fn open(addr: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut wire = Self(stream);
        wire.send(&frame(SETTINGS, 0, 0, &[])).await;
        wire
    }

    /// The peer may have closed.
    pub async fn send(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).await.is_ok()
    }

    /// The next one: its kind, its stream and what it holds.
    pub async fn frame(&mut self) -> Option<(u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; number(&head[..3]) as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        Some((head[3], number(&head[5..9]), payload))
    }
}

pub fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |n, b| n << 8 | u32::from(*b))
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    [&len.to_be_bytes()[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

pub fn setting(name: u16, value: u32) -> Vec<u8> {
    let payload = [&name.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(SETTINGS, 0, 0, &payload)
}

/// A field without Huffman coding or indexing.
pub fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    let text = |bytes: &[u8]| {
        let mut out = Vec::new();
        if bytes.len() < 127 {
            out.push(bytes.len() as u8);
        } else {
            out.push(127);
            let mut rest = bytes.len() - 127;
            while rest >= 128 {
                out.push((rest % 128) as u8 | 128);
                rest /= 128;
            }
            out.push(rest as u8);
        }
        out.extend(bytes);
        out
    };
    [vec![0], text(name), text(value)].concat()
}

pub fn fields(all: &[(&str, &[u8])]) -> Vec<u8> {
    all.iter().flat_map(|(name, value)| field(name.as_bytes(), value)).collect()
}
