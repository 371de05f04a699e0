//! What an HTTP/2 request may carry by its own rules, and the strict reading of HTTP/1 ([`crate::listener::scanner`])
//! refuses. The next hop may speak HTTP/1, so both ways in have the same limits and forms.
//!
//! Fields of one connection, upper case, control characters, bodies that differ from their length and malformed
//! pseudo fields do not get so far: h2 resets their streams.

use http::header::CONTENT_LENGTH;
use http::request;

use crate::limits::{HEADERS_MAX, URI_BYTES_MAX};
use crate::listener::refusal::Refusal;
use crate::listener::scanner::METHOD_MAX;

/// See the module.
///
/// # Errors
/// The first thing that HTTP/1 would not have let pass.
pub(crate) fn check(head: &request::Parts) -> Result<(), Refusal> {
    if let Some(path) = head.uri.path_and_query() {
        if path.as_str().len() > URI_BYTES_MAX {
            return Err(Refusal::UriTooLong);
        }
        if !path.as_str().bytes().all(|b| (0x21..0x7f).contains(&b)) {
            return Err(Refusal::RequestLine);
        }
    }
    if head.method.as_str().len() > METHOD_MAX {
        return Err(Refusal::RequestLine);
    }
    if head.headers.len() > HEADERS_MAX {
        return Err(Refusal::TooManyHeaders);
    }
    if head.headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some() {
        return Err(Refusal::SeveralLengths);
    }
    if head.headers.contains_key("content_length") || head.headers.contains_key("transfer_encoding") {
        return Err(Refusal::ImitatedFraming);
    }
    Ok(())
}
