//! Which service a TLS client wants, by the name in its first message (SNI, RFC 6066 §3). The message is read by the
//! parser of our TLS library and passed on unchanged: the handshake is with the endpoint.

use std::io;
use std::time::Duration;

use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::limits::CLIENT_HELLO_BYTES_MAX;
use crate::route::host;
use crate::telemetry::flag::Flag;

/// RFC 8446 §6.2.
const DECODE_ERROR: u8 = 50;
/// RFC 8446 §6.2.
pub(crate) const INTERNAL_ERROR: u8 = 80;
/// RFC 6066 §3.
pub(crate) const UNRECOGNIZED_NAME: u8 = 112;

/// Why it is not known which service is wanted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SniError {
    #[error("no TLS ClientHello: {0}")]
    NotTls(String),
    #[error("the TLS ClientHello has more than {CLIENT_HELLO_BYTES_MAX} bytes")]
    TooLarge,
    #[error("no TLS ClientHello within {0:?}")]
    Slow(Duration),
    #[error("the connection ended within its TLS ClientHello: {0}")]
    Ended(io::Error),
    #[error("the TLS client names no server (SNI)")]
    Nameless,
    #[error("the TLS client names {0:?}, which is the name of no service")]
    NoService(String),
}

impl SniError {
    /// In one word.
    pub fn flag(&self) -> Flag {
        match self {
            Self::NotTls(_) | Self::TooLarge => Flag::TlsMalformed,
            Self::Slow(_) | Self::Ended(_) => Flag::TlsIncomplete,
            Self::Nameless => Flag::TlsNoName,
            Self::NoService(_) => Flag::TlsNoService,
        }
    }

    /// What the client is told.
    pub fn alert(&self) -> u8 {
        match self {
            Self::NotTls(_) | Self::TooLarge => DECODE_ERROR,
            Self::Slow(_) | Self::Ended(_) => INTERNAL_ERROR,
            Self::Nameless | Self::NoService(_) => UNRECOGNIZED_NAME,
        }
    }
}

/// Reads a ClientHello into `seen`, which may have its beginning, and answers the name in it, in lower case.
///
/// # Errors
/// If there is none, or no name in it.
pub(crate) async fn read<S: AsyncRead + Unpin>(
    stream: &mut S,
    seen: &mut Vec<u8>,
    limit: Duration,
) -> Result<String, SniError> {
    let reading = async {
        let mut acceptor = Acceptor::default();
        let mut piece = [0; 4096];
        if let Some(name) = parse(&mut acceptor, seen)? {
            return name.ok_or(SniError::Nameless);
        }
        loop {
            let read = stream.read(&mut piece).await.map_err(SniError::Ended)?;
            if read == 0 {
                return Err(SniError::Ended(io::ErrorKind::UnexpectedEof.into()));
            }
            seen.extend_from_slice(&piece[..read]);
            if let Some(name) = parse(&mut acceptor, &piece[..read])? {
                return name.ok_or(SniError::Nameless);
            }
            if seen.len() > CLIENT_HELLO_BYTES_MAX {
                return Err(SniError::TooLarge);
            }
        }
    };
    tokio::time::timeout(limit, reading).await.map_err(|_| SniError::Slow(limit))?
}

/// One more piece. Answers the name, if there is one, once the message is complete.
fn parse(acceptor: &mut Acceptor, mut piece: &[u8]) -> Result<Option<Option<String>>, SniError> {
    let malformed = |why: String| SniError::NotTls(why);
    while !piece.is_empty() {
        // From memory; it takes less than all of it when its own buffer is full.
        let taken = acceptor.read_tls(&mut piece).map_err(|e| malformed(e.to_string()))?;
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let name = accepted.client_hello().server_name().map(str::to_ascii_lowercase);
                return Ok(Some(name));
            }
            Ok(None) if taken == 0 => return Err(malformed("it does not fit".to_owned())),
            Ok(None) => {}
            Err((error, _)) => return Err(malformed(error.to_string())),
        }
    }
    Ok(None)
}

/// `orders.DOMAIN` is the service `orders`; without a domain, `orders` and `orders.weft` are.
pub(crate) fn service(name: &str, domain: Option<&str>) -> Option<String> {
    let name = name.trim_end_matches('.');
    let service = match domain {
        Some(domain) => name.strip_suffix(domain)?.strip_suffix('.')?,
        None => host::service(name)?,
    };
    crate::config::check_service_name(service).ok()?;
    Some(service.to_owned())
}

