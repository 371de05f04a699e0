//! SPIFFE IDs: names of workloads, `spiffe://TRUST-DOMAIN/PATH`, as the only URI of their certificates (SPIFFE-ID §2 and
//! X.509-SVID §2).

use std::fmt;

use rustls_pki_types::CertificateDer;

/// Longest SPIFFE ID, in bytes (SPIFFE-ID §2.3).
pub const ID_BYTES_MAX: usize = 2048;

/// A name that was checked.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: Box<str>,
    /// Where the path begins, behind the trust domain.
    path: usize,
}

/// Why a text is none, or a certificate has none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoSpiffeId(String);

const SCHEME: &str = "spiffe://";

impl SpiffeId {
    /// Checks a text.
    ///
    /// # Errors
    /// Says which rule it breaks.
    pub fn parse(text: &str) -> Result<Self, NoSpiffeId> {
        let no = |why: &str| {
            let seen: String = text.chars().take(100).collect();
            Err(NoSpiffeId(format!(
                "{seen:?} is no SPIFFE ID, such as spiffe://example.org/ns/shop/sa/orders: {why}"
            )))
        };
        let Some(rest) = text.strip_prefix(SCHEME) else { return no("it does not begin with spiffe://") };
        if text.len() > ID_BYTES_MAX {
            return no("it is longer than 2048 bytes");
        }
        let domain = rest.split('/').next().unwrap_or_default();
        if let Err(why) = check_trust_domain(domain) {
            return no(why);
        }
        let path = &rest[domain.len()..];
        let is_segment = |s: &str| {
            !matches!(s, "" | "." | "..")
                && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        };
        if !path.is_empty() && !path[1..].split('/').all(is_segment) {
            return no(
                "a part of its path is empty, a dot, or has other than letters, digits, '.', '-' and '_'",
            );
        }
        Ok(Self { text: text.into(), path: SCHEME.len() + domain.len() })
    }

    /// Of a workload's certificate, which has one and no other URI.
    ///
    /// # Errors
    /// If it has none, or several.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, NoSpiffeId> {
        let uris = super::uris(certificate).map_err(|why| NoSpiffeId(why.to_string()))?;
        match uris.as_slice() {
            [one] => Self::parse(one),
            [] => Err(NoSpiffeId("the certificate names no URI; a workload's has a SPIFFE ID".to_owned())),
            more => {
                Err(NoSpiffeId(format!("the certificate names {} URIs; a workload's has one", more.len())))
            }
        }
    }

    /// The whole.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The part that one authority answers for.
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..self.path]
    }

    /// What the authority calls the workload; empty, or with a slash at its beginning.
    pub fn path(&self) -> &str {
        &self.text[self.path..]
    }

    /// What stands behind `/ns/`, as in Kubernetes and Istio.
    pub fn namespace(&self) -> Option<&str> {
        let mut parts = self.path().split('/').skip(1);
        (parts.next() == Some("ns")).then(|| parts.next()).flatten()
    }
}

/// Whether a text is a trust domain.
///
/// # Errors
/// Says which rule it breaks.
pub fn check_trust_domain(domain: &str) -> Result<(), &'static str> {
    if domain.is_empty() || domain.len() > 255 {
        return Err("its trust domain is empty or longer than 255 bytes");
    }
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    if !domain.bytes().all(allowed) {
        return Err("its trust domain has other than lower-case letters, digits, '.', '-' and '_'");
    }
    Ok(())
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_trust_domain_and_a_path() {
        let id = SpiffeId::parse("spiffe://example.org/ns/shop/sa/orders").unwrap();
        assert_eq!((id.trust_domain(), id.path()), ("example.org", "/ns/shop/sa/orders"));
        assert_eq!(id.namespace(), Some("shop"));
        let bare = SpiffeId::parse("spiffe://example.org").unwrap();
        assert_eq!((bare.trust_domain(), bare.path(), bare.namespace()), ("example.org", "", None));
        assert_eq!(SpiffeId::parse("spiffe://a/x/ns/shop").unwrap().namespace(), None);
    }

    /// Each could be read as another name by somebody else.
    #[test]
    fn texts_that_could_be_taken_for_another_id_are_refused() {
        let long = format!("spiffe://a/{}", "x".repeat(2048));
        for text in [
            "",
            "http://a/b",
            "SPIFFE://a/b",
            "spiffe://",
            "spiffe:///a",
            "spiffe://A/b",
            "spiffe://a:80/b",
            "spiffe://u@a/b",
            "spiffe://a/",
            "spiffe://a//b",
            "spiffe://a/./b",
            "spiffe://a/../b",
            "spiffe://a/b/",
            "spiffe://a/%2e",
            "spiffe://a/b?c",
            "spiffe://a/b#c",
            "spiffe://a/b c",
            "spiffe://a/ä",
            &long,
        ] {
            assert!(SpiffeId::parse(text).is_err(), "{text}");
        }
    }
}
