//! Bytes in, bytes out: decoding with care, and encoding that fits the way back.

use hickory_proto::op::{Header, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use super::records::{self, Lookup, UDP_BYTES_MAX, UDP_BYTES_PLAIN};

/// Length of a header; anything shorter has nothing to answer to.
const HEADER_BYTES: usize = 12;

/// How an answer travels back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// One datagram: cut to what the client takes, with TC set.
    Udp,
    /// A length-prefixed stream: complete up to 64 KiB.
    Tcp,
}

/// Answers one packet; none if it deserves no answer (a response, or too short to have an id).
pub fn respond(packet: &[u8], transport: Transport, lookup: &Lookup<'_>, turn: usize) -> Option<Vec<u8>> {
    let header = Header::read(&mut BinDecoder::new(packet.get(..HEADER_BYTES)?)).ok()?;
    // Answering a response would let two servers talk to each other for ever.
    if header.metadata.message_type == MessageType::Response {
        return None;
    }
    let refuse = |code| {
        let mut m = Message::error_msg(header.metadata.id, header.metadata.op_code, code);
        m.metadata.recursion_desired = header.metadata.recursion_desired;
        m.to_vec().ok()
    };
    // Bodies of other operations have another layout; none is worth decoding.
    if header.metadata.op_code != OpCode::Query {
        return refuse(ResponseCode::NotImp);
    }
    let Ok(request) = Message::from_vec(packet) else {
        return refuse(ResponseCode::FormErr);
    };
    let limit = match (transport, &request.edns) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, None) => UDP_BYTES_PLAIN,
        (Transport::Udp, Some(edns)) => edns.max_payload().clamp(UDP_BYTES_PLAIN, UDP_BYTES_MAX),
    };
    encode(records::answer(&request, lookup, turn), usize::from(limit))
        .or_else(|| refuse(ResponseCode::ServFail))
}

/// Encodes within `limit` bytes. Additional records go first, without a mark, since nobody needs them
/// (RFC 2181 §9); then answers from the end, with TC set so that the client asks again over TCP.
fn encode(mut message: Message, limit: usize) -> Option<Vec<u8>> {
    let fits = |m: &Message| m.to_vec().ok().filter(|bytes| bytes.len() <= limit);
    if let Some(bytes) = fits(&message) {
        return Some(bytes);
    }
    message.additionals.clear();
    if let Some(bytes) = fits(&message) {
        return Some(bytes);
    }
    message.metadata.truncation = true;
    let answers = std::mem::take(&mut message.answers);
    let (mut enough, mut too_many) = (0, answers.len());
    while too_many - enough > 1 {
        let middle = enough + (too_many - enough) / 2;
        message.answers = answers[..middle].to_vec();
        if fits(&message).is_some() { enough = middle } else { too_many = middle }
    }
    message.answers = answers[..enough].to_vec();
    fits(&message)
}

#[cfg(test)]
mod tests;
