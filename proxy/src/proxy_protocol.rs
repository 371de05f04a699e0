//! The PROXY protocol, versions 1 and 2: a load balancer in front tells whose connection it passes on
//! (HAProxy's `proxy-protocol.txt`, §2).
//!
//! Our own reading of it, because it stands before everything else that a connection says: at most
//! [`PROXY_HEADER_BYTES_MAX`] are read, never a byte beyond the header, and what the specification does not allow is
//! refused. Whoever writes such a header chooses a client's address, so only trusted sources may (`accept-proxy`).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt};
pub use weft_xds_proto::resource::cluster::ProxyVersion as Version;

use crate::limits::PROXY_HEADER_BYTES_MAX;

/// What version 2 begins with: no other protocol's first bytes.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// What version 1 begins with.
const WORD: &[u8] = b"PROXY ";
/// Longest line of version 1, with its end.
const LINE_BYTES_MAX: usize = 107;
/// Signature, command, family and length.
const FIXED: usize = 16;

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// The connection is passed on for a client.
    Client {
        /// Who.
        source: SocketAddr,
        /// Whom it had connected to.
        destination: SocketAddr,
    },
    /// The load balancer's own, such as a health check, or of a kind without addresses: the connection's stay.
    Local,
}

/// Whose connection is passed on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Client {
    pub source: SocketAddr,
    /// Whom it had connected to.
    pub destination: SocketAddr,
    /// Never 0, and of no other connection of the same worker.
    pub connection: u64,
}

/// What an endpoint is told before anything else.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Announced {
    pub version: Version,
    /// None for a connection of this proxy itself.
    pub client: Option<Client>,
}

impl Announced {
    pub fn header(&self) -> Vec<u8> {
        match (self.client, self.version) {
            (Some(client), version) => write(version, client.source, client.destination),
            (None, Version::V1) => b"PROXY UNKNOWN\r\n".to_vec(),
            (None, Version::V2) => [&SIGNATURE[..], &[0x20, 0, 0, 0]].concat(),
        }
    }

    /// Never 0, and equal for connections that say the same in the name of the same one.
    pub fn sort(&self) -> u64 {
        let version = match self.version {
            Version::V1 => 1,
            Version::V2 => 2,
        };
        self.client.map_or(0, |client| client.connection) << 2 | version
    }
}

