//! Anybody can send to a member: each parser of ours takes an input or refuses it, whatever it is, and what it takes is sent on
//! as it came. Known inputs are in `tests/corpus`; those of messages are their bytes.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use weft_corpus::{feed, feed_text};

use crate::continuation::Continuation;
use crate::driver::stream::{StreamEvent, read_frames};
use crate::peers::Peers;
use crate::pool::StreamId;
use crate::wire::{self, Heard, Hello, Kind, Welcome, Withdrawal};

macro_rules! corpus {
    ($parser:literal) => {
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/", $parser)
    };
}

fn passes<M: Serialize + DeserializeOwned + PartialEq + Debug>(kind: Kind, payload: &[u8]) -> bool {
    let Ok(message) = wire::decode::<M>(payload) else { return false };
    let sent = wire::datagram(kind, &message);
    let (seen, payload) = wire::open_datagram(&sent).unwrap();
    assert_eq!((seen, wire::decode::<M>(payload).unwrap()), (kind, message));
    true
}

/// But for those of SWIM, which are foca's.
#[test]
fn a_datagram_is_a_message_of_its_kind_or_refused() {
    feed(corpus!("datagram"), "wg\u{1}\0[\0-\u{6}][\0-\u{7f}]{0,40}", |bytes| {
        let Ok((kind, payload)) = wire::open_datagram(bytes) else { return false };
        match kind {
            Kind::Hello => passes::<Hello>(kind, payload),
            Kind::Welcome => passes::<Welcome>(kind, payload),
            Kind::Withdrawal => passes::<Withdrawal>(kind, payload),
            Kind::Heard => passes::<Heard>(kind, payload),
            Kind::Swim => false,
            Kind::Frame => panic!("a frame comes by streams alone"),
        }
    });
}

/// All frames of a stream. Taken is one that ends behind a frame and has only frames that mean something.
#[test]
fn a_stream_is_cut_into_the_frames_that_were_written() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    feed(corpus!("stream"), "(\0\0\0[\0-\u{9}]wg\u{1}\0\u{3}[\0-\u{7f}]{0,4}){0,4}", |bytes| {
        let (events, mut came) = mpsc::channel(1);
        let reading = async move { read_frames(StreamId(1), bytes, &events).await };
        let listening = async {
            let mut frames = Vec::new();
            while let Some(StreamEvent::Frame(_, frame)) = came.recv().await {
                frames.push(frame);
            }
            frames
        };
        let (ended, frames) = runtime.block_on(async { tokio::join!(reading, listening) });
        let mut written = Vec::new();
        for frame in &frames {
            written.extend(u32::try_from(frame.len()).unwrap().to_be_bytes());
            written.extend(frame);
        }
        assert!(bytes.starts_with(&written));
        let whole = ended.is_ok() && written.len() == bytes.len();
        assert!(whole || bytes.len() - written.len() < 4 || ended.is_err());
        let opened = frames.iter().filter_map(|frame| wire::open_frame(frame).ok());
        let again = opened.map(|frame| wire::open_frame(&wire::frame(&frame).unwrap()[4..]) == Ok(frame));
        let sound: Vec<_> = again.collect();
        assert!(sound.iter().all(|same| *same));
        whole && sound.len() == frames.len() && !frames.is_empty()
    });
}

#[test]
fn a_continuation_is_taken_up_as_it_was_handed_over() {
    feed(corpus!("continuation"), "[\u{1}-\u{7f}][\0-\u{7f}]{0,60}", |bytes| {
        let Ok(taken) = Continuation::decode(bytes) else { return false };
        assert_eq!(Continuation::decode(&taken.encode()), Ok(taken.clone()));
        assert_ne!(taken.id().0, 0);
        assert!(taken.instances().len() <= taken.records.iter().map(|r| r.instances.len()).sum());
        Peers::default().load_text(&taken.peers);
        true
    });
}

/// Lines that make no sense are left out. Taken is a file without them.
#[test]
fn known_peers_are_written_as_they_were_read() {
    feed_text(
        corpus!("peers"),
        "((127\\.0\\.0\\.1|\\[::1\\]):[0-9]{0,6} [0-9a-f]{0,17} [a-z #]{0,8}\n){0,4}",
        |text| {
            let (mut one, mut two) = (Peers::default(), Peers::default());
            let bad = one.load_text(text);
            assert_eq!(two.load_text(&one.to_text()), 0);
            assert_eq!(two.to_text(), one.to_text());
            bad == 0
        },
    );
}
