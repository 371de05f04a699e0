//! Between JSON and protobuf, by the descriptors that the build made of the `.proto` files.

use std::sync::LazyLock;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, MethodDescriptor, SerializeOptions,
};
use tonic::Code;
use weft_xds_proto::CLIENT_API_DESCRIPTORS;

use super::refusal::Refusal;

/// Made when the first request comes: most servers never see one.
static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(CLIENT_API_DESCRIPTORS).expect("the build made them of files that it compiled")
});

/// As etcd 3.5: a field that does not exist is a mistake, and a mistake is told.
const READ: DeserializeOptions = DeserializeOptions::new().deny_unknown_fields(true);

/// Fields by the names of the `.proto` file, those with default values left out, 64-bit integers as text.
const WRITE: SerializeOptions = SerializeOptions::new().use_proto_field_name(true).skip_default_fields(true);

/// Bytes in front of a gRPC message: compressed or not, and the length.
pub(super) const FRAME_HEAD: usize = 5;

/// A method by `package.Service/Method`; there must be one.
pub(super) fn method(name: &str) -> MethodDescriptor {
    let found = name.split_once('/').and_then(|(service, method)| {
        POOL.get_service_by_name(service)?.methods().find(|known| known.name() == method)
    });
    found.expect("a test goes through all names that are asked for")
}

/// All methods of a package, as [`method`] takes them.
#[cfg(test)]
pub(super) fn methods(package: &str) -> impl Iterator<Item = String> {
    let services = POOL.services().filter(move |service| service.package_name() == package);
    services.flat_map(|service| {
        let of = service.full_name().to_owned();
        service.methods().map(move |method| format!("{of}/{}", method.name())).collect::<Vec<_>>()
    })
}

/// One JSON value as a gRPC message with its frame.
pub(super) fn frame(kind: &MessageDescriptor, json: &[u8]) -> Result<Bytes, Refusal> {
    let refused = |error: serde_json::Error| Refusal::invalid(format!("{}: {error}", kind.name()));
    let mut reader = serde_json::Deserializer::from_slice(json);
    let message =
        DynamicMessage::deserialize_with_options(kind.clone(), &mut reader, &READ).map_err(refused)?;
    reader.end().map_err(refused)?;
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(FRAME_HEAD + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).map_err(|_| Refusal::invalid("the request is too large"))?);
    message.encode(&mut frame).map_err(|error| Refusal::invalid(error.to_string()))?;
    Ok(frame.freeze())
}

/// The message without any field set, with its frame.
pub(super) fn empty_frame() -> Bytes {
    Bytes::from_static(&[0; FRAME_HEAD])
}

/// A message, without frame, as JSON.
pub(super) fn json(kind: MessageDescriptor, message: Bytes) -> Result<Vec<u8>, Refusal> {
    let mut text = Vec::with_capacity(message.len() * 2);
    write(kind, message, &mut text)?;
    Ok(text)
}

/// As [`json`], in an object as a line of a stream.
pub(super) fn line(kind: MessageDescriptor, message: Bytes) -> Result<Vec<u8>, Refusal> {
    let mut text = Vec::with_capacity(message.len() * 2);
    text.extend_from_slice(b"{\"result\":");
    write(kind, message, &mut text)?;
    text.extend_from_slice(b"}\n");
    Ok(text)
}

fn write(kind: MessageDescriptor, message: Bytes, text: &mut Vec<u8>) -> Result<(), Refusal> {
    let internal =
        |what: String| Refusal::new(Code::Internal, format!("weft: an answer that is no JSON: {what}"));
    let message = DynamicMessage::decode(kind, message).map_err(|error| internal(error.to_string()))?;
    let mut writer = serde_json::Serializer::new(text);
    message.serialize_with_options(&mut writer, &WRITE).map_err(|error| internal(error.to_string()))
}

#[cfg(test)]
mod tests {
    use weft_xds_proto::etcdserverpb as pb;

    use super::*;

