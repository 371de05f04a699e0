//! The kinds of answers on a watch stream.

use std::sync::Arc;

use prost::Message;
use tonic::Status;
use weft_state::command::{Event, Revision};
use weft_xds_proto::etcdserverpb as pb;

use super::NO_WATCH_ID;
use crate::api::etcd::{convert, status};

type Header = Option<pb::ResponseHeader>;

/// The watcher is open; its events follow.
pub fn created(header: Header, watch_id: i64) -> pb::WatchResponse {
    pb::WatchResponse { header, watch_id, created: true, ..Default::default() }
}

/// The watcher was never opened.
pub fn refused(header: Header, cancel_reason: String) -> pb::WatchResponse {
    pb::WatchResponse {
        header,
        watch_id: NO_WATCH_ID,
        created: true,
        canceled: true,
        cancel_reason,
        ..Default::default()
    }
}

/// The client asked for it.
pub fn canceled(header: Header, watch_id: i64) -> pb::WatchResponse {
    pb::WatchResponse { header, watch_id, canceled: true, ..Default::default() }
}

/// The next event in order is gone; a new watcher may start from `oldest`.
pub fn compacted(header: Header, watch_id: i64, oldest: Revision) -> pb::WatchResponse {
    pb::WatchResponse {
        header,
        watch_id,
        canceled: true,
        compact_revision: oldest,
        cancel_reason: status::COMPACTED.to_owned(),
        ..Default::default()
    }
}

/// The caller may not watch this range any more; nothing of what came after that was sent.
pub fn forbidden(header: Header, watch_id: i64, reason: &Status) -> pb::WatchResponse {
    let cancel_reason = reason.message().to_owned();
    pb::WatchResponse { header, watch_id, canceled: true, cancel_reason, ..Default::default() }
}

/// Everything up to the header's revision has been sent.
pub fn progress(header: Header, watch_id: i64) -> pb::WatchResponse {
    pb::WatchResponse { header, watch_id, ..Default::default() }
}

/// Events in one answer, or in several of at most `fragment_bytes` (but at least one event) of which all
/// but the last say that more belongs to them.
pub fn events(
    header: Header,
    watch_id: i64,
    events: &[Arc<Event>],
    prev_kv: bool,
    fragment_bytes: Option<usize>,
) -> Vec<pb::WatchResponse> {
    let empty = || pb::WatchResponse { header, watch_id, ..Default::default() };
    let mut answers = vec![empty()];
    let mut bytes = 0;
    for event in events {
        let event = convert::event(event, prev_kv);
        if let Some(limit) = fragment_bytes {
            let more = event.encoded_len();
            if bytes > 0 && bytes + more > limit {
                answers.push(empty());
                bytes = 0;
            }
            bytes += more;
        }
        if let Some(last) = answers.last_mut() {
            last.events.push(event);
        }
    }
    let last = answers.len() - 1;
    for answer in &mut answers[..last] {
        answer.fragment = true;
    }
    answers
}

#[cfg(test)]
mod tests {
    use weft_state::command::{EventKind, KeyValue};

    use super::*;

    fn event(key: &'static str) -> Arc<Event> {
        let kv = KeyValue { key: key.into(), value: vec![b'v'; 100].into(), ..KeyValue::default() };
        Arc::new(Event { kind: EventKind::Put, kv: kv.clone(), prev_kv: Some(kv) })
    }

    #[test]
    fn one_answer_unless_fragments_were_asked_for() {
        let all = [event("a"), event("b"), event("c")];
        let whole = events(None, 7, &all, false, None);
        assert_eq!(whole.len(), 1);
        assert_eq!((whole[0].watch_id, whole[0].events.len(), whole[0].fragment), (7, 3, false));
    }

    #[test]
    fn all_fragments_but_the_last_say_so_and_lose_nothing() {
        let all = [event("a"), event("b"), event("c"), event("d"), event("e")];
        let parts = events(None, 0, &all, false, Some(250));
        let flags: Vec<bool> = parts.iter().map(|part| part.fragment).collect();
        assert_eq!(flags, [true, true, false]);
        let keys: Vec<_> =
            parts.iter().flat_map(|part| &part.events).map(|e| e.kv.as_ref().unwrap().key.clone()).collect();
        assert_eq!(keys, ["a", "b", "c", "d", "e"]);
    }

    #[test]
    fn an_event_larger_than_a_fragment_is_sent_alone() {
        let parts = events(None, 0, &[event("a"), event("b")], false, Some(10));
        assert_eq!(parts.iter().map(|part| part.events.len()).collect::<Vec<_>>(), [1, 1]);
    }

    /// W12
    #[test]
    fn previous_value_only_for_those_who_asked() {
        assert!(events(None, 0, &[event("a")], false, None)[0].events[0].prev_kv.is_none());
        assert!(events(None, 0, &[event("a")], true, None)[0].events[0].prev_kv.is_some());
    }
}
