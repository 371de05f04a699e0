//! What a request says of its host, made comparable.

use std::borrow::Cow;
use std::net::Ipv6Addr;

/// Why a host cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// Nothing there.
    #[error("it is empty")]
    Empty,
    /// `user@host`.
    #[error("it carries user information")]
    UserInfo,
    /// Something that is no host.
    #[error("it has a character that no host name has")]
    Character,
    /// More than the one of a fully qualified name.
    #[error("it ends with several dots")]
    Dots,
    /// Not a number below 65536.
    #[error("its port is no number from 0 to 65535")]
    Port,
}

/// Lower case, without port and trailing dot. Borrows if there is nothing to change. IPv6 literals keep their
/// brackets.
///
/// # Errors
/// If it is no `host` or `host:port` (RFC 9110 §7.2, RFC 3986 §3.2.2).
pub fn normalise(host: &str) -> Result<Cow<'_, str>, HostError> {
    let (name, port) = split_port(host)?;
    if port.is_some_and(|p| {
        !p.is_empty() && (!p.bytes().all(|b| b.is_ascii_digit()) || p.parse::<u16>().is_err())
    }) {
        return Err(HostError::Port);
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() {
        return Err(HostError::Empty);
    }
    // Nobody is called so, and without one dot it would be another host than without two.
    if name.ends_with('.') {
        return Err(HostError::Dots);
    }
    if name.contains('@') {
        return Err(HostError::UserInfo);
    }
    let usable = match name.strip_prefix('[') {
        Some(literal) => literal.strip_suffix(']').is_some_and(|l| l.parse::<Ipv6Addr>().is_ok()),
        None => name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')),
    };
    if !usable {
        return Err(HostError::Character);
    }
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        return Ok(Cow::Owned(name.to_ascii_lowercase()));
    }
    Ok(Cow::Borrowed(name))
}

fn split_port(host: &str) -> Result<(&str, Option<&str>), HostError> {
    if host.starts_with('[') {
        let end = host.find(']').ok_or(HostError::Character)? + 1;
        return match host[end..].strip_prefix(':') {
            Some(port) => Ok((&host[..end], Some(port))),
            None if end == host.len() => Ok((host, None)),
            None => Err(HostError::Character),
        };
    }
    Ok(match host.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    })
}

/// The service that a normalised host means: `orders` or `orders.weft`. `None` if it can be no service.
pub fn service(host: &str) -> Option<&str> {
    let name = host.strip_suffix(".weft").unwrap_or(host);
    crate::config::check_service_name(name).is_ok().then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_case_and_trailing_dot_do_not_matter() {
        for host in ["orders", "orders:80", "ORDERS", "Orders.:8080", "orders.", "orders:"] {
            assert_eq!(normalise(host).unwrap(), "orders", "{host}");
        }
        assert!(matches!(normalise("orders:80").unwrap(), Cow::Borrowed(_)), "nothing allocated");
        assert_eq!(normalise("[::1]:80").unwrap(), "[::1]");
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for (host, error) in [
            ("", HostError::Empty),
            (":80", HostError::Empty),
            (".", HostError::Empty),
            ("..", HostError::Dots),
            ("orders..:80", HostError::Dots),
            ("user@orders", HostError::UserInfo),
            ("orders/x", HostError::Character),
            ("orders, other", HostError::Character),
            ("or ders", HostError::Character),
            ("[::1", HostError::Character),
            ("[::1]x", HostError::Character),
            ("[]", HostError::Character),
            ("[zz]", HostError::Character),
            ("[::1%25eth0]", HostError::Character),
            ("[1.2.3.4]", HostError::Character),
            ("\u{f6}rders", HostError::Character),
            ("orders:x", HostError::Port),
            ("orders:+80", HostError::Port),
            ("orders:80:80", HostError::Port),
            ("orders:65536", HostError::Port),
        ] {
            assert_eq!(normalise(host), Err(error), "{host}");
        }
    }

    #[test]
    fn services_are_bare_names_or_under_weft() {
        assert_eq!(service("orders"), Some("orders"));
        assert_eq!(service("orders.weft"), Some("orders"));
        assert_eq!(service("orders.example.com"), None);
        assert_eq!(service("127.0.0.1"), None);
    }
}
