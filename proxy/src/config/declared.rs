//! Listeners declared for a service: `ADDRESS=SERVICE[,OPTION=VALUE…]`, for flags and files alike.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{PortTls, check_service_name, listener_tls};
use crate::proxy_protocol::{Network, Version};

/// Owner and group of a Unix socket may use it, unless told otherwise: with a port, anybody on the machine may.
const MODE_DEFAULT: u32 = 0o660;

/// A port or socket of its own for one service, or for those that TLS clients name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Declared {
    /// Where it listens.
    pub at: ListenAt,
    /// What it takes, and for whom.
    pub takes: Takes,
    /// From these it takes connections only with a PROXY protocol header.
    pub accept_proxy: Vec<Network>,
    /// Tell endpoints who the client is.
    pub send_proxy: Option<Version>,
    /// Terminates TLS; plaintext without.
    pub tls: Option<PortTls>,
}

/// A port or a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListenAt {
    /// Port 0 is any free one.
    Tcp(SocketAddr),
    /// With the permissions of its file.
    Unix {
        /// A file that is made, in place of one that nobody answers on.
        path: PathBuf,
        /// Such as 0o660.
        mode: u32,
    },
}

impl fmt::Display for ListenAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Unix { path, .. } => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What a declared listener takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Takes {
    /// Requests for one service, whatever their host.
    Http(String),
    /// Bytes for one service.
    Tcp(String),
    /// TLS for the service that its client names (SNI); the bytes pass as they are.
    Tls {
        /// `orders.DOMAIN` is the service `orders`; without, `orders` and `orders.weft` are.
        domain: Option<String>,
    },
}

impl FromStr for Declared {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text, "http").map_err(|why| {
            format!(
                "{text:?}: {why}; expected ADDRESS=SERVICE[,OPTION=VALUE…], such as 127.0.0.1:9191=orders"
            )
        })
    }
}

/// The same for bytes, where nothing else is possible.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct DeclaredTcp(pub Declared);

impl FromStr for DeclaredTcp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = parse(text, "tcp").and_then(|one| match one.tls {
            Some(_) => Err("cert is for upstream: peers come over TLS with mesh-cert".to_owned()),
            None => Ok(Self(one)),
        });
        parsed.map_err(|why| {
            format!("{text:?}: {why}; expected IP:PORT=SERVICE[,OPTION=VALUE…], such as 10.0.0.7:15432=db")
        })
    }
}

impl TryFrom<String> for DeclaredTcp {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

fn parse(text: &str, default: &str) -> Result<Declared, String> {
    let mut parts = text.split(',');
    let first = parts.next().unwrap_or_default();
    let (address, service) = first.split_once('=').ok_or("it has no =")?;
    let mut options = Options::default();
    for part in parts {
        let (key, value) = part.split_once('=').ok_or_else(|| format!("option {part:?} has no ="))?;
        options.set(key, value)?;
    }
    let at = match address.strip_prefix("unix:") {
        Some(path) if !path.starts_with('/') => return Err(format!("socket {path:?} is no absolute path")),
        Some(path) => ListenAt::Unix { path: path.into(), mode: options.mode.unwrap_or(MODE_DEFAULT) },
        None if options.mode.is_some() => return Err("mode is for Unix sockets".to_owned()),
        None => ListenAt::Tcp(
            address
                .parse()
                .map_err(|_| format!("{address:?} is no address: IP:PORT, [IP]:PORT or unix:/PATH are"))?,
        ),
    };
    let protocol = options.protocol.unwrap_or(default);
    let takes = match (protocol, service) {
        ("tls", "*") => Takes::Tls { domain: options.domain },
        ("tls", _) => return Err("with protocol=tls the service is *: clients name it".to_owned()),
        (_, "*") => return Err("* needs protocol=tls, by which clients name the service".to_owned()),
        (_, name) => {
            check_service_name(name).map_err(|why| format!("service {name:?} {why}"))?;
            if options.domain.is_some() {
                return Err("domain needs protocol=tls".to_owned());
            }
            match protocol {
                "tcp" => Takes::Tcp(name.to_owned()),
                _ => Takes::Http(name.to_owned()),
            }
        }
    };
    if options.send_proxy.is_some() && matches!(takes, Takes::Http(_)) {
        return Err(
            "send-proxy is for protocol=tcp and tls: requests of many clients share connections, and say \
                    whose they are in x-forwarded-for"
                .to_owned(),
        );
    }
    let tls = listener_tls::of_keys(
        "",
        (options.certs, options.keys),
        (options.client_ca, options.client_crl, options.client_certificates),
        (options.min_version, options.cipher_suites),
    )?;
    if tls.is_some() && matches!(takes, Takes::Tls { .. }) {
        return Err("cert is for protocol=http and tcp: with tls the endpoint has the certificate".to_owned());
    }
    Ok(Declared { at, takes, accept_proxy: options.accept_proxy, send_proxy: options.send_proxy, tls })
}

#[derive(Default)]
struct Options<'a> {
    protocol: Option<&'a str>,
    mode: Option<u32>,
    accept_proxy: Vec<Network>,
    send_proxy: Option<Version>,
    domain: Option<String>,
    /// Each certificate with its key, in the same order.
    certs: Vec<PathBuf>,
    keys: Vec<PathBuf>,
    client_ca: Option<PathBuf>,
    client_crl: Option<PathBuf>,
    client_certificates: Option<&'a str>,
    min_version: Option<&'a str>,
    cipher_suites: Option<&'a str>,
}