    fn read<M: Message + Default>(method_name: &str, json: &str) -> Result<M, String> {
        let frame =
            frame(&method(method_name).input(), json.as_bytes()).map_err(|error| format!("{error:?}"))?;
        Ok(M::decode(&frame[FRAME_HEAD..]).expect("is one"))
    }

    fn range(json: &str) -> Result<pb::RangeRequest, String> {
        read("etcdserverpb.KV/Range", json)
    }

    #[test]
    fn numbers_enums_and_names_of_fields_are_read_in_both_forms() {
        let expected = pb::RangeRequest {
            key: "a".into(),
            range_end: "b".into(),
            limit: 9_007_199_254_740_993,
            sort_order: 2,
            serializable: true,
            ..Default::default()
        };
        for json in [
            r#"{"key":"YQ==","range_end":"Yg==","limit":"9007199254740993","sort_order":"DESCEND","serializable":true}"#,
            r#"{"key":"YQ","rangeEnd":"Yg==","limit":9007199254740993,"sortOrder":2,"serializable":true}"#,
        ] {
            assert_eq!(range(json), Ok(expected.clone()), "{json}");
        }
        assert_eq!(range("{}"), Ok(pb::RangeRequest::default()));
        let granted: pb::LeaseGrantRequest =
            read("etcdserverpb.Lease/LeaseGrant", r#"{"TTL":5,"ID":"7"}"#).expect("reads");
        assert_eq!((granted.ttl, granted.id), (5, 7));
    }

    #[test]
    fn what_is_not_the_message_is_refused_with_place_and_name() {
        for (json, expected) in [
            (r#"{"kye":"YQ=="}"#, "kye"),
            (r#"{"key":"*"}"#, "column"),
            (r#"{"limit":"1x"}"#, "invalid digit"),
            (r#"{"limit":1.5}"#, "integer"),
            (r#"{"limit":"9223372036854775808"}"#, "too large"),
            (r#"{"sort_order":"UPWARDS"}"#, "UPWARDS"),
            (r#"{"serializable":"yes"}"#, "boolean"),
            (r#"{"key":"YQ=="} {}"#, "trailing characters"),
            (r#"{"key":"YQ=="#, "EOF"),
            (r#"[]"#, "invalid type"),
            ("\u{0}", "expected value"),
        ] {
            let refused = range(json).expect_err(json);
            assert!(refused.contains(expected) && refused.contains("RangeRequest"), "{json}: {refused}");
        }
    }

    #[test]
    fn a_transaction_that_is_nested_without_end_is_refused_and_not_overflowed() {
        let depth = 10_000;
        let json = format!("{}{}", r#"{"success":[{"request_txn":"#.repeat(depth), "}]}".repeat(depth));
        let refused = read::<pb::TxnRequest>("etcdserverpb.KV/Txn", &json).expect_err("too deep");
        assert!(refused.contains("recursion limit"), "{refused}");
    }

    #[test]
    fn an_answer_has_64_bit_numbers_as_text_bytes_in_base64_and_no_defaults() {
        let answer = pb::LeaseTimeToLiveResponse {
            header: Some(pb::ResponseHeader { cluster_id: u64::MAX, revision: 3, ..Default::default() }),
            id: 7,
            ttl: -1,
            granted_ttl: 0,
            keys: vec!["a".into()],
        };
        let kind = method("etcdserverpb.Lease/LeaseTimeToLive").output();
        let text = json(kind, answer.encode_to_vec().into()).expect("writes");
        assert_eq!(
            String::from_utf8(text).expect("text"),
            r#"{"header":{"cluster_id":"18446744073709551615","revision":"3"},"ID":"7","TTL":"-1","keys":["YQ=="]}"#
        );
        let event = r#"{"result":{"created":true}}"#.to_owned() + "\n";
        let created = pb::WatchResponse { created: true, ..Default::default() };
        let text = line(method("etcdserverpb.Watch/Watch").output(), created.encode_to_vec().into());
        assert_eq!(text.expect("writes"), event.as_bytes());
    }
}
