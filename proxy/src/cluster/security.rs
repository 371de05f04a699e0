//! How connections to the endpoints of a cluster are protected.
//!
//! | the cluster says | an endpoint | is spoken to |
//! |---|---|---|
//! | TLS as a client | any | over that |
//! | TLS with sidecars' identities | any | over that; with the ID that it is advertised with, if it is |
//! | TLS by labels | has those of an entry, of which the first counts | over what that says, else what stands beside all entries |
//! | nothing, and this sidecar has an identity | is advertised with an ID | over TLS with sidecars' identities, if the ID is of our trust domain |
//! | the same | from a file, or beside this sidecar | in plaintext |
//! | the same | another | in plaintext, or not at all in strict mode |
//!
//! Where all endpoints are sidecars, they are spoken to in HTTP/2, whatever the app behind them speaks.

use std::net::SocketAddr;
use std::sync::Arc;

use weft_core::tls::spiffe::SpiffeId;
use weft_xds_proto::resource::cluster::ClusterTls;
use weft_xds_proto::resource::cluster::tls::{PeerName, UpstreamTls};
use weft_xds_proto::resource::endpoint::{Endpoint, EndpointSource};

use crate::config_snapshot::ClusterConfig;
use crate::jwks::Sources;
use crate::policy::gate::Gate;
use crate::tls::client::ClientTls;
use crate::tls::live::Certificates;
use crate::tls::mesh::{Expected, MeshMode, MeshTls, SPIFFE_LABEL};
use crate::tls::secure::Secure;
use crate::upstream::connect::Place;

/// See the module.
#[derive(Debug, Clone, Default)]
pub enum Security {
    /// All in plaintext.
    #[default]
    Plain,
    /// TLS as a client.
    Originate(Arc<ClientTls>),
    /// By what each endpoint is.
    Each(Arc<Hops>),
}

/// Endpoints that are not all spoken to in the same way.
#[derive(Debug)]
pub struct Hops {
    mesh: Option<Arc<MeshTls>>,
    /// In order of addresses.
    endpoints: Box<[(SocketAddr, Hop)]>,
    all_peers: bool,
    all_originated: bool,
    /// What those are spoken to with that are servers of TLS.
    originated: Vec<Arc<ClientTls>>,
}

#[derive(Debug, Clone, PartialEq)]
enum Hop {
    Plain,
    Peer(Expected),
    Originate(Arc<ClientTls>),
    Refused(String),
}

/// What this sidecar has to protect connections with.
#[derive(Debug, Clone, Default)]
pub struct ProxyTls {
    /// All certificates in use.
    pub certificates: Arc<Certificates>,
    /// Its own identity, if it has one.
    pub mesh: Option<Arc<MeshTls>>,
    /// Keys of tokens that services of the mesh publish.
    pub(crate) keys: Arc<Sources>,
}

impl ProxyTls {
    /// Of a cluster; `last` is that of its last version.
    pub fn security(&self, config: &ClusterConfig, last: Option<&Security>) -> Security {
        let mut originated: Vec<Arc<ClientTls>> = Vec::new();
        let mut originate = |spec: &UpstreamTls| {
            if let Some(same) = originated.iter().find(|tls| tls.spec == *spec) {
                return same.clone();
            }
            let same = last.into_iter().flat_map(Security::originated).find(|tls| tls.spec == *spec);
            let new = || Arc::new(ClientTls::new(&config.cluster.name, spec, &self.certificates));
            let tls = same.cloned().unwrap_or_else(new);
            originated.push(tls.clone());
            tls
        };
        let (mut names, mut by_labels) = (None, None);
        match &config.cluster.tls {
            Some(ClusterTls::Originate(spec)) => return Security::Originate(originate(spec)),
            Some(ClusterTls::Mesh(all)) => names = Some(all.as_slice()),
            Some(ClusterTls::ByLabels { matches, otherwise }) => by_labels = Some((matches, otherwise)),
            None if self.mesh.is_none() => return Security::Plain,
            None => {}
        }
        let wanted: Arc<[PeerName]> = names.unwrap_or_default().into();
        let mut hop = |endpoint: &Endpoint| {
            let spec = by_labels.and_then(|(matches, otherwise)| {
                let first = matches.iter().find(|one| one.is_for(&endpoint.metadata));
                first.map_or(otherwise.as_deref(), |one| one.tls.as_ref())
            });
            let hop = match spec {
                Some(spec) => Hop::Originate(originate(spec)),
                None if by_labels.is_some() && self.mesh.is_none() => Hop::Plain,
                None => self.hop(endpoint, names.is_some(), &wanted),
            };
            (endpoint.address, hop)
        };
        let endpoints: Box<[_]> = config.endpoints.iter().map(&mut hop).collect();
        let all_peers = !endpoints.is_empty() && endpoints.iter().all(|(_, hop)| matches!(hop, Hop::Peer(_)));
        let all_originated = endpoints.iter().all(|(_, hop)| matches!(hop, Hop::Originate(_)));
        if endpoints.iter().all(|(_, hop)| matches!(hop, Hop::Plain)) {
            return Security::Plain;
        }
        Security::Each(Arc::new(Hops {
            mesh: self.mesh.clone(),
            endpoints,
            all_peers,
            all_originated,
            originated,
        }))
    }

