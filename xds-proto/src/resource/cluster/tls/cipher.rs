//! Cipher suites: those that are spoken at all, by the names of the standards and by those of OpenSSL.
//!
//! All have forward secrecy and authenticated encryption, so a list of them is a matter of rules that somebody has to keep, or
//! of the machine's instructions. Each version has suites of its own: a list leaves a version alone that none of its names is for.

use envoy_types::pb::google::protobuf::{ListValue, Struct, Value, value::Kind};
use serde::{Serialize, Serializer};

use super::TlsVersion;
use crate::resource::InvalidResource;
use crate::resource::cluster::Validator;

/// One of them, by its number (RFC 8446 §B.4, RFC 5289, RFC 7905).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CipherSuite(u16);

/// Number, name, and OpenSSL's name where that is another.
const ALL: [(u16, &str, &str); 9] = [
    (0x1301, "TLS_AES_128_GCM_SHA256", ""),
    (0x1302, "TLS_AES_256_GCM_SHA384", ""),
    (0x1303, "TLS_CHACHA20_POLY1305_SHA256", ""),
    (0xc02b, "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "ECDHE-ECDSA-AES128-GCM-SHA256"),
    (0xc02c, "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "ECDHE-ECDSA-AES256-GCM-SHA384"),
    (0xcca9, "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"),
    (0xc02f, "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "ECDHE-RSA-AES128-GCM-SHA256"),
    (0xc030, "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "ECDHE-RSA-AES256-GCM-SHA384"),
    (0xcca8, "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", "ECDHE-RSA-CHACHA20-POLY1305"),
];

impl CipherSuite {
    /// All that there are.
    pub fn all() -> impl Iterator<Item = Self> {
        ALL.iter().map(|(number, ..)| Self(*number))
    }

    /// Its number in a handshake.
    pub const fn number(self) -> u16 {
        self.0
    }

    /// As the standards call it.
    pub fn name(self) -> &'static str {
        ALL.iter().find(|(number, ..)| *number == self.0).map_or("", |(_, name, _)| name)
    }

    /// The version that it is for.
    pub const fn version(self) -> TlsVersion {
        if self.0 >> 8 == 0x13 { TlsVersion::Tls13 } else { TlsVersion::Tls12 }
    }

    /// By either name.
    fn named(name: &str) -> Option<Self> {
        let is_it = |(_, standard, openssl): &&(u16, &str, &str)| name == *standard || name == *openssl;
        ALL.iter().find(is_it).filter(|_| !name.is_empty()).map(|(number, ..)| Self(*number))
    }

    /// # Errors
    /// What is allowed.
    pub fn parse(name: &str) -> Result<Self, String> {
        let allowed = || Self::all().map(Self::name).collect::<Vec<_>>().join(", ");
        Self::named(name).ok_or_else(|| format!("{name:?} is unknown or too weak; allowed are {}", allowed()))
    }

    /// A list of them, most wanted first.
    ///
    /// # Errors
    /// Names the one that is none, comes twice, or is for a version that is not spoken.
    pub fn parse_all<'a>(
        names: impl IntoIterator<Item = &'a str>,
        min_version: TlsVersion,
    ) -> Result<Vec<Self>, String> {
        let mut all = Vec::new();
        for name in names {
            let suite = Self::parse(name)?;
            if all.contains(&suite) {
                return Err(format!("{name:?} stands there twice"));
            }
            if suite.version() < min_version {
                return Err(format!("{name:?} is for TLS 1.2, and the oldest version that is spoken is 1.3"));
            }
            all.push(suite);
        }
        Ok(all)
    }

    /// As Envoy calls it, which has no say in those of TLS 1.3.
    fn envoy(self) -> Option<&'static str> {
        let own = ALL.iter().find(|(number, ..)| *number == self.0);
        own.map(|(_, _, openssl)| *openssl).filter(|name| !name.is_empty())
    }
}

impl Serialize for CipherSuite {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Namespace in a cluster's metadata: a list with those of TLS 1.3.
const NAMESPACE: &str = "weft.cipher_suites";

/// What goes into `cipher_suites` of TlsParameters.
pub(super) fn encode(suites: &[CipherSuite]) -> Vec<String> {
    suites.iter().filter_map(|suite| suite.envoy()).map(str::to_owned).collect()
}

/// What goes into the metadata, if anything does.
pub(super) fn encode_metadata(suites: &[CipherSuite]) -> Option<(String, Struct)> {
    suites.iter().find(|suite| suite.envoy().is_none())?;
    let text = |suite: &CipherSuite| Value { kind: Some(Kind::StringValue(suite.name().to_owned())) };
    let values = suites.iter().map(text).collect();
    let list = Value { kind: Some(Kind::ListValue(ListValue { values })) };
    Some((NAMESPACE.to_owned(), Struct { fields: [("names".to_owned(), list)].into() }))
}

/// Of what Envoy may say, `[A|B]` and all, those that are spoken here: fewer than are allowed are no harm. None: whichever.
pub(super) fn decode(
    v: &Validator<'_>,
    at: &str,
    texts: &[String],
) -> Result<Vec<CipherSuite>, InvalidResource> {
    let names = texts.iter().flat_map(|text| text.trim_matches(['[', ']']).split('|'));
    let mut all = Vec::new();
    for suite in names.filter_map(CipherSuite::named) {
        if !all.contains(&suite) {
            all.push(suite);
        }
    }
    if all.is_empty() && !texts.is_empty() {
        let allowed = CipherSuite::all().filter_map(CipherSuite::envoy).collect::<Vec<_>>().join(", ");
        let shown: String = texts.join(", ").chars().take(100).collect();
        return Err(v.error(at, format!("{shown:?}"), format!("at least one of {allowed}")));
    }
    Ok(all)
}

/// What the metadata of a cluster says, if it says anything of it.
pub(super) fn decode_metadata(
    v: &Validator<'_>,
    metadata: &std::collections::HashMap<String, Struct>,
    min_version: TlsVersion,
) -> Result<Option<Vec<CipherSuite>>, InvalidResource> {
    let Some(ours) = metadata.get(NAMESPACE) else { return Ok(None) };
    let at = format!("metadata[{NAMESPACE}].names");
    let Some(Kind::ListValue(list)) = ours.fields.get("names").and_then(|field| field.kind.as_ref()) else {
        return Err(v.error(at, "no list", "a list of texts"));
    };
    let text = |value: &Value| match &value.kind {
        Some(Kind::StringValue(text)) => Ok(text.clone()),
        _ => Err(v.error(&at, "no text", "texts")),
    };
    let names = list.values.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let all = CipherSuite::parse_all(names.iter().map(String::as_str), min_version);
    all.map(Some)
        .map_err(|why| v.error(&at, why.chars().take(100).collect::<String>(), "names of cipher suites"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_names_of_a_suite_mean_it_and_others_are_refused_with_those_that_are_allowed() {
        for (number, standard, openssl) in ALL {
            assert_eq!(CipherSuite::parse(standard), Ok(CipherSuite(number)));
            if !openssl.is_empty() {
                assert_eq!(CipherSuite::parse(openssl), Ok(CipherSuite(number)));
            }
        }
        for name in ["", "AES128-SHA", "ECDHE-RSA-AES128-SHA", "tls_aes_128_gcm_sha256", "ALL"] {
            let why = CipherSuite::parse(name).unwrap_err();
            assert!(why.contains("allowed are TLS_AES_128_GCM_SHA256, "), "{why}");
        }
    }

    #[test]
    fn a_list_has_each_once_and_none_for_a_version_that_is_not_spoken() {
        let parse = |names: &[&str], min| CipherSuite::parse_all(names.iter().copied(), min);
        let both = ["TLS_AES_256_GCM_SHA384", "ECDHE-RSA-AES256-GCM-SHA384"];
        assert_eq!(parse(&both, TlsVersion::Tls12).unwrap().len(), 2);
        assert!(
            parse(&both, TlsVersion::Tls13).unwrap_err().contains("\"ECDHE-RSA-AES256-GCM-SHA384\" is for")
        );
        assert!(parse(&[both[0], both[0]], TlsVersion::Tls12).unwrap_err().contains("twice"));
    }
}
