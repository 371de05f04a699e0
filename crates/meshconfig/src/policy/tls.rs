//! `tls`: how connections to a service's instances are protected. `hostname` and `subjectAltNames` mean what they do in the
//! Gateway API's BackendTLSPolicy. Keys of certificates are named by their files alone: a document is no place for secrets.

use serde::{Deserialize, Serialize};
use weft_xds_proto::resource::cluster::tls::{
    CipherSuite, ClusterTls, DataSource, Identity, NAMES_MAX, PEM_BYTES_MAX, PeerName, TlsVersion, Trust,
    UpstreamTls, is_dns_name,
};

use crate::document::{Items, null_is_default, spec};
use crate::shape::{Problem, Rule, Shape, optional};

spec!(
    /// TLS to the instances of a service.
    #[derive(Eq)]
    TlsSpec {
        mode: Option<String>, hostname: Option<String>, subject_alt_names: Items<String>, ca_file: Option<String>,
        ca_certificates: Option<String>, crl_file: Option<String>, certificate_file: Option<String>,
        key_file: Option<String>, min_version: Option<String>, cipher_suites: Items<String>,
    }
);

const FILE: Shape = Shape::Text(Rule {
    allowed: "the absolute path of a file on the sidecar's machine",
    pattern: "^/",
    check: |t| t.starts_with('/') && t.len() <= 4096 && !t.contains('\0'),
});
const HOSTNAME: Shape = Shape::Text(Rule {
    allowed: "a DNS name without wildcards, or an address",
    pattern: "",
    check: is_dns_name,
});
const NAME: Shape = Shape::Text(Rule {
    allowed: "a DNS name such as api.example.com, or a URI such as spiffe://example.org/ns/shop/*, with * at its end alone",
    pattern: "",
    check: |t| PeerName::parse(t).is_ok(),
});
const PEM: Shape = Shape::Text(Rule {
    allowed: "PEM with at least one certificate, up to 1 MiB",
    pattern: "",
    check: |t| t.contains("-----BEGIN CERTIFICATE-----") && t.len() <= PEM_BYTES_MAX,
});

const SUITES_MAX: usize = 16;
const SUITE: Shape = Shape::Text(Rule {
    allowed: "a cipher suite with forward secrecy and authenticated encryption, such as TLS_AES_256_GCM_SHA384 or \
              ECDHE-RSA-AES256-GCM-SHA384",
    pattern: "",
    check: |t| CipherSuite::parse(t).is_ok(),
});

/// See the module.
pub(super) const TLS: Shape = Shape::Object(&[
    optional(
        "mode",
        &Shape::Choice(&["simple", "mesh"]),
        "simple: TLS as a client, also with a certificate; mesh: with the sidecars' own identities; simple if missing",
    ),
    optional("hostname", &HOSTNAME, "sent as SNI, and the name that certificates must be for"),
    optional(
        "subjectAltNames",
        &Shape::List(&NAME, NAMES_MAX),
        "certificates must be for one of these, instead of hostname",
    ),
    optional("caFile", &FILE, "PEM file with the CAs that may have signed; those of the system if missing"),
    optional("caCertificates", &PEM, "the same as a text"),
    optional("crlFile", &FILE, "PEM file with revocation lists of these CAs"),
    optional("certificateFile", &FILE, "PEM file with the certificate to show to instances that ask for one"),
    optional("keyFile", &FILE, "PEM file with its private key"),
    optional(
        "minVersion",
        &Shape::Choice(&["1.2", "1.3"]),
        "the oldest version that is spoken; 1.2 if missing",
    ),
    optional(
        "cipherSuites",
        &Shape::List(&SUITE, SUITES_MAX),
        "those that are offered, most wanted first, by name; of a version that none is for, all",
    ),
]);

impl TlsSpec {
    fn is_mesh(&self) -> bool {
        self.mode.as_deref() == Some("mesh")
    }

    fn oldest(&self) -> TlsVersion {
        match self.min_version.as_deref() {
            Some("1.3") => TlsVersion::Tls13,
            _ => TlsVersion::Tls12,
        }
    }

    fn suites(&self) -> Result<Vec<CipherSuite>, String> {
        let names = self.cipher_suites.iter().flatten().map(String::as_str);
        CipherSuite::parse_all(names, self.oldest())
    }

    /// What keys and types alone do not say.
    pub(super) fn check(&self, at: &str, problems: &mut Vec<Problem>) {
        let mut wrong =
            |key: &str, message: &str| problems.push(Problem::new(format!("{at}.{key}"), message));
        if self.is_mesh() {
            let others = [
                ("hostname", self.hostname.is_some()),
                ("caFile", self.ca_file.is_some()),
                ("caCertificates", self.ca_certificates.is_some()),
                ("crlFile", self.crl_file.is_some()),
                ("certificateFile", self.certificate_file.is_some()),
                ("keyFile", self.key_file.is_some()),
                ("minVersion", self.min_version.is_some()),
                ("cipherSuites", !self.cipher_suites.is_empty()),
            ];
            for (key, _) in others.into_iter().filter(|(_, given)| *given) {
                wrong(
                    key,
                    "given with mode mesh, in which sidecars use their own certificates (weft proxy --mesh-cert)",
                );
            }
            return;
        }
        if self.hostname.is_none() && self.subject_alt_names.is_empty() {
            problems.push(Problem::new(
                at,
                "neither hostname nor subjectAltNames is given: a certificate has to be for some name",
            ));
            return;
        }
        if self.ca_file.is_some() && self.ca_certificates.is_some() {
            wrong("caCertificates", "given beside caFile; allowed is one of the two");
        }
        if let Err(why) = self.suites() {
            wrong("cipherSuites", &why);
        }
        match (&self.certificate_file, &self.key_file) {
            (Some(_), None) => wrong("certificateFile", "given without keyFile"),
            (None, Some(_)) => wrong("keyFile", "given without certificateFile"),
            _ => {}
        }
    }

    /// For a cluster.
    pub(super) fn meant(&self) -> Option<ClusterTls> {
        let names = self.subject_alt_names.iter().flatten();
        let names: Vec<_> = names.filter_map(|text| PeerName::parse(text).ok()).collect();
        if self.is_mesh() {
            return Some(ClusterTls::Mesh(names));
        }
        let file = |path: &Option<String>| path.as_ref().map(|path| DataSource::File(path.into()));
        let trust = match (file(&self.ca_file), &self.ca_certificates) {
            (Some(file), _) => Trust::Ca(file),
            (None, Some(pem)) => Trust::Ca(DataSource::Inline(pem.clone().into_bytes())),
            (None, None) => Trust::System,
        };
        let identity = match (file(&self.certificate_file), file(&self.key_file)) {
            (Some(certificate), Some(key)) => Some(Identity::Pair { certificate, key }),
            _ => None,
        };
        Some(ClusterTls::Originate(Box::new(UpstreamTls {
            server_name: self.hostname.clone(),
            trust,
            crl: file(&self.crl_file),
            names,
            identity,
            min_version: self.oldest(),
            cipher_suites: self.suites().unwrap_or_default(),
        })))
    }
}