/// An alert that ends a handshake, as a record of its own (RFC 8446 §5.1).
pub(crate) fn fatal(alert: u8) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, alert]
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::pki_types::ServerName;

    use super::*;

    /// What a client of our TLS library begins with.
    fn hello(name: &str) -> Vec<u8> {
        let config = weft_core::tls::client_config(None, &[b"h2"]).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = rustls::ClientConnection::new(Arc::clone(&config), name).unwrap();
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        bytes
    }

    async fn read_all(bytes: &[u8]) -> (Result<String, SniError>, Vec<u8>) {
        let (mut seen, mut stream) = (Vec::new(), bytes);
        let name = read(&mut stream, &mut seen, Duration::from_secs(5)).await;
        (name, seen)
    }

    #[tokio::test]
    async fn the_name_is_found_and_every_byte_kept() {
        let bytes = hello("Orders.weft");
        let (name, seen) = read_all(&bytes).await;
        assert_eq!(name.unwrap(), "orders.weft");
        assert_eq!(seen, bytes);
        let (name, _) = read_all(&hello("10.0.0.1")).await;
        assert!(matches!(name, Err(SniError::Nameless)), "{name:?}");
    }

    #[tokio::test]
    async fn a_name_is_found_in_whatever_pieces_it_comes() {
        let bytes = hello("orders.weft");
        let mut acceptor = Acceptor::default();
        let mut found = None;
        for byte in &bytes {
            if let Some(name) = parse(&mut acceptor, std::slice::from_ref(byte)).unwrap() {
                found = name;
            }
        }
        assert_eq!(found.as_deref(), Some("orders.weft"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_hello_or_too_large_or_too_slow_is_refused() {
        let whole = hello("orders.weft");
        for (bytes, flag) in [
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), Flag::TlsMalformed),
            (vec![0; 300], Flag::TlsMalformed),
            // An alert, and a handshake message that is another one.
            (vec![21, 3, 3, 0, 2, 1, 0], Flag::TlsMalformed),
            (vec![22, 3, 3, 0, 4, 2, 0, 0, 0], Flag::TlsMalformed),
            (whole[..whole.len() - 1].to_vec(), Flag::TlsIncomplete),
            (Vec::new(), Flag::TlsIncomplete),
        ] {
            let error = read_all(&bytes).await.0.unwrap_err();
            assert_eq!(error.flag(), flag, "{bytes:?}: {error}");
        }
        // Records of one byte each, of a message that would be huge.
        let mut drip = Vec::new();
        for _ in 0..CLIENT_HELLO_BYTES_MAX {
            drip.extend([22, 3, 3, 0, 1, 1]);
        }
        let error = read_all(&drip).await.0.unwrap_err();
        assert_eq!(error.flag(), Flag::TlsMalformed, "{error}");
        let (mut near, _far) = tokio::io::duplex(10);
        let slow = read(&mut near, &mut Vec::new(), Duration::from_secs(5)).await;
        assert!(matches!(slow, Err(SniError::Slow(_))));
    }

    #[test]
    fn names_are_services_of_the_mesh_or_of_a_domain() {
        let service = |name, domain| service(name, domain);
        assert_eq!(service("orders", None).as_deref(), Some("orders"));
        assert_eq!(service("orders.weft.", None).as_deref(), Some("orders"));
        assert_eq!(service("orders.example", None), None);
        let domain = Some("apps.example");
        assert_eq!(service("orders.apps.example", domain).as_deref(), Some("orders"));
        for other in ["orders", "apps.example", ".apps.example", "a.b.apps.example", "xapps.example"] {
            assert_eq!(service(other, domain), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_hello_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600), at in 0usize..300) {
            let mut changed = hello("orders.weft");
            for (i, byte) in bytes.iter().take(8).enumerate() {
                let len = changed.len();
                changed[(at + i) % len] ^= byte;
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            for bytes in [bytes, changed] {
                let (name, seen) = runtime.block_on(read_all(&bytes));
                prop_assert!(bytes.starts_with(&seen));
                if let Ok(name) = name {
                    prop_assert!(!name.is_empty());
                }
            }
        }
    }
}
