//! Captured connections on their way to an instance of a service: to the port that it is advertised with, or to that of an
//! app behind a sidecar that takes bytes for it.
//!
//! The client has chosen the instance, as those of Kafka and of databases do, so it is never another one. All else is as
//! for its service: TLS between sidecars, limits, outlier detection, metrics.
//!
//! A service that is not in use here is found by gossip and asked for as soon as its connection is there. Nobody waits for
//! the answer but a client that has spoken: where the server speaks first, what is known after
//! [`CAPTURED_CLIENT_FIRST`](crate::limits::CAPTURED_CLIENT_FIRST) counts.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;

use super::{Far, Outgoing};
use crate::cluster::endpoint::EndpointState;
use crate::cluster::endpoint_set::EndpointView;
use crate::cluster::state::Cluster;
use crate::health::takes_bytes_at;
use crate::http::context::Side;
use crate::http::resolve;
use crate::listener::accept::{Door, Ended};
use crate::listener::connection::Connection;
use crate::mesh_view::MeshView;
use crate::tcp::serve::Begun;

/// Where a captured connection was on its way.
pub(super) struct Aim {
    to: SocketAddr,
    /// A service that has an instance there, and is not in use here yet.
    asked: Option<String>,
}

type Instance = (Arc<Cluster>, Arc<EndpointState>);

impl Door {
    /// Asks for the service, if it has to be.
    pub(super) fn aim(&self, to: SocketAddr) -> Aim {
        let mut asked = None;
        if let Side::Outbound { want: Some(want), find: Some(find), .. } = &self.ctx.side
            && self.instance(to).is_none()
        {
            asked = find(to);
            if let Some(service) = &asked {
                want(service);
            }
        }
        Aim { to, asked }
    }

    /// Waits for what was asked for.
    pub(super) async fn settle(&self, aim: &Aim) {
        if let Some(service) = &aim.asked {
            self.is_service(service).await;
        }
    }

    fn instance(&self, to: SocketAddr) -> Option<Instance> {
        self.ctx.with_view(|view| instance(view, to))
    }

    /// Connects to what is there, as far as it is known now.
    pub(super) async fn reach<'a>(
        &self,
        aim: &Aim,
        connection: &Connection,
        outgoing: &'a Outgoing,
    ) -> Result<Far<'a>, Ended> {
        let Some((cluster, endpoint)) = self.instance(aim.to) else {
            let (stream, port) = self.connect(outgoing, aim.to).await?;
            return Ok(Far::There(stream, port));
        };
        resolve::used(&self.ctx, &cluster);
        let held = RefCell::new(None);
        let dial = async |addr: SocketAddr| {
            let (stream, port) = outgoing.connect(addr).await?;
            *held.borrow_mut() = Some(port);
            Ok(stream)
        };
        let begun = Begun::open(&self.ctx, connection, cluster, &endpoint, dial).await.map_err(Ended::Tcp)?;
        Ok(Far::Instance(Box::new(begun), held.into_inner()))
    }
}

/// Of several services with an instance there, the first by name. Servers of TLS are left out: who speaks to them without
/// knowing of this sidecar speaks TLS already.
fn instance(view: &MeshView, to: SocketAddr) -> Option<Instance> {
    let found = view.clusters.values().filter_map(|cluster| {
        let mut endpoints = cluster.endpoints.endpoints().iter();
        let is_it = |view: &&EndpointView| takes_bytes_at(view.endpoint.address, &view.endpoint.metadata, to);
        let found = endpoints.find(is_it)?;
        (!cluster.security().is_originated_to(found.state.addr())).then_some((cluster, &found.state))
    });
    let first = found.min_by_key(|(cluster, _)| cluster.name())?;
    Some((first.0.clone(), first.1.clone()))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use weft_core::metrics::Registry;
    use weft_meshconfig::policy::PolicySpec;
    use weft_xds_proto::resource::cluster::Cluster as Told;

    use super::*;
    use crate::config::static_config::static_endpoint;
    use crate::config_snapshot::{ClusterConfig, ConfigSnapshot};
    use crate::health::APP_PORT_LABEL;
    use crate::mesh_view::MeshState;
    use crate::telemetry::metrics::{Direction, Metrics};

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// Of a service with an instance there, and what its policy says.
    fn service(
        name: &str,
        address: &str,
        app_port: Option<&str>,
        policy: serde_json::Value,
    ) -> ClusterConfig {
        let mut endpoint = static_endpoint(at(address), 1);
        endpoint.metadata.extend(app_port.map(|port| (APP_PORT_LABEL.to_owned(), port.to_owned())));
        let mut cluster = Told::with_defaults(name);
        PolicySpec::from_file(policy.as_object().unwrap(), &[]).0.apply(&mut cluster);
        ClusterConfig { cluster, endpoints: vec![endpoint], version: String::new() }
    }

    #[test]
    fn an_instance_is_found_by_its_port_and_its_apps_and_servers_of_tls_are_left_to_their_clients() {
        let none = || serde_json::json!({});
        let tls = serde_json::json!({"tls": {"hostname": "api.example"}});
        let services = [
            service("db", "10.0.0.1:15432", Some("5432"), none()),
            service("cache", "10.0.0.2:6379", None, none()),
            service("also-cache", "10.0.0.2:6379", None, none()),
            service("api", "10.0.0.3:443", None, tls),
        ];
        let clusters = services.map(|config| (config.cluster.name.clone(), Arc::new(config)));
        let metrics = Metrics::new(Registry::new());
        let mesh = MeshState::new(Direction::Outbound, Default::default(), metrics, Default::default());
        mesh.apply(&ConfigSnapshot { clusters: HashMap::from(clusters), ..ConfigSnapshot::default() });
        let found = |to: &str| {
            let (cluster, endpoint) = instance(&mesh.view(), at(to))?;
            Some(format!("{} {}", cluster.name(), endpoint.addr()))
        };
        assert_eq!(found("10.0.0.1:5432").as_deref(), Some("db 10.0.0.1:15432"));
        assert_eq!(found("10.0.0.1:15432").as_deref(), Some("db 10.0.0.1:15432"));
        assert_eq!(found("10.0.0.2:6379").as_deref(), Some("also-cache 10.0.0.2:6379"));
        for nothing in ["10.0.0.3:443", "10.0.0.1:6379", "10.0.0.2:5432"] {
            assert_eq!(found(nothing), None, "{nothing}");
        }
    }
}
