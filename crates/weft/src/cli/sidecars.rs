//! Where the sidecars of a service's instances are asked: instances tell of it in a label.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use weft_client::Client;
use weft_client::proto::weft as pb;
use weft_core::tls::spiffe::SpiffeId;
use weft_proxy::health::ADMIN_LABEL;
use weft_proxy::tls::mesh::SPIFFE_LABEL;

use super::admin::Admin;
use crate::failure::Failure;

/// An instance with its sidecar.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) id: String,
    pub(crate) address: Option<SocketAddr>,
    pub(crate) identity: Option<SpiffeId>,
    /// Or why it cannot be asked from here.
    pub(crate) sidecar: Result<Admin, String>,
}

impl From<&pb::Endpoint> for Instance {
    fn from(endpoint: &pb::Endpoint) -> Self {
        let address = endpoint.address.parse().ok();
        let identity = endpoint.metadata.get(SPIFFE_LABEL).and_then(|text| SpiffeId::parse(text).ok());
        let sidecar = sidecar(&endpoint.metadata, address, is_of_this_machine);
        let sidecar = sidecar.map_err(|why| format!("{} {why}", endpoint.instance_id));
        Self { id: endpoint.instance_id.clone(), address, identity, sidecar }
    }
}

/// The instances of a service, those that pass their checks first.
pub(crate) async fn of(client: &Client, service: &str) -> Result<Vec<Instance>, Failure> {
    let mut endpoints = client.mesh().endpoints(service).await?;
    endpoints.sort_by_key(|endpoint| endpoint.health != "passing");
    Ok(endpoints.iter().map(Instance::from).collect())
}

/// The instances of whatever service that are advertised with an identity.
pub(crate) async fn with_identity(client: &Client, id: &SpiffeId) -> Result<Vec<Instance>, Failure> {
    for service in client.mesh().services().await? {
        let mut all = of(client, &service.name).await?;
        all.retain(|instance| instance.identity.as_ref() == Some(id));
        if !all.is_empty() {
            return Ok(all);
        }
    }
    Ok(Vec::new())
}

fn sidecar(
    labels: &HashMap<String, String>,
    address: Option<SocketAddr>,
    is_here: impl Fn(IpAddr) -> bool,
) -> Result<Admin, String> {
    let told = labels.get(ADMIN_LABEL).ok_or("has no sidecar that tells of itself")?;
    let admin: SocketAddr = told.parse().map_err(|_| format!("has {told:?} as its sidecar's address"))?;
    if admin.ip().is_loopback() && !address.is_some_and(|address| is_here(address.ip())) {
        let machine = address.map_or("its machine".to_owned(), |address| address.ip().to_string());
        return Err(format!(
            "has a sidecar that is asked on {machine} alone (--admin {admin} of weft proxy)"
        ));
    }
    Ok(Admin(admin))
}

/// Whatever address can be bound is ours.
fn is_of_this_machine(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(admin: &str, address: &str) -> Result<SocketAddr, String> {
        let labels = [(ADMIN_LABEL.to_owned(), admin.to_owned())].into();
        let here = |ip: IpAddr| ip == IpAddr::from([10, 0, 0, 7]);
        sidecar(&labels, Some(address.parse().unwrap()), here).map(|admin| admin.0)
    }

    #[test]
    fn a_sidecar_on_loopback_is_asked_on_its_own_machine_alone() {
        assert_eq!(asked("127.0.0.1:15000", "10.0.0.7:80"), Ok("127.0.0.1:15000".parse().unwrap()));
        assert_eq!(asked("10.0.0.8:15000", "10.0.0.8:80"), Ok("10.0.0.8:15000".parse().unwrap()));
        let other = asked("127.0.0.1:15000", "10.0.0.8:80").unwrap_err();
        assert!(other.contains("on 10.0.0.8 alone"), "{other}");
        assert!(asked("nonsense", "10.0.0.7:80").unwrap_err().contains("\"nonsense\""));
        assert!(sidecar(&HashMap::new(), None, |_| true).unwrap_err().contains("has no sidecar"));
    }

    #[test]
    fn loopback_is_of_this_machine_and_a_documented_address_is_not() {
        assert!(is_of_this_machine([127, 0, 0, 1].into()));
        assert!(!is_of_this_machine([192, 0, 2, 1].into()));
    }
}