/// Why a connection is not served.
#[derive(Debug, thiserror::Error)]
pub enum ProxyHeaderError {
    /// Neither version's first bytes.
    #[error("the connection does not begin with a PROXY protocol header")]
    Missing,
    /// Version 1.
    #[error("the PROXY protocol line is malformed: {0}")]
    Line(&'static str),
    /// Version 2.
    #[error("the PROXY protocol header is malformed: {0}")]
    Binary(&'static str),
    /// [`PROXY_HEADER_BYTES_MAX`].
    #[error("the PROXY protocol header has {0} bytes, at most {PROXY_HEADER_BYTES_MAX} are allowed")]
    TooLarge(usize),
    /// It ended, or broke.
    #[error("the connection ended within its PROXY protocol header: {0}")]
    Io(#[from] io::Error),
}

/// Reads the header, and nothing behind it. The caller bounds the time.
///
/// # Errors
/// If there is none, or a malformed one; then nothing else of the connection can be trusted.
pub async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Header, ProxyHeaderError> {
    let mut seen = [0; PROXY_HEADER_BYTES_MAX];
    // Both versions' shortest headers are longer.
    for at in 0..SIGNATURE.len() {
        stream.read_exact(&mut seen[at..=at]).await?;
        let begun = &seen[..=at];
        if !SIGNATURE.starts_with(begun) && !WORD.starts_with(&begun[..begun.len().min(WORD.len())]) {
            return Err(ProxyHeaderError::Missing);
        }
    }
    let mut len = SIGNATURE.len();
    if seen[0] == WORD[0] {
        while !seen[..len].ends_with(b"\r\n") {
            if len == LINE_BYTES_MAX {
                return Err(ProxyHeaderError::Line("it is longer than 107 bytes"));
            }
            // Byte by byte, so that nothing behind the line is taken from the stream.
            stream.read_exact(&mut seen[len..=len]).await?;
            len += 1;
        }
        return line(&seen[..len - 2]);
    }
    stream.read_exact(&mut seen[len..FIXED]).await?;
    let whole = FIXED + usize::from(u16::from_be_bytes([seen[14], seen[15]]));
    let rest = seen.get_mut(FIXED..whole).ok_or(ProxyHeaderError::TooLarge(whole))?;
    stream.read_exact(rest).await?;
    binary(seen[12], seen[13], &seen[FIXED..whole])
}

/// A line of version 1, without its end.
fn line(line: &[u8]) -> Result<Header, ProxyHeaderError> {
    let bad = ProxyHeaderError::Line;
    let text = std::str::from_utf8(line).map_err(|_| bad("it is no text"))?;
    let mut words = text.split(' ');
    words.next();
    let family = words.next().unwrap_or_default();
    if family == "UNKNOWN" {
        // Whatever follows is to be ignored.
        return Ok(Header::Local);
    }
    let mut word = || words.next().ok_or(bad("it has fewer than six words"));
    let (source, destination, from, to) = (word()?, word()?, word()?, word()?);
    if words.next().is_some() {
        return Err(bad("it has more than six words"));
    }
    let ip = |text: &str| -> Result<IpAddr, ProxyHeaderError> {
        match family {
            "TCP4" => text.parse().map(IpAddr::V4).map_err(|_| bad("an address is no IPv4 address")),
            "TCP6" => text.parse().map(IpAddr::V6).map_err(|_| bad("an address is no IPv6 address")),
            _ => Err(bad("its family is none of TCP4, TCP6 and UNKNOWN")),
        }
    };
    let (source, destination) = (ip(source)?, ip(destination)?);
    Ok(Header::Client {
        source: SocketAddr::new(source, port(from)?),
        destination: SocketAddr::new(destination, port(to)?),
    })
}

fn port(text: &str) -> Result<u16, ProxyHeaderError> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
    let port = plain.then(|| text.parse().ok()).flatten();
    port.ok_or(ProxyHeaderError::Line("a port is no plain number from 0 to 65535"))
}

/// What follows the signature of version 2. Further fields (TLVs) behind the addresses are skipped.
fn binary(command: u8, family: u8, rest: &[u8]) -> Result<Header, ProxyHeaderError> {
    let bad = ProxyHeaderError::Binary;
    match command {
        0x20 => return Ok(Header::Local),
        0x21 => {}
        _ if command >> 4 != 2 => return Err(bad("its version is not 2")),
        _ => return Err(bad("its command is neither LOCAL nor PROXY")),
    }
    let short = bad("it is too short for its addresses");
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    match family {
        0x11 if rest.len() < 12 => Err(short),
        0x11 => {
            let ip = |at: usize| Ipv4Addr::new(rest[at], rest[at + 1], rest[at + 2], rest[at + 3]);
            Ok(Header::Client {
                source: SocketAddr::new(ip(0).into(), port(8)),
                destination: SocketAddr::new(ip(4).into(), port(10)),
            })
        }
        0x21 if rest.len() < 36 => Err(short),
        0x21 => {
            let ip = |at: usize| {
                let octets: [u8; 16] = rest[at..at + 16].try_into().unwrap_or_default();
                IpAddr::V6(Ipv6Addr::from(octets))
            };
            Ok(Header::Client {
                source: SocketAddr::new(ip(0), port(32)),
                destination: SocketAddr::new(ip(16), port(34)),
            })
        }
        // Unspecified, and Unix sockets: there is no address that anybody here could use.
        0x00 | 0x31 => Ok(Header::Local),
        0x12 | 0x22 | 0x32 => Err(bad("it is of datagrams")),
        _ => Err(bad("its family is unknown")),
    }
}

/// The header that says who the client is, for an endpoint that reads it.
pub fn write(version: Version, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let (from, to) = same_family(source, destination);
    match version {
        Version::V1 => {
            let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
            format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
        }
        Version::V2 => {
            let mut header = SIGNATURE.to_vec();
            header.push(0x21);
            match (from, to) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    header.extend([0x11, 0, 12]);
                    header.extend(from.octets());
                    header.extend(to.octets());
                }
                (from, to) => {
                    header.extend([0x21, 0, 36]);
                    header.extend(v6(from).octets());
                    header.extend(v6(to).octets());
                }
            }
            header.extend(source.port().to_be_bytes());
            header.extend(destination.port().to_be_bytes());
            header
        }
    }
}

/// A header has one family: an IPv4 address beside an IPv6 one is mapped.
fn same_family(source: SocketAddr, destination: SocketAddr) -> (IpAddr, IpAddr) {
    let (from, to) = (source.ip().to_canonical(), destination.ip().to_canonical());
    if from.is_ipv4() == to.is_ipv4() { (from, to) } else { (v6(from).into(), v6(to).into()) }
}

fn v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// A network, such as `10.0.0.0/8`; an address alone is one of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    ip: IpAddr,
    bits: u8,
}

impl Network {
    /// Of IPv4 addresses, or else of those of IPv6.
    pub const fn is_ipv4(&self) -> bool {
        self.ip.is_ipv4()
    }

    /// Whether an address is in it. An IPv4 address in IPv6 form is the IPv4 address.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.ip, ip.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                u32::from(net) & mask == u32::from(ip) & mask
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
                u128::from(net) & mask == u128::from(ip) & mask
            }
            _ => false,
        }
    }
}

impl std::str::FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("{text:?} is no network; expected IP or IP/BITS, such as 10.0.0.0/8");
        let (ip, bits) = match text.split_once('/') {
            Some((ip, bits)) => (ip, Some(bits)),
            None => (text, None),
        };
        let ip: IpAddr = ip.parse().map_err(|_| expected())?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let bits: u8 = match bits {
            None => most,
            // Numbers are read with a sign, too.
            Some(bits) if bits.starts_with('+') => return Err(expected()),
            Some(bits) => bits.parse().ok().filter(|b| *b <= most).ok_or_else(expected)?,
        };
        // What comes is compared in its own form.
        match (ip.to_canonical(), bits.checked_sub(96)) {
            (IpAddr::V4(_), _) if ip.is_ipv4() => Ok(Self { ip, bits }),
            (IpAddr::V4(ip), Some(bits)) => Ok(Self { ip: ip.into(), bits }),
            (IpAddr::V4(_), None) => Err(expected()),
            (IpAddr::V6(_), _) => Ok(Self { ip, bits }),
        }
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.ip, self.bits)
    }
}

#[cfg(test)]
mod tests;
