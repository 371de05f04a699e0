use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::command::Put;

fn put(value: impl Into<Bytes>) -> Command {
    Command::Put(Put { key: "k".into(), value: value.into(), ..Put::default() })
}

fn id(client: u64, seq: u64, after: u64) -> RequestId {
    RequestId { client, seq, after, answered: 0 }
}

const DONE: Response = Response::Put { prev_kv: None };

#[test]
fn a_repeated_request_is_answered_as_it_was() {
    let mut requests = Requests::default();
    assert_eq!(requests.look_up(id(1, 1, 0), &put("a")), Ok(Seen::New));
    requests.keep(10, id(1, 1, 0), &put("a"), 5, &DONE);
    assert_eq!(requests.look_up(id(1, 1, 0), &put("a")), Ok(Seen::Before(5, DONE)));
    assert_eq!(requests.look_up(id(1, 2, 0), &put("a")), Ok(Seen::New));
    assert_eq!(requests.look_up(id(2, 1, 0), &put("a")), Ok(Seen::New));
}

#[test]
fn another_command_under_the_same_name_is_refused() {
    let mut requests = Requests::default();
    requests.keep(10, id(1, 1, 0), &put("a"), 5, &DONE);
    let refused = StoreError::RequestReused { client: 1, seq: 1 };
    assert_eq!(requests.look_up(id(1, 1, 0), &put("b")), Err(refused));
}

#[test]
fn calls_of_one_client_may_overtake_each_other_within_the_window_and_not_beyond() {
    let mut requests = Requests::default();
    for seq in 2..WINDOW as u64 + 3 {
        requests.keep(seq, id(1, seq, 0), &put("a"), 5, &DONE);
    }
    assert_eq!(requests.look_up(id(1, 2, 0), &put("a")), Err(StoreError::TooLateToKnow { known_from: 0 }));
    assert_eq!(requests.look_up(id(1, 1, 0), &put("a")), Err(StoreError::TooLateToKnow { known_from: 0 }));
    assert_eq!(requests.look_up(id(1, 3, 0), &put("a")), Ok(Seen::Before(5, DONE)));
}

#[test]
fn what_a_client_was_answered_is_dropped_and_too_late_from_then_on() {
    let mut requests = Requests::default();
    for seq in [1, 2, 4] {
        requests.keep(seq, id(1, seq, 0), &put("a"), 5, &DONE);
    }
    // Number 3 was refused, and the client was told.
    requests.keep(9, RequestId { answered: 5, ..id(1, 6, 0) }, &put("a"), 6, &DONE);
    assert_eq!(requests.bytes(), CLIENT_BYTES + ANSWER_BYTES, "only the last answer is kept");
    for seq in 1..5 {
        let late = requests.look_up(id(1, seq, 0), &put("a"));
        assert_eq!(late, Err(StoreError::TooLateToKnow { known_from: 0 }), "{seq}");
    }
    assert_eq!(requests.look_up(id(1, 5, 0), &put("a")), Ok(Seen::New));
    assert_eq!(requests.look_up(id(1, 6, 0), &put("a")), Ok(Seen::Before(6, DONE)));
}

#[test]
fn a_client_that_says_what_was_answered_may_have_many_requests_under_way() {
    let mut requests = Requests::default();
    requests.keep(1, id(1, 1, 0), &put("a"), 5, &DONE);
    for seq in 2..2 * WINDOW as u64 {
        requests.keep(seq, RequestId { answered: 2, ..id(1, seq, 0) }, &put("a"), 5, &DONE);
    }
    assert_eq!(requests.look_up(id(1, 2, 0), &put("a")), Ok(Seen::Before(5, DONE)));
}

#[test]
fn a_large_answer_is_not_kept_and_a_repetition_hears_that_it_was_done() {
    let mut requests = Requests::default();
    let kv = KeyValue { value: vec![0; ANSWER_BYTES_MAX].into(), ..KeyValue::default() };
    requests.keep(10, id(1, 1, 0), &put("a"), 5, &Response::Put { prev_kv: Some(kv) });
    let refused = StoreError::AnswerNotKept { revision: 5 };
    assert_eq!(requests.look_up(id(1, 1, 0), &put("a")), Err(refused));
    assert!(requests.bytes() < ANSWER_BYTES_MAX);
}

