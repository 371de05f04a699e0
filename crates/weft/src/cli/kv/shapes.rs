//! What `weft kv` prints: stable JSON shapes, and their text for people.

use serde::Serialize;
use weft_client::kv::{DeleteResponse, GetResponse, KeyValue, PutResponse, TxnResponse, TxnResult};
use weft_client::watch;

use crate::output;

/// A key-value. Bytes that are not UTF-8 come as `key_hex` and `value_hex` instead.
#[derive(Debug, Default, Serialize)]
pub(super) struct Pair {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_hex: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_hex: Option<String>,
    create_revision: i64,
    mod_revision: i64,
    version: i64,
    /// Hex; empty if none.
    lease: String,
}

impl From<&KeyValue> for Pair {
    fn from(kv: &KeyValue) -> Self {
        let (key, key_hex) = text_or_hex(&kv.key);
        let (value, value_hex) = text_or_hex(&kv.value);
        Self {
            key,
            key_hex,
            value,
            value_hex,
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            lease: lease(kv.lease),
        }
    }
}

fn text_or_hex(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect())),
    }
}

fn lease(id: i64) -> String {
    if id == 0 { String::new() } else { format!("{id:x}") }
}

#[derive(Debug, Serialize)]
pub(super) struct Get {
    revision: i64,
    count: i64,
    more: bool,
    kvs: Vec<Pair>,
}

impl From<&GetResponse> for Get {
    fn from(answer: &GetResponse) -> Self {
        Self {
            revision: answer.revision,
            count: answer.count,
            more: answer.more,
            kvs: answer.kvs.iter().map(Pair::from).collect(),
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Put {
    revision: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_kv: Option<Pair>,
}

impl From<&PutResponse> for Put {
    fn from(answer: &PutResponse) -> Self {
        Self { revision: answer.revision, prev_kv: answer.prev_kv.as_ref().map(Pair::from) }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Delete {
    revision: i64,
    deleted: i64,
    prev_kvs: Vec<Pair>,
}

impl From<&DeleteResponse> for Delete {
    fn from(answer: &DeleteResponse) -> Self {
        Self {
            revision: answer.revision,
            deleted: answer.deleted,
            prev_kvs: answer.prev_kvs.iter().map(Pair::from).collect(),
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Event {
    /// `put` or `delete`.
    r#type: &'static str,
    kv: Pair,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_kv: Option<Pair>,
}

impl From<&watch::Event> for Event {
    fn from(event: &watch::Event) -> Self {
        Self {
            r#type: kind(event.kind),
            kv: Pair::from(&event.kv),
            prev_kv: event.prev_kv.as_ref().map(Pair::from),
        }
    }
}

fn kind(kind: watch::EventKind) -> &'static str {
    match kind {
        watch::EventKind::Put => "put",
        watch::EventKind::Delete => "delete",
    }
}

/// Results in the order of the operations; each has one of the fields.
#[derive(Debug, Serialize)]
pub(super) struct Txn {
    succeeded: bool,
    revision: i64,
    results: Vec<OpResult>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum OpResult {
    Get(Get),
    Put(Put),
    Delete(Delete),
}

impl From<&TxnResponse> for Txn {
    fn from(answer: &TxnResponse) -> Self {
        let results = answer.results.iter().map(|result| match result {
            TxnResult::Get(answer) => OpResult::Get(Get::from(answer)),
            TxnResult::Put(answer) => OpResult::Put(Put::from(answer)),
            TxnResult::Delete(answer) => OpResult::Delete(Delete::from(answer)),
        });
        Self { succeeded: answer.succeeded, revision: answer.revision, results: results.collect() }
    }
}

/// Key-values for people.
pub(super) fn table(kvs: &[KeyValue], keys_only: bool) -> String {
    let empty = "no keys";
    if keys_only {
        return output::table(
            ["KEY", "REVISION", "VERSION", "LEASE"],
            kvs.iter().map(|kv| {
                [output::text(&kv.key), kv.mod_revision.to_string(), kv.version.to_string(), lease(kv.lease)]
            }),
            empty,
        );
    }
    output::table(
        ["KEY", "VALUE", "REVISION", "VERSION", "LEASE"],
        kvs.iter().map(|kv| {
            let (key, value) = (output::text(&kv.key), output::text(&kv.value));
            [key, value, kv.mod_revision.to_string(), kv.version.to_string(), lease(kv.lease)]
        }),
        empty,
    )
}

/// One change for people.
pub(super) fn event_line(event: &watch::Event) -> String {
    let key = output::text(&event.kv.key);
    let value = match event.kind {
        watch::EventKind::Put => format!(" = {}", output::text(&event.kv.value)),
        watch::EventKind::Delete => String::new(),
    };
    let prev = event.prev_kv.as_ref();
    let prev = prev.map(|kv| format!("  (was {})", output::text(&kv.value))).unwrap_or_default();
    format!("{:6} {}  {key}{value}{prev}\n", kind(event.kind), event.kv.mod_revision)
}

/// A transaction's answer for people.
pub(super) fn txn_text(answer: &TxnResponse) -> String {
    let branch =
        if answer.succeeded { "success: all compares held" } else { "failure: a compare did not hold" };
    let mut text = format!("{branch} (revision {})\n", answer.revision);
    for result in &answer.results {
        match result {
            TxnResult::Get(answer) => text.push_str(&table(&answer.kvs, false)),
            TxnResult::Put(_) => text.push_str("put ok\n"),
            TxnResult::Delete(answer) => text.push_str(&format!("{} deleted\n", answer.deleted)),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(key: &'static [u8], value: &'static [u8]) -> KeyValue {
        KeyValue {
            key: key.into(),
            value: value.into(),
            create_revision: 2,
            mod_revision: 3,
            version: 2,
            lease: 255,
        }
    }

    #[test]
    fn json_field_names_are_stable() {
        let answer = GetResponse { revision: 9, kvs: vec![kv(b"a", b"1")], count: 1, more: false };
        assert_eq!(
            serde_json::to_value(Get::from(&answer)).unwrap(),
            serde_json::json!({"revision": 9, "count": 1, "more": false, "kvs": [{
                "key": "a", "value": "1", "create_revision": 2, "mod_revision": 3, "version": 2, "lease": "ff",
            }]})
        );
        let txn = TxnResponse { succeeded: true, revision: 9, results: vec![TxnResult::Get(answer)] };
        let json = serde_json::to_value(Txn::from(&txn)).unwrap();
        assert_eq!(json["results"][0]["get"]["kvs"][0]["key"], "a");
    }

    #[test]
    fn bytes_that_are_no_text_come_as_hex() {
        let json = serde_json::to_value(Pair::from(&kv(b"a", b"\xff\x00"))).unwrap();
        assert_eq!(json["value_hex"], "ff00");
        assert!(json.get("value").is_none());
    }

    #[test]
    fn an_event_is_one_line() {
        let event =
            watch::Event { kind: watch::EventKind::Put, kv: kv(b"a", b"1"), prev_kv: Some(kv(b"a", b"0")) };
        assert_eq!(event_line(&event), "put    3  a = 1  (was 0)\n");
        assert_eq!(serde_json::to_value(Event::from(&event)).unwrap()["type"], "put");
    }
}
