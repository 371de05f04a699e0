//! What people are shown of a certificate.

use rustls_pki_types::CertificateDer;
use serde::Serialize;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// See the module. Times are seconds of the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct About {
    /// Distinguished name of its owner.
    pub subject: String,
    /// Of who signed it.
    pub issuer: String,
    /// In hex.
    pub serial: String,
    /// DNS names, addresses and URIs that it is for.
    pub names: Vec<String>,
    /// Valid from then.
    pub not_before: i64,
    /// Until then.
    pub not_after: i64,
    /// It may sign others.
    pub ca: bool,
}

impl About {
    /// None for what is no certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let names = parsed.subject_alternative_name().ok().flatten();
        let names = names.iter().flat_map(|found| &found.value.general_names).filter_map(|name| match name {
            GeneralName::DNSName(text) | GeneralName::URI(text) => Some((*text).to_owned()),
            GeneralName::IPAddress(bytes) => match **bytes {
                [a, b, c, d] => Some(std::net::Ipv4Addr::from([a, b, c, d]).to_string()),
                ref six => Some(std::net::Ipv6Addr::from(<[u8; 16]>::try_from(six).ok()?).to_string()),
            },
            _ => None,
        });
        Some(Self {
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            serial: parsed.raw_serial().iter().map(|b| format!("{b:02x}")).collect(),
            names: names.collect(),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            ca: parsed.is_ca(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_times_are_those_that_the_certificate_was_made_with() {
        let names = vec!["a.example".to_owned(), "127.0.0.1".to_owned()];
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.subject_alt_names.push(rcgen::SanType::URI("spiffe://example.org/a".try_into().unwrap()));
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        let about = About::of(cert.der()).unwrap();
        assert_eq!(about.names, ["a.example", "127.0.0.1", "spiffe://example.org/a"]);
        assert_eq!((about.not_after, about.ca), (1_893_456_000, false));
        assert_eq!(About::of(&CertificateDer::from(vec![1, 2, 3])), None);
    }
}
