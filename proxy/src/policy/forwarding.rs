//! Whom to believe what they say of earlier hops: `x-forwarded-…`, `forwarded` and `x-forwarded-client-cert`. Pure.
//!
//! | the request comes | what it says of earlier hops | `x-forwarded-client-cert` |
//! |---|---|---|
//! | from the local app | stays | stays; the next sidecar replaces it |
//! | from a sidecar with a certificate | stays | what its certificate says, and nothing else |
//! | from a proxy of a trusted network | stays | stays, with what its own certificate says behind it |
//! | from others, on the inbound port of a sidecar without an identity | stays: there is nothing to tell peers by | what their certificate says, or none |
//! | from others | removed | the same |
//!
//! Where a port asks for certificates, those who are taken for the local app say nothing of them either.
//!
//! Then this hop is appended.

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{Entry, FORWARDED, HeaderMap, HeaderName, HeaderValue};

use crate::proxy_protocol::Network;

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

/// What a client has shown of itself, where it was asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shown<'a> {
    /// It is one.
    pub sidecar: bool,
    /// What its certificate says; none if it has shown none.
    pub client_cert: Option<&'a HeaderValue>,
}

impl Forwarding {
    /// Whether this hop is told to the next one. That of the local app tells nobody anything.
    pub fn appends(&self, client: IpAddr) -> bool {
        !matches!(self, Self::App) || !client.is_loopback()
    }

    /// Removes what is not believed, and says who the client is.
    pub fn sanitise(&self, headers: &mut HeaderMap, client: IpAddr, shown: Option<Shown<'_>>) {
        let own = shown.and_then(|shown| shown.client_cert);
        let strict = match self {
            // What a port has asked for, nobody else is to say.
            Self::App if shown.is_none() => return,
            Self::App => false,
            _ if shown.is_some_and(|shown| shown.sidecar) => false,
            Self::Peers(networks) | Self::Boundary(networks)
                if networks.iter().any(|network| network.contains(client)) =>
            {
                if let Some(own) = own {
                    append_to_list(headers, X_FORWARDED_CLIENT_CERT, own);
                }
                return;
            }
            Self::Peers(_) => false,
            Self::Boundary(_) => true,
        };
        match own {
            Some(own) => drop(headers.insert(X_FORWARDED_CLIENT_CERT, own.clone())),
            None => drop(headers.remove(X_FORWARDED_CLIENT_CERT)),
        }
        if strict {
            for name in &OF_EARLIER_HOPS {
                headers.remove(name);
            }
        }
    }
}

/// As the last element of a list field, in one line (RFC 9110 §5.3).
pub(crate) fn append_to_list(headers: &mut HeaderMap, name: HeaderName, element: &HeaderValue) {
    match headers.entry(name) {
        Entry::Vacant(vacant) => drop(vacant.insert(element.clone())),
        Entry::Occupied(mut known) => {
            let mut list = Vec::new();
            for known in known.iter().filter(|v| !v.is_empty()) {
                list.extend_from_slice(known.as_bytes());
                list.extend_from_slice(b", ");
            }
            list.extend_from_slice(element.as_bytes());
            // What was header values before makes a header value.
            if let Ok(value) = HeaderValue::from_bytes(&list) {
                known.insert(value);
            }
        }
    }
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

    fn left(forwarding: &Forwarding, client: &str, shown: Option<Shown<'_>>) -> HeaderMap {
        let fields = FIELDS.iter().chain(&[("accept", "*/*")]);
        let mut headers: HeaderMap =
            fields.map(|(n, v)| (n.parse::<HeaderName>().unwrap(), v.parse().unwrap())).collect();
        forwarding.sanitise(&mut headers, client.parse().unwrap(), shown);
        headers
    }

    static CERT: HeaderValue = HeaderValue::from_static("Hash=ab12");

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
        let shown = Shown { sidecar: true, client_cert: Some(&CERT) };
        let headers = left(&Forwarding::Boundary([].into()), "192.0.2.1", Some(shown));
        assert_eq!(headers[X_FORWARDED_CLIENT_CERT], CERT);
        assert_eq!(headers["x-forwarded-for"], "10.9.9.9");
    }

    #[test]
    fn who_has_shown_a_certificate_is_named_by_it_alone_and_who_was_asked_and_has_none_by_nothing() {
        let asked = |client_cert| Some(Shown { sidecar: false, client_cert });
        let all = [Forwarding::App, Forwarding::Peers([].into()), Forwarding::Boundary([].into())];
        for (forwarding, earlier) in all.iter().zip([true, true, false]) {
            let shown = left(forwarding, "192.0.2.1", asked(Some(&CERT)));
            assert_eq!(shown.get_all(X_FORWARDED_CLIENT_CERT).iter().collect::<Vec<_>>(), [&CERT]);
            assert_eq!(shown.contains_key("x-forwarded-for"), earlier, "{forwarding:?}");
            let none = left(forwarding, "192.0.2.1", asked(None));
            assert!(!none.contains_key(X_FORWARDED_CLIENT_CERT), "{forwarding:?}");
        }
    }

    #[test]
    fn a_trusted_proxy_names_its_client_and_its_certificate_names_itself() {
        let networks: Arc<[Network]> = ["10.0.0.0/8".parse().unwrap()].into();
        for forwarding in [Forwarding::Peers(networks.clone()), Forwarding::Boundary(networks)] {
            let shown = Shown { sidecar: false, client_cert: Some(&CERT) };
            let headers = left(&forwarding, "10.0.0.1", Some(shown));
            let told = "By=spiffe://a/b;URI=spiffe://a/admin, Hash=ab12";
            assert_eq!(headers.get_all(X_FORWARDED_CLIENT_CERT).iter().collect::<Vec<_>>(), [told]);
            assert_eq!(headers["x-forwarded-for"], "10.9.9.9");
        }
    }
}
