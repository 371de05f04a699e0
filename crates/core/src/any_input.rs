//! Each parser of ours takes an input or refuses it, whatever it is, and what it takes means one thing. Known inputs are in
//! `tests/corpus`.

use std::path::Path;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use weft_corpus::{feed, feed_text};

use crate::config::{format_duration, parse_bytes, parse_duration, parse_yaml};
use crate::tls::spiffe::SpiffeId;
use crate::tls::{self, Names, TlsError};

macro_rules! corpus {
    ($parser:literal) => {
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/", $parser)
    };
}

#[test]
fn a_spiffe_id_is_made_of_its_parts() {
    feed_text(corpus!("spiffe"), "spiffe://[a-zA-Z0-9._:@-]{0,12}(/[a-zA-Z0-9._%-]{0,6}){0,5}", |text| {
        let Ok(id) = SpiffeId::parse(text) else { return false };
        assert_eq!(id.to_string(), text);
        assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), text);
        let namespace = id.namespace();
        assert!(namespace.is_none_or(|n| id.path().starts_with(&format!("/ns/{n}"))));
        true
    });
}

/// Others read a subject by machine: it must end where it does, and have no parts but its own.
#[test]
fn names_of_a_certificate_are_plain_text() {
    feed(corpus!("certificate"), "[0-\u{7f}]{0,80}", |bytes| {
        let certificate = CertificateDer::from(bytes);
        let spiffe = SpiffeId::of(&certificate);
        let Some(names) = Names::of(&certificate) else { return false };
        assert!(names.subject.bytes().all(|b| b.is_ascii_graphic() || b == b' '));
        assert!(!names.subject.contains(['"', ';', '<', '>']));
        if let Ok(id) = spiffe {
            assert_eq!(names.uris, [id.as_str()]);
        }
        true
    });
}

/// Files are read before it is known what they hold. What is refused may be a key, of which nothing is to be told.
#[test]
fn sections_of_pem_are_read_in_order_and_errors_tell_nothing_of_them() {
    let path = Path::new("some.pem");
    let near = "([a-z-]{0,6}\n)?(-----BEGIN (CERTIFICATE|PRIVATE KEY|EC PRIVATE KEY|X509 CRL)-----\n([A-Za-z0-9+/]{4}){0,5}\
                [A-Za-z0-9=]{0,3}\n-----END (CERTIFICATE|PRIVATE KEY|X509 CRL)-----\n){0,3}";
    feed(corpus!("pem"), near, |pem| {
        let told = |error: TlsError| {
            let said = error.to_string();
            assert!(said.contains("some.pem") && said.len() < 300, "{said:?}");
            assert!(!said.contains(char::is_control), "{said:?}");
            let text = String::from_utf8_lossy(pem).into_owned();
            let secret = text.lines().filter(|line| line.len() > 15 && !line.contains("--"));
            assert_eq!(secret.filter(|line| said.contains(line)).count(), 0, "{said:?}");
        };
        let certificates = tls::certificates_in(path, pem).map_err(told);
        let key = tls::private_key_in(path, pem).map_err(told);
        let crls = tls::crls_in(path, pem).map_err(told);
        let roots = tls::roots_in(path, pem).map_err(told);
        let words = [b"Some words\n", pem].concat();
        let again = [pem, b"\n", pem].concat();
        let lines: Vec<_> = pem.split(|byte| *byte == b'\n').collect();
        let other_ends = lines.join(&b"\r\n"[..]);
        if let Ok(all) = &certificates {
            assert!(!all.is_empty());
            assert_eq!(tls::certificates_in(path, &words).ok().as_ref(), Some(all));
            assert_eq!(tls::certificates_in(path, &again).ok(), Some([all.as_slice(), all].concat()));
            assert_eq!(tls::certificates_in(path, &other_ends).ok().as_ref(), Some(all));
            // Of a chain as often as it is given.
            assert!(roots.is_err() || roots.is_ok_and(|roots| roots.len() == all.len()));
        }
        if let Ok(all) = &crls {
            assert!(!all.is_empty());
            assert_eq!(tls::crls_in(path, &again).ok(), Some([all.as_slice(), all].concat()));
        }
        if let Ok(key) = &key {
            for other in [&words, &again, &other_ends] {
                assert_eq!(tls::private_key_in(path, other).ok().as_ref(), Some(key));
            }
        }
        certificates.is_ok() || key.is_ok() || crls.is_ok()
    });
}

#[test]
fn a_duration_is_the_same_when_it_is_written_and_read_again() {
    feed_text(corpus!("duration"), "[0-9]{0,9}(\\.[0-9]{0,10})?(us|ms|s|m|h|d)", |text| {
        let Ok(duration) = parse_duration(text) else { return false };
        assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        true
    });
}

#[test]
fn a_size_is_the_same_in_bytes() {
    feed_text(corpus!("bytes"), "[0-9]{0,21}([TGMK]i)?B", |text| {
        let Ok(bytes) = parse_bytes(text) else { return false };
        assert_eq!(parse_bytes(&format!("{bytes}B")), Ok(bytes));
        true
    });
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
struct Sample {
    name: String,
    #[serde(default)]
    limits: std::collections::BTreeMap<String, u16>,
    #[serde(default, with = "crate::config::duration::option")]
    wait: Option<Duration>,
}

#[test]
fn a_configuration_is_read_or_refused_in_one_line() {
    let near = "name: ['\"a-z&*!|>-]{0,6}\n(limits:\n?( {0,4}[a-z]{0,3}: ?[0-9\\[\\]{}]{0,6}\n){0,3})?(wait: [0-9]{0,3}(s|ms)?)?";
    feed_text(corpus!("config"), near, |text| match parse_yaml::<Sample>(Path::new("weft.yaml"), text) {
        Ok(_) => true,
        Err(error) => {
            let said = error.to_string();
            assert!(said.starts_with("weft.yaml:") && !said.contains('\n'), "{said:?}");
            false
        }
    });
}
