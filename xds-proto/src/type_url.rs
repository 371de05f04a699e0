//! The xDS resource types that Weft serves or uses.

use std::fmt;

/// A resource type, known on the wire by its type URL.
///
/// The order of the variants is the push order (make before break): a secret is there before the clusters that name it,
/// a cluster before its endpoints, and all of them before the routes that lead there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceType {
    /// SDS: certificates, keys and who is trusted, by name. Weft's servers have none; other control planes do.
    Secret,
    /// CDS: how to reach a service.
    Cluster,
    /// EDS: where its instances are.
    Endpoint,
    /// LDS: for proxyless gRPC, the target name.
    Listener,
    /// RDS: for proxyless gRPC, target name to cluster.
    Route,
}

impl ResourceType {
    /// All types in push order: SDS, CDS, EDS, LDS, RDS.
    pub const PUSH_ORDER: [Self; 5] =
        [Self::Secret, Self::Cluster, Self::Endpoint, Self::Listener, Self::Route];

    /// The type URL on the wire.
    pub const fn url(self) -> &'static str {
        match self {
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoint => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        }
    }

    /// The type with this URL; none if Weft does not know it.
    pub fn from_url(url: &str) -> Option<Self> {
        Self::PUSH_ORDER.into_iter().find(|t| t.url() == url)
    }

    /// Name of the discovery service, for people: `SDS`, `CDS`, `EDS`, `LDS`, `RDS`.
    pub const fn service(self) -> &'static str {
        match self {
            Self::Secret => "SDS",
            Self::Cluster => "CDS",
            Self::Endpoint => "EDS",
            Self::Listener => "LDS",
            Self::Route => "RDS",
        }
    }

    /// Whether an empty first subscription means everything (only LDS and CDS).
    pub const fn has_wildcard(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }

    /// Whether a subscription to everything gets the resources of this type. Listeners are for proxyless gRPC, which
    /// asks by name; Envoy, which asks for everything, would only warn of each.
    pub const fn is_in_wildcard(self) -> bool {
        matches!(self, Self::Cluster)
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.service())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_and_type_are_inverse() {
        for t in ResourceType::PUSH_ORDER {
            assert_eq!(ResourceType::from_url(t.url()), Some(t));
        }
        assert_eq!(ResourceType::from_url("type.googleapis.com/envoy.service.runtime.v3.Runtime"), None);
    }

    #[test]
    fn push_order_is_secrets_clusters_endpoints_listeners_routes() {
        let order: Vec<_> = ResourceType::PUSH_ORDER.iter().map(|t| t.service()).collect();
        assert_eq!(order, ["SDS", "CDS", "EDS", "LDS", "RDS"]);
        assert!(ResourceType::PUSH_ORDER.is_sorted());
    }
}
