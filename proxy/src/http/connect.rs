//! CONNECT (RFC 9110 §9.3.6): a tunnel to an endpoint of a service, for whoever uses the sidecar as HTTP proxy.
//!
//! The target has to be a service. An address is none: through an open proxy whoever can reach it reaches everything
//! that it can, beginning with what listens on its loopback (and the cloud's metadata, on a link-local address).

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

use h2::ext::Protocol;
use http::{Response, StatusCode, request};

use super::body::ResponseBody;
use super::context::{Context, Side};
use super::error::RequestError;
use super::guarded;
use super::resolve;
use super::target::Target;
use crate::listener::connection::Connection;
use crate::route::host;
use crate::tcp::forward;

/// Answers 200 once an endpoint has taken a connection, which this one leads to from then on.
///
/// # Errors
/// If the target is none, or no service, or none of its endpoints takes a connection.
pub(crate) async fn respond(
    ctx: &Rc<Context>,
    connection: &Connection,
    head: &mut request::Parts,
) -> Result<Response<ResponseBody>, RequestError> {
    if !matches!(ctx.side, Side::Outbound { to: None, .. }) || head.extensions.get::<Protocol>().is_some() {
        // An extended CONNECT that has come so far is for a protocol that is not passed on.
        return Err(RequestError::Connect);
    }
    let target = target(head)?;
    let started = Instant::now();
    let cluster = resolve::named(ctx, &target).await?;
    if let Some(gate) = guarded::gate(ctx, &cluster) {
        let asked = guarded::Asked { connection, target: &target, path: Some(""), seen: None, started };
        guarded::admit(ctx, &cluster, gate, head, asked)?;
    }
    let metrics = cluster.clone();
    let opened = forward::open(ctx, cluster, connection.client()).await;
    let status = match &opened {
        Ok(_) => StatusCode::OK,
        Err(error) => super::rescue::status(error).0,
    };
    metrics.shared.metrics.answered(status, started.elapsed());
    Ok(Response::new(ResponseBody::Switched(Some(Box::new(opened?)))))
}

/// The service that a tunnel is asked to; its port is that of its endpoints.
fn target(head: &request::Parts) -> Result<Target, RequestError> {
    let authority = head.uri.authority().filter(|a| a.port_u16().is_some());
    let authority = authority.ok_or_else(|| RequestError::ConnectTarget(shortened(&head.uri.to_string())))?;
    let refused = |why| Err(RequestError::ConnectRefused { target: shortened(authority.as_str()), why });
    if let Some(why) = address(authority.host()) {
        return refused(why);
    }
    let host = host::normalise(authority.as_str())
        .map_err(|why| RequestError::BadHost { host: shortened(authority.as_str()), why })?;
    if host::service(&host).is_none() {
        return refused("it is the name of no service");
    }
    Ok(Target { authority: authority.to_string(), host: host.into_owned() })
}

/// What kind of address a host is, if it is one.
fn address(host: &str) -> Option<&'static str> {
    let host = host.trim_end_matches('.');
    if host.eq_ignore_ascii_case("localhost") || host.to_ascii_lowercase().ends_with(".localhost") {
        return Some("it is the loopback of this machine");
    }
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let ip: IpAddr = match bare.parse() {
        Ok(ip) => ip,
        // What resolvers take for an IPv4 address too: 127.1, 0x7f000001, 2130706433.
        Err(_) => {
            let last = bare.rsplit('.').next().unwrap_or_default();
            let number = last.strip_prefix("0x").or(last.strip_prefix("0X")).map_or_else(
                || !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()),
                |hex| hex.bytes().all(|b| b.is_ascii_hexdigit()),
            );
            return number.then_some("it is an address");
        }
    };
    Some(match ip.to_canonical() {
        ip if ip.is_loopback() => "it is the loopback of this machine",
        ip if ip.is_unspecified() => "it is the loopback of this machine",
        IpAddr::V4(ip) if ip.is_link_local() => "it is a link-local address",
        IpAddr::V6(ip) if ip.is_unicast_link_local() => "it is a link-local address",
        _ => "it is an address",
    })
}

fn shortened(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use http::{Method, Request};

    use super::*;

    fn target_of(uri: &str) -> Result<Target, RequestError> {
        let request = Request::builder().method(Method::CONNECT).uri(uri).body(()).unwrap();
        target(&request.into_parts().0)
    }

    #[test]
    fn a_service_with_a_port_is_a_target() {
        for uri in ["orders:443", "Orders:1", "orders.weft:80"] {
            assert_eq!(target_of(uri).unwrap().host.trim_end_matches(".weft"), "orders", "{uri}");
        }
    }

    #[test]
    fn addresses_and_names_that_are_no_service_are_refused_with_their_kind() {
        for (uri, part) in [
            ("127.0.0.1:80", "loopback"),
            ("127.8.8.8:80", "loopback"),
            ("[::1]:80", "loopback"),
            ("[::ffff:127.0.0.1]:80", "loopback"),
            ("0.0.0.0:80", "loopback"),
            ("[::]:80", "loopback"),
            ("localhost:80", "loopback"),
            ("LOCALHOST:80", "loopback"),
            ("app.localhost:80", "loopback"),
            ("169.254.169.254:80", "link-local"),
            ("[fe80::1]:80", "link-local"),
            ("[::ffff:169.254.169.254]:80", "link-local"),
            ("10.0.0.1:22", "an address"),
            ("[2001:db8::1]:22", "an address"),
            ("127.1:80", "an address"),
            ("2130706433:80", "an address"),
            ("0x7f000001:80", "an address"),
            ("example.com:443", "no service"),
        ] {
            let error = target_of(uri).unwrap_err();
            assert!(matches!(error, RequestError::ConnectRefused { .. }), "{uri}: {error}");
            assert!(error.to_string().contains(part), "{uri}: {error}");
        }
    }

    #[test]
    fn a_target_without_a_port_is_none() {
        for uri in ["orders", "http://orders/"] {
            assert!(matches!(target_of(uri), Err(RequestError::ConnectTarget(_))), "{uri}");
        }
    }
}
