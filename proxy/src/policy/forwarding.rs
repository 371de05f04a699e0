//! Whom to believe what they say of earlier hops: `x-forwarded-…`, `forwarded` and `x-forwarded-client-cert`. Pure.
//!
//! | the request comes | what it says of earlier hops | `x-forwarded-client-cert` |
//! |---|---|---|
//! | from the local app | stays | stays; the next sidecar replaces it |
//! | from a sidecar with a certificate | stays | what its certificate says, and nothing else |
//! | from a proxy of a trusted network | stays | stays |
//! | from others, on the inbound port of a sidecar without an identity | stays: there is nothing to tell peers by | removed |
//! | from others | removed | removed |
//!
//! Then this hop is appended.

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue};
use weft_core::tls::spiffe::SpiffeId;

use crate::listener::proxy_protocol::Network;

pub(crate) const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// Those that say something of earlier hops.
pub(crate) const OF_EARLIER_HOPS: [HeaderName; 6] = [
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-real-ip"),
    FORWARDED,
];

/// Who stands on the other side of a port.
#[derive(Debug, Clone)]
pub(crate) enum Forwarding {
    /// The local app.
    App,
    /// Peers that nobody can tell from others.
    Peers(Arc<[Network]>),
    /// Anybody.
    Boundary(Arc<[Network]>),
}

/// A verified sidecar.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Verified<'a> {
    pub id: &'a SpiffeId,
    /// SHA-256 of its certificate, in hex.
    pub hash: &'a str,
}

impl Forwarding {
    /// Whether this hop is told to the next one. That of the local app tells nobody anything.
    pub fn appends(&self, client: IpAddr) -> bool {
        !matches!(self, Self::App) || !client.is_loopback()
    }

    /// Removes what is not believed, and says who the peer is.
    pub fn sanitise(
        &self,
        headers: &mut HeaderMap,
        client: IpAddr,
        sidecar: Option<Verified<'_>>,
        own: Option<&SpiffeId>,
    ) {
        let (networks, strict) = match self {
            Self::App => return,
            Self::Peers(networks) => (networks, false),
            Self::Boundary(networks) => (networks, true),
        };
        if let Some(peer) = sidecar {
            match client_cert(peer, own) {
                Some(value) => drop(headers.insert(X_FORWARDED_CLIENT_CERT, value)),
                None => drop(headers.remove(X_FORWARDED_CLIENT_CERT)),
            }
            return;
        }
        if networks.iter().any(|network| network.contains(client)) {
            return;
        }
        headers.remove(X_FORWARDED_CLIENT_CERT);
        if strict {
            for name in &OF_EARLIER_HOPS {
                headers.remove(name);
            }
        }
    }
}

/// As Envoy writes it. SPIFFE IDs have no character that would need quotes.
fn client_cert(peer: Verified<'_>, own: Option<&SpiffeId>) -> Option<HeaderValue> {
    let mut text = String::with_capacity(256);
    if let Some(own) = own {
        text.extend(["By=", own.as_str(), ";"]);
    }
    text.extend(["Hash=", peer.hash, ";URI=", peer.id.as_str()]);
    HeaderValue::try_from(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: [(&str, &str); 5] = [
        ("x-forwarded-for", "10.9.9.9"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "admin.example"),
        ("forwarded", "for=10.9.9.9"),
        ("x-forwarded-client-cert", "By=spiffe://a/b;URI=spiffe://a/admin"),
    ];

    fn left(forwarding: &Forwarding, client: &str, sidecar: Option<Verified<'_>>) -> HeaderMap {
        let fields = FIELDS.iter().chain(&[("accept", "*/*")]);
        let mut headers: HeaderMap =
            fields.map(|(n, v)| (n.parse::<HeaderName>().unwrap(), v.parse().unwrap())).collect();
        let own = SpiffeId::parse("spiffe://m/own").unwrap();
        forwarding.sanitise(&mut headers, client.parse().unwrap(), sidecar, Some(&own));
        headers
    }

    #[test]
    fn nobody_unknown_says_who_he_is_or_whence_he_comes() {
        let networks: Arc<[Network]> = ["10.0.0.0/8".parse().unwrap()].into();
        assert_eq!(left(&Forwarding::App, "127.0.0.1", None).len(), 6);
        let edge = Forwarding::Boundary(networks.clone());
        assert_eq!(
            left(&edge, "192.0.2.1", None).keys().map(HeaderName::as_str).collect::<Vec<_>>(),
            ["accept"]
        );
        assert_eq!(left(&edge, "10.1.1.1", None).len(), 6, "a proxy of a trusted network");
        let peers = left(&Forwarding::Peers([].into()), "192.0.2.1", None);
        assert_eq!(peers.len(), 5);
        assert!(!peers.contains_key(X_FORWARDED_CLIENT_CERT), "nobody can tell whether that is true");
    }

    #[test]
    fn what_a_sidecar_says_of_earlier_hops_is_believed_and_who_it_is_stands_in_its_certificate() {
        let id = SpiffeId::parse("spiffe://m/web").unwrap();
        let verified = Verified { id: &id, hash: "ab12" };
        let headers = left(&Forwarding::Boundary([].into()), "192.0.2.1", Some(verified));
        assert_eq!(headers[X_FORWARDED_CLIENT_CERT], "By=spiffe://m/own;Hash=ab12;URI=spiffe://m/web");
        assert_eq!(headers["x-forwarded-for"], "10.9.9.9");
    }
}
