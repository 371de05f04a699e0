//! TLS on all ports of a configuration that take it.

use std::collections::HashMap;

use super::door::DoorTls;
use super::live::Certificates;
use crate::config::{Declared, PortTls, ProxyConfig, Takes};
use crate::error::StartError;

/// See the module.
pub(crate) struct PortsTls {
    /// Where peers send calls.
    pub inbound: Option<DoorTls>,
    /// Listeners of the file, by name.
    pub listeners: HashMap<String, DoorTls>,
    /// Ports and sockets of single services, in their order.
    pub upstreams: Vec<Option<DoorTls>>,
}

impl PortsTls {
    /// Loads all certificates.
    ///
    /// # Errors
    /// Names the port, the file and what is wrong with it.
    pub fn load(config: &ProxyConfig, certificates: &Certificates) -> Result<Self, StartError> {
        let unusable = |what, why| StartError::Tls { what, why };
        let http = |what: &str, port: &PortTls| DoorTls::terminate(what, port, HTTP, certificates);
        let inbound = config.inbound_tls.as_ref().map(|port| http("inbound", port)).transpose();
        let inbound = inbound.map_err(|why| unusable("inbound", why))?;
        let mut listeners = HashMap::new();
        for listener in config.static_config.iter().flat_map(|file| &file.listeners) {
            let port = listener.tls.as_ref().map(|tls| tls.port()).transpose();
            let what = format!("listener {}", listener.name);
            let door = port.and_then(|port| port.map(|port| http(&what, &port)).transpose());
            let door = door.map_err(|why| unusable("listener", format!("{}: {why}", listener.name)))?;
            listeners.extend(door.map(|door| (listener.name.clone(), door)));
        }
        let upstream = |one: &Declared| {
            let Some(port) = &one.tls else { return Ok(None) };
            let what = format!("upstream {}={}", one.at, one.service());
            let alpn = if matches!(one.takes, Takes::Http(_)) { HTTP } else { &[] };
            let door = DoorTls::terminate(&what, port, alpn, certificates);
            door.map(Some).map_err(|why| unusable("upstream", format!("{}={}: {why}", one.at, one.service())))
        };
        let upstreams = config.upstreams.iter().map(upstream).collect::<Result<_, _>>()?;
        Ok(Self { inbound, listeners, upstreams })
    }
}

/// What is offered by ALPN (RFC 7301).
const HTTP: &[&[u8]] = &[b"h2", b"http/1.1"];
