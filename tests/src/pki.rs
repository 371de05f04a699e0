//! Identities of sidecars.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};

/// A CA of a mesh.
pub type Ca = CertifiedIssuer<'static, KeyPair>;

/// A new one.
pub fn ca() -> Ca {
    let mut params = CertificateParams::new(Vec::new()).expect("names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "mesh");
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed")
}

/// Flags of a strict sidecar with this SPIFFE ID, whose files are in the folder.
pub fn identity(folder: &Path, ca: &Ca, id: &str) -> Vec<String> {
    std::fs::create_dir_all(folder).expect("a folder");
    let mut params = CertificateParams::new(Vec::new()).expect("names");
    params.subject_alt_names.push(SanType::URI(id.try_into().expect("ASCII")));
    let key = KeyPair::generate().expect("a key");
    let cert = params.signed_by(&key, ca).expect("signed");
    let file = |name: &str, pem: String| {
        std::fs::write(folder.join(name), pem).expect("written");
        folder.join(name).display().to_string()
    };
    let (cert, key) = (file("cert.pem", cert.pem()), file("key.pem", key.serialize_pem()));
    let ca = file("ca.pem", ca.pem());
    [("--mesh-cert", cert), ("--mesh-key", key), ("--mesh-ca", ca), ("--mesh-mode", "strict".to_owned())]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
}
