//! Answers as the bytes that go out, in pieces that HTTP/2 takes as they are.
//!
//! An answer with events is put together from what is its own, which is a few bytes, and from the events' bytes,
//! which are made once for all watchers ([`SharedEvent::encoded`]). Small ones are copied, so that many answers
//! share a piece; large ones are not even that. The same as the plain encoding of the same message, byte for byte.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len, message};
use weft_state::command::Event;
use weft_state::watch::SharedEvent;
use weft_xds_proto::etcdserverpb as pb;

use crate::api::etcd::convert;

/// About how large a piece gets: HTTP/2 sends it in frames of 16 KiB, and the client's window is no smaller.
pub const PIECE_BYTES: usize = 32 * 1024;

/// From here on it costs more to copy an event than to send it as a piece of its own.
const SHARED_BYTES_MIN: usize = 4 * 1024;

/// gRPC's head of a message: not compressed, and its length.
const HEAD_BYTES: usize = 5;

/// Fields of `etcdserverpb.WatchResponse`.
const HEADER: u32 = 1;
const WATCH_ID: u32 = 2;
const FRAGMENT: u32 = 7;
const EVENTS: u32 = 11;

/// What is to be sent, in order. Empty, it holds no memory worth mentioning.
#[derive(Default)]
pub struct Frames {
    sealed: VecDeque<Bytes>,
    sealed_bytes: usize,
    /// The last piece, still growing.
    piece: BytesMut,
    /// How large the piece before grew: the next one begins with that.
    expected: usize,
}

impl Frames {
    /// Bytes that wait to be sent.
    pub fn len(&self) -> usize {
        self.sealed_bytes + self.piece.len()
    }

    /// Takes the next piece.
    pub fn pop(&mut self) -> Option<Bytes> {
        self.seal();
        let first = self.sealed.pop_front()?;
        self.sealed_bytes -= first.len();
        Some(first)
    }

    /// Any answer, encoded plainly.
    pub fn message(&mut self, answer: &pb::WatchResponse) {
        self.head(answer.encoded_len());
        answer.encode(&mut self.piece).expect("memory takes what there is");
    }

    /// An answer with events. `header` is from [`encode_header`].
    pub fn events(&mut self, header: &[u8], watch_id: i64, events: &[Arc<SharedEvent>], fragment: bool) {
        let mut length = header.len() + events.iter().map(|event| encoded(event).len()).sum::<usize>();
        if watch_id != 0 {
            length += key_len(WATCH_ID) + encoded_len_varint(watch_id as u64);
        }
        if fragment {
            length += key_len(FRAGMENT) + 1;
        }
        self.head(length);
        self.piece.put_slice(header);
        if watch_id != 0 {
            encode_key(WATCH_ID, WireType::Varint, &mut self.piece);
            encode_varint(watch_id as u64, &mut self.piece);
        }
        if fragment {
            encode_key(FRAGMENT, WireType::Varint, &mut self.piece);
            self.piece.put_u8(1);
        }
        for event in events {
            let event = encoded(event);
            if event.len() >= SHARED_BYTES_MIN {
                self.seal();
                self.push(event.clone());
                continue;
            }
            self.piece.put_slice(event);
            if self.piece.len() >= PIECE_BYTES {
                self.seal();
            }
        }
    }

    fn head(&mut self, length: usize) {
        if self.piece.capacity() == 0 {
            self.piece.reserve(self.expected.max(HEAD_BYTES + length).min(PIECE_BYTES));
        }
        self.piece.put_u8(0);
        self.piece.put_u32(u32::try_from(length).expect("an answer has far fewer than 2^32 bytes"));
    }

    fn seal(&mut self) {
        if !self.piece.is_empty() {
            // Taken whole, with its room: an idle stream keeps no buffer.
            let piece = std::mem::take(&mut self.piece);
            self.expected = piece.len();
            self.push(piece.freeze());
        }
    }

    fn push(&mut self, chunk: Bytes) {
        self.sealed_bytes += chunk.len();
        self.sealed.push_back(chunk);
    }
}

/// An event as an element of `events`: made by the first watcher that gets it.
pub fn encoded(event: &SharedEvent) -> &Bytes {
    event.encoded(|event: &Event| {
        let event = convert::event(event);
        let mut bytes = Vec::with_capacity(message::encoded_len(EVENTS, &event));
        message::encode(EVENTS, &event, &mut bytes);
        bytes.into()
    })
}

/// A header as the field of an answer.
pub fn encode_header(header: &pb::ResponseHeader) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(message::encoded_len(HEADER, header));
    message::encode(HEADER, header, &mut bytes);
    bytes
}

#[cfg(test)]
mod tests;
