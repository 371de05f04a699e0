//! Whom a certificate is for, in forms that others read by machine.

use std::fmt::Write;

use rustls_pki_types::CertificateDer;
use x509_parser::asn1_rs::ToDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use x509_parser::x509::AttributeTypeAndValue;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Distinguished name of its owner as in RFC 4514, in visible ASCII: what else there is, and what means something there,
    /// is written as `\XX`. It has no quotation mark.
    pub subject: String,
    /// URIs that it is for, as they stand in it.
    pub uris: Vec<String>,
    /// DNS names that it is for, as they stand in it.
    pub dns: Vec<String>,
}

impl Names {
    /// None for what is no certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let (mut uris, mut dns) = (Vec::new(), Vec::new());
        let names = parsed.subject_alternative_name().ok().flatten();
        for name in names.iter().flat_map(|found| &found.value.general_names) {
            match name {
                GeneralName::URI(text) => uris.push((*text).to_owned()),
                GeneralName::DNSName(text) => dns.push((*text).to_owned()),
                _ => {}
            }
        }
        let parts: Vec<_> = parsed.subject().iter_rdn().collect();
        // The last part comes first (RFC 4514 §2.1).
        let parts = parts.iter().rev().map(|part| part.iter().map(attribute).collect::<Vec<_>>().join("+"));
        Some(Self { subject: parts.collect::<Vec<_>>().join(","), uris, dns })
    }
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type().to_id_string();
    match (short(&oid), attribute.as_str()) {
        (Some(name), Ok(value)) => format!("{name}={}", escaped(value)),
        // RFC 4514 §2.4.
        (name, _) => {
            let der = attribute.attr_value().to_der_vec().unwrap_or_default();
            let hex: String = der.iter().map(|byte| format!("{byte:02X}")).collect();
            format!("{}=#{hex}", name.unwrap_or(&oid))
        }
    }
}

/// RFC 4514 §3.
fn short(oid: &str) -> Option<&'static str> {
    Some(match oid {
        "2.5.4.3" => "CN",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "STREET",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        _ => return None,
    })
}

/// RFC 4514 §2.4, where any character may be written as `\XX`.
fn escaped(value: &str) -> String {
    let last = value.len().saturating_sub(1);
    let mut text = String::with_capacity(value.len());
    for (i, byte) in value.bytes().enumerate() {
        let plain = match byte {
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' => false,
            b'#' => i > 0,
            b' ' => i > 0 && i < last,
            _ => byte.is_ascii_graphic(),
        };
        if plain {
            text.push(byte.into());
        } else {
            // Writing to a text does not fail.
            let _ = write!(text, "\\{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

    use super::*;

    fn names(subject: DistinguishedName, sans: Vec<SanType>) -> Names {
        let mut params = CertificateParams::default();
        params.distinguished_name = subject;
        params.subject_alt_names = sans;
        Names::of(params.self_signed(&KeyPair::generate().unwrap()).unwrap().der()).unwrap()
    }

    #[test]
    fn a_subject_is_written_from_its_end_with_short_names() {
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CountryName, "DE");
        subject.push(DnType::OrganizationName, "Shop");
        subject.push(DnType::CommonName, "client one");
        let uri = SanType::URI("spiffe://t/a".try_into().unwrap());
        let names = names(subject, vec![SanType::DnsName("a.example".try_into().unwrap()), uri]);
        assert_eq!(names.subject, "CN=client one,O=Shop,C=DE");
        assert_eq!((names.uris, names.dns), (vec!["spiffe://t/a".into()], vec!["a.example".into()]));
        assert_eq!(Names::of(&CertificateDer::from(vec![1, 2, 3])), None);
    }

    /// A name must not look as if it were several, or end where it does not.
    #[test]
    fn what_means_something_in_a_subject_is_escaped() {
        for (name, text) in [
            ("a,O=b+c", r"CN=a\2CO=b\2Bc"),
            (r#"a";URI=b"#, r"CN=a\22\3BURI=b"),
            (r"a\", r"CN=a\5C"),
            (" #a ", r"CN=\20#a\20"),
            ("#a", r"CN=\23a"),
            ("a\r\nb", r"CN=a\0D\0Ab"),
            ("ä<>", r"CN=\C3\A4\3C\3E"),
            ("", "CN="),
        ] {
            let mut subject = DistinguishedName::new();
            subject.push(DnType::CommonName, name);
            assert_eq!(names(subject, vec![]).subject, text, "{name:?}");
        }
    }

    #[test]
    fn an_attribute_without_a_short_name_is_its_number_and_its_bytes() {
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CustomDnType(vec![1, 2, 840, 113549, 1, 9, 1]), "a");
        assert_eq!(names(subject, vec![]).subject, "1.2.840.113549.1.9.1=#0C0161");
    }
}
