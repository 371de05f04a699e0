//! Connections of others that were on their way to the port of a local app, and that the kernel has redirected here
//! (`weft proxy install-redirect --inbound-port`): each goes in by the door of its service, so that nobody gets around it.

use std::net::SocketAddr;
use std::rc::Rc;

use super::captured::{CaptureError, original};
use super::{Door, Entry, Takes};
use crate::listener::stream::Stream;
use crate::tls::door::DoorTls;

/// A local service, and how it is entered.
#[derive(Debug, Clone)]
pub(crate) struct Local {
    pub service: String,
    /// Where its app listens.
    pub addr: SocketAddr,
    pub entry: Entry,
}

impl Door {
    /// See the module. A port that is no service's is refused: the rules name it, so nobody is to get past the sidecar.
    pub(super) async fn captured_inbound(&self, local: &[Local], stream: Stream, peer: SocketAddr) {
        let found = match original(&stream) {
            None => Err(self.refused("not_captured", CaptureError::NotCaptured)),
            Some(to) => match find(local, to) {
                None => Err(self.refused("no_service", CaptureError::NoService(to))),
                Some(local) => Ok((local, to)),
            },
        };
        match found {
            Ok((local, to)) => self.of(local).serve(stream, peer, to).await,
            Err(error) => tracing::debug!(%peer, %error, "connection refused"),
        }
    }

    fn of(&self, local: &Local) -> Self {
        let tls = match local.entry.takes {
            Takes::Tcp(_) => self.tls.as_ref().and_then(DoorTls::for_bytes),
            _ => self.tls.clone(),
        };
        let ctx = Rc::new(self.ctx.toward(&local.service));
        Self { ctx, entry: local.entry.clone(), tls, ..self.clone() }
    }
}

/// Apps listen on loopback, or on one address of a machine that has several: their port is what counts, and the address
/// only where two have the same.
fn find(local: &[Local], to: SocketAddr) -> Option<&Local> {
    let at_port = || local.iter().filter(|local| local.addr.port() == to.port());
    at_port().find(|local| local.addr == to).or_else(|| at_port().next())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(service: &str, addr: &str) -> Local {
        Local { service: service.to_owned(), addr: addr.parse().unwrap(), entry: Entry::http() }
    }

    #[test]
    fn a_port_says_which_service_is_meant_and_the_address_where_two_have_it() {
        let all = [local("orders", "127.0.0.1:80"), local("a", "10.0.0.1:81"), local("b", "10.0.0.2:81")];
        for (to, service) in [
            ("10.0.0.9:80", Some("orders")),
            ("[fd00::1]:80", Some("orders")),
            ("10.0.0.2:81", Some("b")),
            ("10.0.0.3:81", Some("a")),
            ("127.0.0.1:82", None),
        ] {
            let found = find(&all, to.parse().unwrap()).map(|local| local.service.as_str());
            assert_eq!(found, service, "{to}");
        }
    }
}