impl<'a> Options<'a> {
    fn set(&mut self, key: &str, value: &'a str) -> Result<(), String> {
        let earlier = match key {
            "protocol" if !["http", "tcp", "tls"].contains(&value) => {
                return Err(format!("protocol {value:?} is unknown; allowed are http, tcp and tls"));
            }
            "protocol" => self.protocol.replace(value).is_some(),
            "mode" => {
                let mode = u32::from_str_radix(value, 8).ok().filter(|m| *m <= 0o777);
                let mode = mode.ok_or_else(|| format!("mode {value:?} is none, such as 0660"))?;
                self.mode.replace(mode).is_some()
            }
            "accept-proxy" => {
                let earlier = !self.accept_proxy.is_empty();
                // Commas divide options.
                for network in value.split('+') {
                    self.accept_proxy.push(network.parse().map_err(|why| format!("accept-proxy: {why}"))?);
                }
                earlier
            }
            "send-proxy" => {
                let version = value.parse().map_err(|why| format!("send-proxy {value:?}: {why}"))?;
                self.send_proxy.replace(version).is_some()
            }
            "domain" => {
                let domain = value.trim_matches('.').to_ascii_lowercase();
                if domain.is_empty() {
                    return Err(format!("domain {value:?} is none, such as apps.example"));
                }
                self.domain.replace(domain).is_some()
            }
            "cert" | "key" | "client-ca" | "client-crl" if value.is_empty() => {
                return Err(format!("{key} names no file"));
            }
            "cert" | "key" => {
                let files = if key == "cert" { &mut self.certs } else { &mut self.keys };
                files.push(value.into());
                false
            }
            "client-ca" => self.client_ca.replace(value.into()).is_some(),
            "client-crl" => self.client_crl.replace(value.into()).is_some(),
            "client-certificates" => self.client_certificates.replace(value).is_some(),
            "min-version" => self.min_version.replace(value).is_some(),
            "cipher-suites" => self.cipher_suites.replace(value).is_some(),
            _ => {
                return Err(format!(
                    "option {key:?} is unknown; allowed are protocol, mode, accept-proxy, send-proxy, domain, cert, key, \
                     client-ca, client-crl, client-certificates, min-version and cipher-suites"
                ));
            }
        };
        if earlier { Err(format!("{key} is given twice")) } else { Ok(()) }
    }
}

impl Declared {
    /// Whom it is for; `*` where clients say.
    pub fn service(&self) -> &str {
        match &self.takes {
            Takes::Http(service) | Takes::Tcp(service) => service,
            Takes::Tls { .. } => "*",
        }
    }

    /// In one word.
    pub fn protocol(&self) -> &'static str {
        match &self.takes {
            Takes::Http(_) => "http",
            Takes::Tcp(_) => "tcp",
            Takes::Tls { .. } => "tls",
        }
    }
}

impl TryFrom<String> for Declared {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// A listener as it came to be, for people and the admin port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BoundListener {
    /// The real address, or `unix:/PATH`.
    pub address: String,
    /// `*` where clients say.
    pub service: String,
    /// `http`, `tcp` or `tls`.
    pub protocol: &'static str,
}

#[cfg(test)]
mod tests {
    use weft_core::tls::{ClientCerts, Identity};
    use weft_xds_proto::resource::cluster::tls::{CipherSuite, TlsVersion};

    use super::*;

    fn declared(text: &str) -> Declared {
        text.parse().unwrap()
    }

