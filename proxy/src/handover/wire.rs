//! Messages: two lengths of four bytes (JSON, then other bytes), and those. Descriptors follow an offer, each batch with
//! one byte. Blocking, with the timeouts of the stream.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cluster::learnt::Learnt;

/// Largest part of a message, in bytes: the gossip state of a full pool is smaller.
const PART_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Descriptors in one batch; the kernel takes 253.
const BATCH: usize = 64;

/// Most descriptors of an offer.
const DESCRIPTORS_MAX: usize = 16 * 1024;

/// From the new process.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FromNew {
    /// The first word. Its form stays, whatever follows it changes.
    Hello {
        protocol: u32,
        version: String,
        pid: u32,
    },
    Prepared,
    Serving,
    /// From whoever supervises the process, in place of `Hello`: answered by `Done`.
    Order(Order),
}

/// What a supervisor wants of a sidecar that is no part of its own process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Take the services out of the mesh, and go on. Done when nobody uses them any more.
    Withdraw,
    /// Drain, and end. Done when that begins.
    Stop,
}

/// From the old one.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FromOld {
    /// Its form stays, as that of `Hello`.
    Refused {
        reason: String,
    },
    /// As many descriptors follow.
    Offer {
        version: String,
        pid: u32,
        descriptors: Vec<What>,
    },
    /// With the gossip state as other bytes, if it gossips. An older weft has `learnt` nothing.
    State {
        wanted: Vec<String>,
        held: Vec<String>,
        #[serde(default)]
        learnt: Vec<Learnt>,
    },
    Over,
    Done,
}

/// What a descriptor is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum What {
    /// Of the data folder.
    Lock,
    /// This very socket's listener.
    Handover,
    Admin,
    GossipUdp,
    GossipTcp,
    /// A listener of this name, at an address or path: one of several handles.
    Listener {
        name: String,
        at: String,
    },
}

/// Sends a message.
///
/// # Errors
/// If the other side is gone or takes nothing for too long.
pub(crate) fn send(stream: &mut UnixStream, message: &impl Serialize, other: &[u8]) -> io::Result<()> {
    let json = serde_json::to_vec(message)?;
    let length = |part: &[u8]| {
        let fits = u32::try_from(part.len()).ok().filter(|_| part.len() <= PART_BYTES_MAX);
        fits.ok_or_else(|| io::Error::other(format!("{} bytes, at most {PART_BYTES_MAX}", part.len())))
    };
    let mut bytes = Vec::with_capacity(8 + json.len() + other.len());
    bytes.extend(length(&json)?.to_be_bytes());
    bytes.extend(length(other)?.to_be_bytes());
    bytes.extend(json);
    bytes.extend(other);
    stream.write_all(&bytes)
}

/// Receives a message. `None` if the other side has closed the stream instead.
///
/// # Errors
/// If it is no such message, or did not come in time.
pub(crate) fn receive<M: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<Option<(M, Vec<u8>)>> {
    let mut lengths = [0; 8];
    match stream.read_exact(&mut lengths) {
        Err(error)
            if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) =>
        {
            return Ok(None);
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
        }
        read => read?,
    }
    let [a, b, c, d, e, f, g, h] = lengths;
    let mut part = |length: [u8; 4]| {
        let length = u32::from_be_bytes(length) as usize;
        if length > PART_BYTES_MAX {
            let text = format!("a message of {length} bytes, at most {PART_BYTES_MAX}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        // Grows with what comes, not with what is announced.
        let mut bytes = Vec::new();
        let read = Read::by_ref(stream).take(length as u64).read_to_end(&mut bytes)?;
        if read == length { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    };
    let json = part([a, b, c, d])?;
    let other = part([e, f, g, h])?;
    Ok(Some((serde_json::from_slice(&json)?, other)))
}

/// Sends descriptors; the other side gets its own handles on what they are.
///
/// # Errors
/// As [`send`].
pub(crate) fn send_descriptors(stream: &UnixStream, all: &[BorrowedFd<'_>]) -> io::Result<()> {
    for batch in all.chunks(BATCH) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(batch)) {
            return Err(io::Error::other("a batch of descriptors does not fit its buffer"));
        }
        rustix::net::sendmsg(stream, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    }
    Ok(())
}

/// Receives as many descriptors.
///
/// # Errors
/// If fewer come, or something else.
pub(crate) fn receive_descriptors(stream: &UnixStream, count: usize) -> io::Result<Vec<OwnedFd>> {
    if count > DESCRIPTORS_MAX {
        return Err(io::Error::other(format!("{count} descriptors, at most {DESCRIPTORS_MAX}")));
    }
    let mut all = Vec::new();
    while all.len() < count {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        #[cfg(target_os = "linux")]
        let flags = RecvFlags::CMSG_CLOEXEC;
        #[cfg(not(target_os = "linux"))]
        let flags = RecvFlags::empty();
        let received = rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut control, flags)?;
        let before = all.len();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                all.extend(descriptors);
            }
        }
        if received.bytes == 0 || received.flags.contains(ReturnFlags::CTRUNC) || all.len() == before {
            let text = format!("{} of {count} descriptors came", all.len());
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        let (one, two) = UnixStream::pair().unwrap();
        for stream in [&one, &two] {
            stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        }
        (one, two)
    }

    #[test]
    fn messages_and_many_descriptors_arrive_in_order() {
        let (mut one, mut two) = pair();
        let sockets: Vec<_> = (0..150).map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let hello = FromNew::Hello { protocol: 1, version: "1".to_owned(), pid: 7 };
        send(&mut one, &hello, b"more").unwrap();
        let all: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        send_descriptors(&one, &all).unwrap();
        send(&mut one, &FromNew::Serving, b"").unwrap();
        assert_eq!(receive(&mut two).unwrap(), Some((hello, b"more".to_vec())));
        let got = receive_descriptors(&two, all.len()).unwrap();
        for (got, sent) in got.into_iter().map(std::net::UdpSocket::from).zip(&sockets) {
            assert_eq!(got.local_addr().unwrap(), sent.local_addr().unwrap());
        }
        assert_eq!(receive(&mut two).unwrap(), Some((FromNew::Serving, Vec::new())));
        drop(one);
        assert_eq!(receive::<FromNew>(&mut two).unwrap(), None);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let refused = |bytes: &[u8]| {
            let (mut one, mut two) = pair();
            one.write_all(bytes).unwrap();
            drop(one);
            receive::<FromNew>(&mut two).unwrap_err().to_string()
        };
        assert!(refused(&[255; 8]).contains("at most"));
        assert!(refused(&[0, 0, 0, 2, 0, 0, 0, 0, b'{', b'}']).contains("expected value"));
        refused(&[0, 0, 0, 9, 0, 0, 0, 0, b'{']);
        let (_one, mut two) = pair();
        assert!(receive::<FromNew>(&mut two).unwrap_err().to_string().contains("in time"));
    }

    #[test]
    fn fewer_descriptors_than_announced_are_an_error() {
        let (one, two) = pair();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        send_descriptors(&one, &[socket.as_fd()]).unwrap();
        drop(one);
        assert!(receive_descriptors(&two, 2).unwrap_err().to_string().contains("1 of 2"));
        assert!(receive_descriptors(&two, usize::MAX).is_err());
    }
}
