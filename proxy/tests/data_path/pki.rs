//! A CA with certificates in files, and a server of TLS.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use weft_core::tls::{ClientCerts, Identity};
use weft_proxy::tls::mesh::{MeshFiles, MeshMode};

pub struct Ca {
    pub dir: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// When no list of a test is over yet.
const LATER: (i32, u8, u8) = (2099, 1, 1);

impl Ca {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { dir, issuer }
    }

    pub fn file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Files of a certificate for a DNS name, an address or a URI.
    pub fn issue(&self, file: &str, name: &str) -> Identity {
        self.issue_numbered(file, name, 1)
    }

    pub fn issue_numbered(&self, file: &str, name: &str, serial: u64) -> Identity {
        let names = if name.contains("://") { vec![] } else { vec![name.to_owned()] };
        let mut params = CertificateParams::new(names).unwrap();
        if name.contains("://") {
            params.subject_alt_names.push(SanType::URI(name.try_into().unwrap()));
        }
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, file);
        params.serial_number = Some(SerialNumber::from(serial));
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let (cert_file, key_file) = (self.at(&format!("{file}.pem")), self.at(&format!("{file}.key")));
        write(&key_file, &key.serialize_pem());
        write(&cert_file, &cert.pem());
        Identity { cert: cert_file, key: key_file }
    }

    /// A list of what was taken back.
    pub fn revoke(&self, serials: &[u64]) -> PathBuf {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: rcgen::date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = rcgen::CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2024, 1, 1),
            next_update: rcgen::date_time_ymd(LATER.0, LATER.1, LATER.2),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer).unwrap();
        let path = self.at("list.crl");
        write(&path, &list.pem().unwrap());
        path
    }

    pub fn at(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// What a sidecar of this name is started with.
    pub fn mesh(&self, file: &str, id: &str, mode: MeshMode) -> MeshFiles {
        let Identity { cert, key } = self.issue(file, id);
        MeshFiles { cert, key, ca: self.file(), crl: None, mode }
    }
}

fn write(path: &Path, text: &str) {
    weft_core::fsio::write_atomic(path, text.as_bytes()).unwrap();
}

/// Ends TLS in front of a server, as a sidecar of another make would.
pub async fn tls_in_front(
    of: SocketAddr,
    identity: &Identity,
    clients: &ClientCerts,
    alpn: &[&[u8]],
) -> (SocketAddr, JoinHandle<()>) {
    let config = weft_core::tls::server_config_asking(identity, clients, alpn).unwrap();
    terminate(of, config).await
}

pub async fn terminate(of: SocketAddr, config: Arc<rustls::ServerConfig>) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(config);
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut near) = acceptor.accept(stream).await else { return };
                let mut far = tokio::net::TcpStream::connect(of).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    (addr, task)
}
