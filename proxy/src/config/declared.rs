//! Listeners declared for a service: `ADDRESS=SERVICE[,OPTION=VALUE…]`, for flags and files alike.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::check_service_name;
use crate::listener::proxy_protocol::{Network, Version};

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
        parse(text, "tcp").map(Self).map_err(|why| {
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
    Ok(Declared { at, takes, accept_proxy: options.accept_proxy, send_proxy: options.send_proxy })
}

#[derive(Default)]
struct Options<'a> {
    protocol: Option<&'a str>,
    mode: Option<u32>,
    accept_proxy: Vec<Network>,
    send_proxy: Option<Version>,
    domain: Option<String>,
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
            _ => {
                return Err(format!(
                    "option {key:?} is unknown; allowed are protocol, mode, accept-proxy, send-proxy and domain"
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
        ] {
            let error = text.parse::<Declared>().unwrap_err();
            assert!(error.contains(part) && error.contains("ADDRESS=SERVICE"), "{text}: {error}");
        }
    }
}