    /// What is asked of those who call a cluster.
    pub(crate) fn gate(&self, config: &ClusterConfig) -> Option<Arc<Gate>> {
        let guard = config.cluster.guard.as_ref()?;
        Some(Arc::new(Gate::new(&config.cluster.name, guard, &self.certificates, &self.keys)))
    }

    fn hop(&self, endpoint: &Endpoint, required: bool, names: &Arc<[PeerName]>) -> Hop {
        let Some(mesh) = &self.mesh else {
            return Hop::Refused(
                "the service wants TLS between sidecars, and this one has no certificate".to_owned(),
            );
        };
        match endpoint.metadata.get(SPIFFE_LABEL).map(|text| SpiffeId::parse(text)) {
            Some(Ok(id)) if id.trust_domain() == mesh.id.trust_domain() => {
                Hop::Peer(Expected::new(Some(id), names.clone()))
            }
            Some(Ok(id)) if required || mesh.mode == MeshMode::Strict => {
                let own = mesh.id.trust_domain();
                Hop::Refused(format!("it is advertised as {id}, which is not of the trust domain {own}"))
            }
            Some(Err(why)) => {
                Hop::Refused(format!("it is advertised with a label {SPIFFE_LABEL} that is none: {why}"))
            }
            _ if required => Hop::Peer(Expected::new(None, names.clone())),
            None if mesh.mode == MeshMode::Strict && endpoint.source != EndpointSource::Static => {
                Hop::Refused("it takes plaintext alone, and this sidecar is strict".to_owned())
            }
            _ => Hop::Plain,
        }
    }
}

impl Security {
    /// Whether all endpoints are sidecars that take TLS.
    pub fn is_all_peers(&self) -> bool {
        matches!(self, Self::Each(hops) if hops.all_peers)
    }

    /// Whether all endpoints are servers of TLS that are no sidecars.
    pub(crate) fn is_all_originated(&self) -> bool {
        match self {
            Self::Plain => false,
            Self::Originate(_) => true,
            Self::Each(hops) => hops.all_originated,
        }
    }

    /// Whether an endpoint is a server of TLS that is no sidecar.
    pub(crate) fn is_originated_to(&self, addr: SocketAddr) -> bool {
        match self {
            Self::Plain => false,
            Self::Originate(_) => true,
            Self::Each(hops) => matches!(hops.hop(addr), Some(Hop::Originate(_))),
        }
    }

    /// What endpoints are spoken to with that are servers of TLS.
    fn originated(&self) -> &[Arc<ClientTls>] {
        match self {
            Self::Plain => &[],
            Self::Originate(tls) => std::slice::from_ref(tls),
            Self::Each(hops) => &hops.originated,
        }
    }

    /// Whether there is what connections are to be made with. If not, that says nothing of the endpoints.
    pub(crate) fn is_usable(&self) -> bool {
        self.originated().iter().all(|tls| tls.live.current().value.is_ok())
    }

    /// An endpoint with what a connection to it needs.
    ///
    /// # Errors
    /// If certificates cannot be used, or it takes no TLS and must.
    pub(crate) fn place(&self, addr: SocketAddr) -> Result<Place, String> {
        let secure = match self {
            Self::Plain => None,
            Self::Originate(tls) => Some(Secure::originate(tls, addr)?),
            Self::Each(hops) => hops.secure(addr)?,
        };
        Ok(Place { addr, secure, announced: None })
    }

    /// Whether both protect a connection to an endpoint alike.
    pub(crate) fn is_same_for(&self, other: &Self, addr: SocketAddr) -> bool {
        match (self, other) {
            (Self::Plain, Self::Plain) => true,
            (Self::Originate(one), Self::Originate(other)) => Arc::ptr_eq(one, other),
            (Self::Each(one), Self::Each(other)) => one.hop(addr) == other.hop(addr),
            _ => false,
        }
    }
}

impl Hops {
    /// # Errors
    /// If this sidecar's certificates cannot be used, or the endpoint cannot be spoken to.
    fn secure(&self, addr: SocketAddr) -> Result<Option<Secure>, String> {
        match (self.hop(addr), &self.mesh) {
            (Some(Hop::Peer(expected)), Some(mesh)) => {
                Secure::to_peer(mesh, addr, expected.clone()).map(Some)
            }
            (Some(Hop::Originate(tls)), _) => Secure::originate(tls, addr).map(Some),
            (Some(Hop::Refused(why)), _) => Err(why.clone()),
            _ => Ok(None),
        }
    }

    fn hop(&self, addr: SocketAddr) -> Option<&Hop> {
        let found = self.endpoints.binary_search_by_key(&addr, |(addr, _)| *addr);
        found.ok().map(|i| &self.endpoints[i].1)
    }
}

#[cfg(test)]
mod tests;
