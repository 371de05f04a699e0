//! An event that many watchers hold.

use std::{ops::Deref, sync::OnceLock};

use bytes::Bytes;

use crate::command::Event;

/// An event and, once someone has made them, its bytes on the wire: made once, whatever the number of watchers.
///
/// What the wire looks like is the caller's affair. All callers of one process use the same encoding, so the
/// first one's bytes are everyone's.
#[derive(Debug)]
pub struct SharedEvent {
    event: Event,
    encoded: OnceLock<Bytes>,
}

impl SharedEvent {
    /// The bytes of the event; `encode` makes them if nobody has yet.
    pub fn encoded(&self, encode: impl FnOnce(&Event) -> Bytes) -> &Bytes {
        self.encoded.get_or_init(|| encode(&self.event))
    }
}

impl From<Event> for SharedEvent {
    fn from(event: Event) -> Self {
        Self { event, encoded: OnceLock::new() }
    }
}

impl Deref for SharedEvent {
    type Target = Event;

    fn deref(&self) -> &Event {
        &self.event
    }
}

/// By the event; whether it was encoded is not part of it.
impl PartialEq for SharedEvent {
    fn eq(&self, other: &Self) -> bool {
        self.event == other.event
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{EventKind, KeyValue};

    #[test]
    fn an_event_is_encoded_once() {
        let event = SharedEvent::from(Event { kind: EventKind::Put, kv: KeyValue::default(), prev_kv: None });
        let first = event.encoded(|_| Bytes::from_static(b"first")).as_ptr();
        assert_eq!(event.encoded(|_| unreachable!("it was encoded")).as_ptr(), first);
    }
}
