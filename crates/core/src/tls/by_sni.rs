//! Which of several certificates a client is shown: the one for the name that it asks for (SNI, RFC 6066 §3).

use std::collections::HashMap;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;

use super::{Identity, TlsError, certificates, install_provider, pair_error, private_key};

/// By the names that stand in the certificates, of which `*` may stand for one label (RFC 9525 §6.3). Who asks for no name, or
/// for one of none of them, is shown the first.
#[derive(Debug)]
pub(super) struct BySni {
    first: Arc<CertifiedKey>,
    /// In lower case. Of several certificates for a name, the one that is named first.
    names: HashMap<String, Arc<CertifiedKey>>,
}

impl BySni {
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn load(identities: &[Identity]) -> Result<Self, TlsError> {
        install_provider();
        let provider = rustls::crypto::CryptoProvider::get_default().expect("it was installed just now");
        let mut first = None;
        let mut names = HashMap::new();
        for Identity { cert, key } in identities {
            let chain = certificates(cert)?;
            let own = names_of(&chain[0]);
            let pair = CertifiedKey::from_der(chain, private_key(key)?, provider)
                .map_err(|reason| pair_error(cert, key, reason))?;
            let pair = Arc::new(pair);
            for name in own {
                names.entry(name).or_insert_with(|| pair.clone());
            }
            first.get_or_insert(pair);
        }
        let first = first.ok_or(TlsError::NoIdentity)?;
        Ok(Self { first, names })
    }

    fn find(&self, name: Option<&str>) -> &Arc<CertifiedKey> {
        let found = name.and_then(|name| {
            let name = name.to_ascii_lowercase();
            self.names.get(&name).or_else(|| {
                let (_, parent) = name.split_once('.')?;
                self.names.get(&format!("*.{parent}"))
            })
        });
        found.unwrap_or(&self.first)
    }
}

impl ResolvesServerCert for BySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.find(hello.server_name()).clone())
    }
}

fn names_of(certificate: &CertificateDer<'_>) -> Vec<String> {
    let parsed = webpki::EndEntityCert::try_from(certificate);
    parsed.map_or_else(|_| Vec::new(), |cert| cert.valid_dns_names().map(str::to_ascii_lowercase).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(folder: &std::path::Path, file: &str, names: &[&str]) -> Identity {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let (cert, key) = (folder.join(format!("{file}.pem")), folder.join(format!("{file}.key")));
        std::fs::write(&cert, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        Identity { cert, key }
    }

    #[test]
    fn the_certificate_for_the_name_is_shown_and_the_first_to_everybody_else() {
        let folder = tempfile::tempdir().unwrap();
        let at = |file: &str, names: &[&str]| identity(folder.path(), file, names);
        let all = [
            at("first", &["a.example"]),
            at("star", &["*.Example.org", "example.org"]),
            at("exact", &["shop.example.org", "a.example"]),
        ];
        let chosen = BySni::load(&all).unwrap();
        let leaf = |file: &Identity| certificates(&file.cert).unwrap().remove(0);
        for (name, expected) in [
            (Some("a.example"), 0),
            (Some("A.EXAMPLE"), 0),
            (Some("shop.example.org"), 2),
            (Some("other.example.org"), 1),
            (Some("example.org"), 1),
            (Some("a.b.example.org"), 0),
            (Some("unknown.example"), 0),
            (None, 0),
        ] {
            assert_eq!(chosen.find(name).cert[0], leaf(&all[expected]), "{name:?}");
        }
    }

    #[test]
    fn a_key_of_another_certificate_is_refused_with_both_files() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (identity(folder.path(), "a", &["a"]), identity(folder.path(), "b", &["b"]));
        let mixed = Identity { cert: one.cert.clone(), key: other.key };
        let why = BySni::load(&[one, mixed]).unwrap_err().to_string();
        assert!(why.contains("b.key does not match the certificate in") && why.contains("a.pem"), "{why}");
        assert!(matches!(BySni::load(&[]), Err(TlsError::NoIdentity)));
    }
}
