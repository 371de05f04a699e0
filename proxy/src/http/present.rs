//! Which of the fields that the proxy knows a head has, found out in one pass. Most heads have few of them, and each look-up
//! in the map costs as much as this pass.

use http::HeaderMap;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Present(u16);

impl Present {
    /// For one hop only (RFC 9110 §7.6.1).
    pub const HOP_BY_HOP: u16 = 1;
    pub const CONNECTION: u16 = 1 << 1;
    pub const TRANSFER_ENCODING: u16 = 1 << 2;
    pub const CONTENT_LENGTH: u16 = 1 << 3;
    pub const EXPECT: u16 = 1 << 4;
    pub const VIA: u16 = 1 << 5;
    /// What earlier hops say of the client.
    pub const FORWARDED: u16 = 1 << 6;
    /// Until when the caller waits.
    pub const DEADLINE: u16 = 1 << 7;

    /// Those of this head.
    pub fn of(headers: &HeaderMap) -> Self {
        Self(headers.keys().fold(0, |all, name| all | of_name(name.as_str())))
    }

    /// Whether there is any of these.
    pub fn any(self, fields: u16) -> bool {
        self.0 & fields != 0
    }
}

fn of_name(name: &str) -> u16 {
    match name {
        "te" | "upgrade" | "keep-alive" | "http2-settings" | "proxy-connection" | "proxy-authorization" => {
            Present::HOP_BY_HOP
        }
        "connection" => Present::HOP_BY_HOP | Present::CONNECTION,
        "transfer-encoding" => Present::HOP_BY_HOP | Present::TRANSFER_ENCODING,
        "content-length" => Present::CONTENT_LENGTH,
        "expect" => Present::EXPECT,
        "via" => Present::VIA,
        "forwarded"
        | "x-real-ip"
        | "x-forwarded-for"
        | "x-forwarded-host"
        | "x-forwarded-port"
        | "x-forwarded-proto"
        | "x-forwarded-client-cert" => Present::FORWARDED,
        "weft-deadline" | "grpc-timeout" => Present::DEADLINE,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use http::header::{HeaderName, HeaderValue};

    use super::*;
    use crate::http::headers;
    use crate::policy::{deadline, forwarding};

    #[test]
    fn every_field_that_is_looked_for_is_found() {
        let has = |name: &HeaderName, fields| {
            let headers = HeaderMap::from_iter([(name.clone(), HeaderValue::from_static("1"))]);
            assert!(Present::of(&headers).any(fields), "{name}");
        };
        headers::HOP_BY_HOP.iter().for_each(|name| has(name, Present::HOP_BY_HOP));
        forwarding::OF_EARLIER_HOPS.iter().for_each(|name| has(name, Present::FORWARDED));
        has(&forwarding::X_FORWARDED_CLIENT_CERT, Present::FORWARDED);
        has(&deadline::WEFT_DEADLINE, Present::DEADLINE);
        has(&deadline::GRPC_TIMEOUT, Present::DEADLINE);
        has(&http::header::CONNECTION, Present::CONNECTION);
        has(&http::header::TRANSFER_ENCODING, Present::TRANSFER_ENCODING);
        has(&http::header::CONTENT_LENGTH, Present::CONTENT_LENGTH);
        has(&http::header::EXPECT, Present::EXPECT);
        has(&http::header::VIA, Present::VIA);
        let others = HeaderMap::from_iter([(http::header::HOST, HeaderValue::from_static("a"))]);
        assert_eq!(Present::of(&others), Present(0));
    }
}
