//! What comes from another server or from the disk is refused, never believed and never a panic.

use proptest::{collection::vec, prelude::*};
use weft_state::command::{Command, Put};

use super::*;
use crate::raft::types::{check_command, encode_command};

/// Entries behind `first`, each with a command or none, and once a membership.
fn entries(first: LogId, kinds: &[u8]) -> Vec<Entry> {
    let index = first.index();
    let entry = |(at, kind): (u64, &u8)| {
        let payload = match kind % 3 {
            0 => EntryPayload::Blank,
            1 => EntryPayload::Normal(Batch::join(&[command(*kind)])),
            _ => {
                let name = format!("s{kind}");
                let peer = Peer { name, addr: ([127, 0, 0, 1], 2380).into() };
                let voters: BTreeSet<u64> = [u64::from(*kind)].into();
                let nodes: BTreeMap<u64, Peer> = [(u64::from(*kind), peer)].into();
                EntryPayload::Membership(Membership::new(vec![voters], nodes).expect("a voter that is known"))
            }
        };
        Entry::new(log_id(7, at), payload)
    };
    (index + 1..).zip(kinds).map(entry).collect()
}

fn command(seed: u8) -> Bytes {
    let (key, value) = (vec![seed; 3].into(), vec![seed; 40].into());
    encode_command(&Command::Put(Put { key, value, ..Put::default() }))
}

fn append(kinds: &[u8]) -> AppendEntriesRequest<TypeConfig> {
    let previous = log_id(6, 41);
    AppendEntriesRequest {
        vote: Vote::new_committed(7, 2),
        prev_log_id: Some(previous),
        entries: entries(previous, kinds),
        leader_commit: Some(log_id(6, 40)),
    }
}

/// Every message of a peer, decoded as far as its receiver does.
fn decode_as_everything(bytes: &[u8]) {
    let _ = decode::<Addressed<Append>>("", bytes)
        .and_then(|m| AppendEntriesRequest::<TypeConfig>::try_from(m.message));
    let _ = decode::<Addressed<VoteAsked>>("", bytes).map(|m| VoteRequest::<TypeConfig>::from(m.message));
    let _ = decode::<Addressed<Transfer>>("", bytes)
        .map(|m| TransferLeaderRequest::<TypeConfig>::from(m.message));
    let _ =
        decode::<Addressed<SnapshotOffer>>("", bytes).and_then(|m| SnapshotMeta::try_from(m.message.head));
    let _ = decode::<AppendAnswer>("", bytes).map(AppendEntriesResponse::<TypeConfig>::from);
    let _ = decode::<StreamAnswer>("", bytes).map(StreamAppendResult::<TypeConfig>::from);
    let _ = decode::<VoteAnswer>("", bytes).map(VoteResponse::<TypeConfig>::from);
    let _ = entry_from_wal(&wal::Entry {
        position: wal::LogPosition { term: 1, index: 1 },
        payload: bytes.to_vec().into(),
    });
    let _ = check_command(bytes);
    let _ = Batch::from_bytes(bytes.to_vec().into()).commands();
}

proptest! {
    #[test]
    fn bytes_of_any_kind_are_refused_or_read_but_never_a_panic(bytes in vec(any::<u8>(), 0..400)) {
        decode_as_everything(&bytes);
    }

    #[test]
    fn a_message_with_bytes_changed_is_refused_or_read_but_never_a_panic(
        kinds in vec(any::<u8>(), 0..6),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let message = Addressed { to: 1, from: 2, message: Append::from(&append(&kinds)) };
        let mut bytes = encode(&message).to_vec();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        decode_as_everything(&bytes);
    }

    #[test]
    fn entries_arrive_as_they_were_sent_and_not_in_part(kinds in vec(any::<u8>(), 0..6)) {
        let sent = append(&kinds);
        let bytes = encode(&Append::from(&sent));
        let arrived = AppendEntriesRequest::try_from(decode::<Append>("append", &bytes).expect("decodes"));
        let arrived = arrived.expect("entries that follow each other");
        prop_assert_eq!((&arrived.vote, &arrived.prev_log_id), (&sent.vote, &sent.prev_log_id));
        prop_assert_eq!((&arrived.entries, &arrived.leader_commit), (&sent.entries, &sent.leader_commit));
        for cut in 0..bytes.len() {
            prop_assert!(decode::<Append>("append", &bytes[..cut]).is_err(), "cut at {}", cut);
        }
    }
}

/// openraft relies on entries without a gap: a malformed append can damage a follower's log (openraft #1795).
#[test]
fn entries_that_do_not_follow_each_other_are_refused() {
    let mut sent = append(&[1, 0, 1]);
    sent.entries.remove(1);
    let refused = AppendEntriesRequest::<TypeConfig>::try_from(Append::from(&sent));
    assert_eq!(refused.unwrap_err().to_string(), "append cannot be decoded: entry 44 where 43 must follow");
}

/// A length that lies must not take memory: nothing is reserved for what is not there.
#[test]
fn a_length_beyond_the_bytes_is_refused_without_room_for_it() {
    let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    assert!(Batch::from_bytes(huge.to_vec().into()).commands().is_err());
    decode_as_everything(&huge);
}

#[test]
fn a_forwarded_command_is_whole_alone_and_of_bounded_length() {
    let good = command(9);
    assert_eq!(check_command(&good), Ok(()));
    assert!(check_command(&good[..good.len() - 1]).is_err_and(|e| e.contains("cannot be decoded")));
    let more = [&good[..], b"x"].concat();
    assert!(check_command(&more).is_err_and(|e| e.contains("followed by 1 bytes")));
    let long = vec![0; crate::raft::types::COMMAND_BYTES_MAX + 1];
    assert!(check_command(&long).is_err_and(|e| e.contains("exceeds the limit")));
}