    #[test]
    fn a_listener_has_an_address_a_service_and_options() {
        let plain = declared("127.0.0.1:9191=orders");
        assert_eq!(plain.at, ListenAt::Tcp("127.0.0.1:9191".parse().unwrap()));
        assert_eq!(plain.takes, Takes::Http("orders".into()));
        let tcp = declared("[::1]:5432=db,protocol=tcp,send-proxy=v2,accept-proxy=10.0.0.0/8+::1");
        assert_eq!(tcp.at, ListenAt::Tcp("[::1]:5432".parse().unwrap()));
        assert_eq!((tcp.takes, tcp.send_proxy), (Takes::Tcp("db".into()), Some(Version::V2)));
        assert_eq!(tcp.accept_proxy.len(), 2);
        let unix = declared("unix:/run/orders.sock=orders,mode=0600");
        assert_eq!(unix.at, ListenAt::Unix { path: "/run/orders.sock".into(), mode: 0o600 });
        assert_eq!(declared("unix:/a=b").at, ListenAt::Unix { path: "/a".into(), mode: 0o660 });
        let DeclaredTcp(bytes) = "10.0.0.7:15432=db".parse().unwrap();
        assert_eq!(bytes.takes, Takes::Tcp("db".into()));
        let tls = declared("0.0.0.0:443=*,protocol=tls,domain=.Apps.Example");
        assert_eq!(tls.takes, Takes::Tls { domain: Some("apps.example".into()) });
    }

    #[test]
    fn a_listener_with_certificates_ends_tls() {
        assert_eq!(declared("127.0.0.1:1=orders").tls, None);
        let two = declared(
            "127.0.0.1:1=orders,cert=/a,key=/b,cert=/c,key=/d,client-ca=/e,client-crl=/f,client-certificates=optional,min-version=1.3,\
             cipher-suites=TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256",
        );
        let pair = |cert: &str, key: &str| Identity { cert: cert.into(), key: key.into() };
        let tls = PortTls {
            certificates: vec![pair("/a", "/b"), pair("/c", "/d")],
            clients: ClientCerts::Asked("/e".into()),
            client_crl: Some("/f".into()),
            min_version: TlsVersion::Tls13,
            cipher_suites: ["TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256"]
                .map(|name| CipherSuite::parse(name).unwrap())
                .to_vec(),
        };
        assert_eq!(two.tls, Some(tls));
        let error = "10.0.0.7:15432=db,cert=/a,key=/b".parse::<DeclaredTcp>().unwrap_err();
        assert!(error.contains("mesh-cert"), "{error}");
    }

    #[test]
    fn a_wrong_listener_says_what_is_wrong_and_what_is_expected() {
        for (text, part) in [
            ("orders", "no ="),
            ("orders=127.0.0.1:1", "no address"),
            ("localhost:1=orders", "no address"),
            ("127.0.0.1:1=Orders", "has 'O'"),
            ("127.0.0.1:1=orders,tcp", "has no ="),
            ("127.0.0.1:1=orders,protocol=udp", "udp"),
            ("127.0.0.1:1=orders,protocol=tcp,protocol=tcp", "twice"),
            ("127.0.0.1:1=orders,mode=0600", "Unix"),
            ("unix:/a=orders,mode=9", "mode"),
            ("unix:a=orders", "absolute"),
            ("127.0.0.1:1=orders,send-proxy=v2", "x-forwarded-for"),
            ("127.0.0.1:1=orders,protocol=tcp,send-proxy=2", "v1 or v2"),
            ("127.0.0.1:1=orders,accept-proxy=ten", "IP/BITS"),
            ("127.0.0.1:1=orders,protocol=tls", "clients name it"),
            ("127.0.0.1:1=*", "protocol=tls"),
            ("127.0.0.1:1=orders,domain=x", "protocol=tls"),
            ("127.0.0.1:1=orders,colour=red", "colour"),
            ("127.0.0.1:1=orders,cert=/a", "cert names 1 files and key 0"),
            ("127.0.0.1:1=orders,cert=,key=/b", "cert names no file"),
            ("127.0.0.1:1=orders,client-ca=/c", "client-ca needs cert and key"),
            ("127.0.0.1:1=orders,min-version=1.3", "min-version needs cert and key"),
            ("127.0.0.1:1=orders,cert=/a,key=/b,client-crl=/c", "client-crl needs client-ca"),
            ("127.0.0.1:1=orders,cipher-suites=TLS_AES_256_GCM_SHA384", "cipher-suites needs cert and key"),
            (
                "127.0.0.1:1=orders,cert=/a,key=/b,cipher-suites=RC4",
                "cipher-suites: \"RC4\" is unknown or too weak",
            ),
            ("127.0.0.1:1=orders,cert=/a,key=/b,min-version=1.1", "allowed are 1.2 and 1.3"),
            ("127.0.0.1:1=orders,cert=/a,key=/b,client-certificates=optional", "needs client-ca"),
            ("127.0.0.1:1=*,protocol=tls,cert=/a,key=/b", "the endpoint has the certificate"),
        ] {
            let error = text.parse::<Declared>().unwrap_err();
            assert!(error.contains(part) && error.contains("ADDRESS=SERVICE"), "{text}: {error}");
        }
    }
}
