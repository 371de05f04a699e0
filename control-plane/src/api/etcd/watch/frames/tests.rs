use bytes::Buf;
use proptest::prelude::*;
use weft_state::command::{EventKind, KeyValue};

use super::*;

fn key_value() -> impl Strategy<Value = KeyValue> {
    let bytes = || prop_oneof![8 => 0..40_usize, 1 => 3_000..70_000_usize];
    let number = || prop_oneof![Just(0_i64), 1..300_i64, any::<i64>()];
    (bytes(), bytes(), number(), number(), number(), number()).prop_map(
        |(key, value, create_revision, mod_revision, version, lease)| KeyValue {
            key: vec![b'k'; key].into(),
            value: vec![b'v'; value].into(),
            create_revision,
            mod_revision,
            version,
            lease,
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    let kind = prop_oneof![Just(EventKind::Put), Just(EventKind::Delete)];
    (kind, key_value(), prop::option::of(key_value())).prop_map(|(kind, kv, prev_kv)| Event {
        kind,
        kv,
        prev_kv,
    })
}

/// A message as any etcd client builds it: what it says, not how it was made.
fn plain(header: pb::ResponseHeader, watch_id: i64, events: &[Event], fragment: bool) -> pb::WatchResponse {
    let events = events.iter().map(convert::event).collect();
    pb::WatchResponse { header: Some(header), watch_id, fragment, events, ..Default::default() }
}

fn drain(frames: &mut Frames) -> (Vec<Bytes>, Bytes) {
    let pieces: Vec<Bytes> = std::iter::from_fn(|| frames.pop()).collect();
    let whole = pieces.concat().into();
    (pieces, whole)
}

proptest! {
    /// Design §2.7: shared bytes are nothing that a client could tell from bytes of its own.
    #[test]
    fn answers_of_shared_events_are_the_plain_encoding_byte_for_byte(
        answers in prop::collection::vec(
            (any::<(u64, u64, i64, u64)>(), any::<i64>(), prop::collection::vec(event(), 1..6), any::<bool>()),
            1..6,
        )
    ) {
        let mut frames = Frames::default();
        let mut expected = Vec::new();
        for ((cluster_id, member_id, revision, raft_term), watch_id, events, fragment) in &answers {
            let header = pb::ResponseHeader {
                cluster_id: *cluster_id, member_id: *member_id, revision: *revision, raft_term: *raft_term,
            };
            let shared: Vec<_> = events.iter().map(|event| Arc::new(SharedEvent::from(event.clone()))).collect();
            frames.events(&encode_header(&header), *watch_id, &shared, *fragment);
            expected.push(plain(header, *watch_id, events, *fragment));
        }
        let (pieces, mut sent) = drain(&mut frames);
        prop_assert!(pieces.iter().all(|piece| !piece.is_empty()));
        prop_assert_eq!(frames.len(), 0);
        for answer in expected {
            prop_assert_eq!(sent.get_u8(), 0, "not compressed");
            let length = sent.get_u32() as usize;
            let message = sent.split_to(length);
            prop_assert_eq!(&message, &answer.encode_to_vec());
            prop_assert_eq!(pb::WatchResponse::decode(message).unwrap(), answer);
        }
        prop_assert!(sent.is_empty());
    }
}

fn shared(value_bytes: usize) -> Arc<SharedEvent> {
    let kv = KeyValue { key: "k".into(), value: vec![7; value_bytes].into(), ..KeyValue::default() };
    Arc::new(Event { kind: EventKind::Put, kv, prev_kv: None }.into())
}

#[test]
fn large_events_are_sent_to_all_watchers_from_the_same_bytes() {
    let event = shared(10 * SHARED_BYTES_MIN);
    for watch_id in 0..3 {
        let mut frames = Frames::default();
        frames.events(&[], watch_id, std::slice::from_ref(&event), false);
        let (pieces, _) = drain(&mut frames);
        assert_eq!(pieces.last().unwrap().as_ptr(), encoded(&event).as_ptr(), "not a copy");
    }
}

#[test]
fn small_answers_share_a_piece_and_large_ones_come_in_pieces() {
    let mut frames = Frames::default();
    for watch_id in 0..50 {
        frames.events(&[], watch_id, &[shared(10)], false);
    }
    frames.message(&pb::WatchResponse { created: true, ..Default::default() });
    assert_eq!(drain(&mut frames).0.len(), 1);

    frames.events(&[], 0, &vec![shared(1_000); 200], false);
    let (pieces, whole) = drain(&mut frames);
    assert!(whole.len() > 200_000);
    assert!(pieces.iter().all(|piece| piece.len() < PIECE_BYTES + SHARED_BYTES_MIN));
}

#[test]
fn nothing_is_kept_of_what_was_sent() {
    let mut frames = Frames::default();
    frames.events(&[], 0, &vec![shared(1_000); 20], false);
    drain(&mut frames);
    assert_eq!(frames.piece.capacity(), 0);
}
