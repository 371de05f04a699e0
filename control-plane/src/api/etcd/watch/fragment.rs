//! The events of one answer, or of several where the client asked for answers of a bounded size.

use std::sync::Arc;

use weft_state::watch::SharedEvent;

use super::frames::encoded;

/// Parts of at most `bytes_max` encoded bytes, but at least one event; one part if there is no bound. All but
/// the last are to say that more belongs to them.
pub fn parts(
    events: &[Arc<SharedEvent>],
    bytes_max: Option<usize>,
) -> impl Iterator<Item = &[Arc<SharedEvent>]> {
    let mut rest = events;
    std::iter::from_fn(move || {
        let whole = rest.len();
        let fits = bytes_max.map_or(whole, |bytes_max| {
            let mut bytes = 0;
            rest.iter()
                .take_while(|event| {
                    bytes += encoded(event).len();
                    bytes <= bytes_max
                })
                .count()
        });
        let (part, after) = rest.split_at(fits.max(1).min(whole));
        rest = after;
        (!part.is_empty()).then_some(part)
    })
}

#[cfg(test)]
mod tests {
    use weft_state::command::{Event, EventKind, KeyValue};

    use super::*;

    fn events(keys: &[&'static str]) -> Vec<Arc<SharedEvent>> {
        let event = |key: &&'static str| {
            let kv = KeyValue { key: (*key).into(), value: vec![b'v'; 100].into(), ..KeyValue::default() };
            Arc::new(Event { kind: EventKind::Put, kv, prev_kv: None }.into())
        };
        keys.iter().map(event).collect()
    }

    fn sizes(events: &[Arc<SharedEvent>], bytes_max: Option<usize>) -> Vec<usize> {
        parts(events, bytes_max).map(<[_]>::len).collect()
    }

    #[test]
    fn one_answer_unless_fragments_were_asked_for() {
        assert_eq!(sizes(&events(&["a", "b", "c"]), None), [3]);
    }

    #[test]
    fn fragments_are_as_large_as_allowed_and_lose_nothing() {
        let all = events(&["a", "b", "c", "d", "e"]);
        assert_eq!(sizes(&all, Some(250)), [2, 2, 1]);
        assert_eq!(
            parts(&all, Some(250)).flatten().map(|e| &e.kv.key[..]).collect::<Vec<_>>(),
            [b"a", b"b", b"c", b"d", b"e"]
        );
        assert!(
            parts(&all, Some(250)).all(|part| part.iter().map(|e| encoded(e).len()).sum::<usize>() <= 250)
        );
    }

    #[test]
    fn an_event_larger_than_a_fragment_is_sent_alone() {
        assert_eq!(sizes(&events(&["a", "b"]), Some(10)), [1, 1]);
    }
}
