//! Errors about single resources, in both directions: a proxy's rejection (NACK) and a server's "no such resource".
//!
//! xDS has one status for a whole response. Weft puts one `ResourceError` a resource in its details, so that the
//! other resources of the response count as applied; a client that does not know this still reads the message.

use envoy_types::pb::envoy::service::discovery::v3::{ResourceError, ResourceName};
use envoy_types::pb::google::rpc::Status;
use envoy_types::util::pack_any;
use prost::{Message, Name};
use tonic::Code;

/// Longest text of one error, in bytes: enough for a name and a reason, and bounded whatever a resource holds.
pub const REASON_BYTES_MAX: usize = 1024;

/// Error about one resource.
pub fn resource_error(name: &str, code: Code, reason: &str) -> ResourceError {
    ResourceError {
        resource_name: Some(ResourceName { name: name.to_owned(), ..ResourceName::default() }),
        error_detail: Some(Status { code: code as i32, message: shortened(reason), details: Vec::new() }),
    }
}

/// The `error_detail` that rejects the named resources, each for its reason.
pub fn rejection(rejected: &[(String, String)]) -> Status {
    let message = rejected.iter().map(|(_, reason)| shortened(reason)).collect::<Vec<_>>().join("; ");
    Status {
        code: Code::InvalidArgument as i32,
        message,
        details: rejected
            .iter()
            .map(|(name, reason)| pack_any(resource_error(name, Code::InvalidArgument, reason)))
            .collect(),
    }
}

/// Which resources an `error_detail` rejects, with reasons; empty if it does not say.
pub fn rejected(status: &Status) -> Vec<(String, String)> {
    status
        .details
        .iter()
        .filter(|any| any.type_url == ResourceError::type_url())
        .filter_map(|any| ResourceError::decode(any.value.as_slice()).ok())
        .map(|e| {
            (e.resource_name.unwrap_or_default().name, shortened(&e.error_detail.unwrap_or_default().message))
        })
        .collect()
}

/// At most [`REASON_BYTES_MAX`] bytes of a text that came from outside.
pub fn shortened(text: &str) -> String {
    let mut end = text.len().min(REASON_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejection_names_each_resource_with_its_reason() {
        let bad = vec![("a".to_owned(), "no type".to_owned()), ("b".to_owned(), "no port".to_owned())];
        let status = rejection(&bad);
        assert_eq!(status.message, "no type; no port");
        assert_eq!(rejected(&status), bad);
    }

    #[test]
    fn a_status_of_another_client_names_none() {
        assert_eq!(rejected(&Status { code: 3, message: "bad".to_owned(), details: vec![] }), []);
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let text = "é".repeat(REASON_BYTES_MAX);
        assert_eq!(shortened(&text).len(), REASON_BYTES_MAX);
        assert_eq!(shortened(&format!("x{text}")).len(), REASON_BYTES_MAX - 1);
    }
}