#[test]
fn the_client_that_was_idle_for_longest_is_forgotten_and_its_late_repetition_is_refused() {
    let room = 3 * (CLIENT_BYTES + 2 * ANSWER_BYTES);
    let mut requests = Requests::with_room(room);
    for (index, client) in [(1, 1), (2, 2), (3, 3), (4, 1), (5, 2), (6, 3)] {
        requests.keep(index, id(client, index, 0), &put("a"), 5, &DONE);
    }
    assert_eq!(requests.len(), 3);
    requests.keep(7, id(4, 1, 0), &put("a"), 5, &DONE);
    assert_eq!(requests.len(), 3, "client 1 had to go");
    let too_late = StoreError::TooLateToKnow { known_from: 4 };
    assert_eq!(requests.look_up(id(1, 4, 0), &put("a")), Err(too_late.clone()));
    assert_eq!(requests.look_up(id(1, 4, 3), &put("a")), Err(too_late));
    // Who has never sent it before can know how far the log is, and is taken in.
    assert_eq!(requests.look_up(id(9, 1, 4), &put("a")), Ok(Seen::New));
    assert_eq!(requests.look_up(id(2, 5, 0), &put("a")), Ok(Seen::Before(5, DONE)));
}

#[test]
fn an_image_gives_the_same_table() {
    let mut requests = Requests::with_room(4096);
    for at in 1..100 {
        requests.keep(at, id(at % 7, at, 0), &put("a"), at as i64, &DONE);
    }
    let mut read = Requests::begin_load(requests.head());
    for (id, client) in requests.encoded_from(Bound::Unbounded) {
        read.load(id, &client).expect("fits");
    }
    assert_eq!(read.digest(), requests.digest());
    assert_eq!(read.bytes(), requests.bytes());
    assert_eq!((&read.by_use, &read.clients), (&requests.by_use, &requests.clients));
    assert_eq!(
        read.load(0, &[]),
        Err("unreadable client of requests: Hit the end of buffer, expected more data".into())
    );
    let (id, client) = requests.encoded_from(Bound::Unbounded).next().expect("has clients");
    assert_eq!(read.load(id, &client), Err("clients of requests out of order".into()));
}

proptest! {
    /// P14, A06. Requests in any order, each sent up to several times, with room for few clients: whatever the table says,
    /// none is carried out twice, and one that is remembered gets its first answer.
    #[test]
    fn no_request_is_carried_out_twice(
        sends in prop::collection::vec((1..6u64, 1..8u64), 1..200),
        room in 1..6usize,
    ) {
        let mut requests = Requests::with_room(room * (CLIENT_BYTES + 2 * ANSWER_BYTES));
        let mut done: BTreeMap<(u64, u64), Revision> = BTreeMap::new();
        let mut first_sent: BTreeMap<(u64, u64), u64> = BTreeMap::new();
        for (index, (client, seq)) in sends.into_iter().enumerate() {
            let index = index as u64 + 1;
            let after = *first_sent.entry((client, seq)).or_insert(index - 1);
            let request = id(client, seq, after);
            match requests.look_up(request, &put("a")) {
                Ok(Seen::New) => {
                    prop_assert!(done.insert((client, seq), index as i64).is_none(), "carried out twice");
                    requests.keep(index, request, &put("a"), index as i64, &DONE);
                }
                Ok(Seen::Before(revision, _)) => prop_assert_eq!(Some(&revision), done.get(&(client, seq))),
                Err(StoreError::TooLateToKnow { .. }) => {}
                Err(other) => prop_assert!(false, "{other}"),
            }
            prop_assert!(requests.bytes() <= room * (CLIENT_BYTES + 2 * ANSWER_BYTES) || requests.len() == 1);
        }
    }
}
