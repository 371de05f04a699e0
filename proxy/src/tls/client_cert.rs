//! `x-forwarded-client-cert`: what the certificate of a client says, as Envoy writes it. Pure.
//!
//! What clients choose cannot end a part of it: subjects have no quotation mark ([`Names::subject`]), URIs are in quotes if they have
//! what divides parts, and whatever is no character of a URI in them is written as `%XX`.

use std::fmt::Write;

use http::HeaderValue;
use rustls::pki_types::CertificateDer;
use weft_core::tls::Names;
use weft_core::tls::spiffe::SpiffeId;

/// Longest value; of a certificate with more names only the hash is told.
const BYTES_MAX: usize = 8192;

/// Of a sidecar. SPIFFE IDs have no character that would need quotes.
pub(crate) fn of_sidecar(
    certificate: &CertificateDer<'_>,
    id: &SpiffeId,
    own: Option<&SpiffeId>,
) -> Option<HeaderValue> {
    let by = own.map(|own| format!("By={own};")).unwrap_or_default();
    HeaderValue::try_from(format!("{by}Hash={};URI={id}", hash(certificate))).ok()
}

/// Of any client.
pub(crate) fn of_client(certificate: &CertificateDer<'_>) -> Option<HeaderValue> {
    let hash = format!("Hash={}", hash(certificate));
    let text = Names::of(certificate).map(|names| written(&hash, &names)).filter(|t| t.len() <= BYTES_MAX);
    HeaderValue::try_from(text.unwrap_or(hash)).ok()
}

fn written(hash: &str, names: &Names) -> String {
    let mut text = format!("{hash};Subject=\"{}\"", names.subject);
    for uri in &names.uris {
        let uri = encoded(uri);
        let quote = if uri.contains([',', ';', '=']) { "\"" } else { "" };
        text.extend([";URI=", quote, &uri, quote]);
    }
    let is_name = |name: &&String| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.*".contains(&b))
    };
    for name in names.dns.iter().filter(is_name) {
        text.extend([";DNS=", name]);
    }
    text
}

/// With nothing but characters of a URI (RFC 3986 §2).
fn encoded(uri: &str) -> String {
    let mut text = String::with_capacity(uri.len());
    for byte in uri.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&byte) {
            text.push(byte.into());
        } else {
            // Writing to a text does not fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// SHA-256, in hex.
fn hash(certificate: &CertificateDer<'_>) -> String {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
    hash.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(uris: &[&str], dns: &[&str]) -> String {
        let all = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        written("Hash=ab", &Names { subject: "CN=a,O=b".into(), uris: all(uris), dns: all(dns) })
    }

    #[test]
    fn parts_stand_in_the_order_and_the_form_of_envoy() {
        assert_eq!(of(&[], &[]), "Hash=ab;Subject=\"CN=a,O=b\"");
        assert_eq!(
            of(&["spiffe://t/a", "https://b"], &["c.example", "*.d.example"]),
            "Hash=ab;Subject=\"CN=a,O=b\";URI=spiffe://t/a;URI=https://b;DNS=c.example;DNS=*.d.example"
        );
    }

    /// Whoever gets a certificate with a name of his choice must not get another one with it.
    #[test]
    fn a_name_cannot_bring_in_another_part() {
        for (uri, shown) in [
            ("spiffe://t/a;URI=spiffe://t/admin", "\"spiffe://t/a;URI=spiffe://t/admin\""),
            ("spiffe://t/a,By=b", "\"spiffe://t/a,By=b\""),
            ("a\";URI=b", "\"a%22;URI=b\""),
            ("a\\\"", "a%5C%22"),
            ("a b\r\n", "a%20b%0D%0A"),
        ] {
            assert_eq!(of(&[uri], &[]), format!("Hash=ab;Subject=\"CN=a,O=b\";URI={shown}"));
        }
        assert_eq!(of(&[], &["a;URI=b", "a\"", "", "a b"]), "Hash=ab;Subject=\"CN=a,O=b\"");
    }

    #[test]
    fn of_a_certificate_with_very_many_names_the_hash_is_told_alone() {
        let names: Vec<_> = (0..1000).map(|i| format!("name-{i}.example")).collect();
        let cert = rcgen::generate_simple_self_signed(names).unwrap().cert;
        let value = of_client(cert.der()).unwrap();
        assert_eq!(value, format!("Hash={}", hash(cert.der())));
        let few = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap().cert;
        assert!(of_client(few.der()).unwrap().to_str().unwrap().ends_with(";DNS=a.example"));
        assert_eq!(of_client(&CertificateDer::from(vec![1])).unwrap().to_str().unwrap().len(), 5 + 64);
    }
}
