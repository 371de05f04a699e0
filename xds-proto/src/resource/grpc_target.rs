//! LDS and RDS for proxyless gRPC: `xds:///NAME` → Listener NAME → RouteConfiguration NAME → Cluster NAME.
//!
//! Listeners are only built, never received: our proxy routes by Host and asks for routes and clusters itself.

use envoy_types::pb::envoy::config::listener::v3::{ApiListener, Listener};
use envoy_types::pb::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route::Action,
    route_action::ClusterSpecifier, route_match::PathSpecifier,
};
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_connection_manager::RouteSpecifier, http_filter::ConfigType,
};
use envoy_types::util::pack_any;

/// The Listener that a gRPC client resolves `xds:///NAME` to (A27). It has an API listener only; Envoy warns of
/// such a one, so it goes to those who ask for it by name.
pub fn listener(service: &str, faults: bool) -> Listener {
    // Routes speak of faults only to a filter that is there; a client that has none passes over it.
    let fault = faults.then(|| HttpFilter {
        name: "envoy.filters.http.fault".to_owned(),
        config_type: Some(ConfigType::TypedConfig(pack_any(HttpFault::default()))),
        is_optional: true,
        ..HttpFilter::default()
    });
    let router = HttpFilter {
        name: "envoy.filters.http.router".to_owned(),
        config_type: Some(ConfigType::TypedConfig(pack_any(Router::default()))),
        ..HttpFilter::default()
    };
    let manager = HttpConnectionManager {
        stat_prefix: service.to_owned(),
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(super::over_ads()),
            route_config_name: service.to_owned(),
        })),
        // gRPC refuses a list that does not end with the router (A39).
        http_filters: fault.into_iter().chain([router]).collect(),
        ..HttpConnectionManager::default()
    };
    Listener {
        name: service.to_owned(),
        api_listener: Some(ApiListener { api_listener: Some(pack_any(manager)) }),
        ..Listener::default()
    }
}

/// Everything to the cluster of the same name.
pub fn route_configuration(service: &str) -> RouteConfiguration {
    RouteConfiguration {
        name: service.to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: service.to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![Route {
                r#match: Some(RouteMatch {
                    path_specifier: Some(PathSpecifier::Prefix(String::new())),
                    ..RouteMatch::default()
                }),
                action: Some(Action::Route(RouteAction {
                    cluster_specifier: Some(ClusterSpecifier::Cluster(service.to_owned())),
                    ..RouteAction::default()
                })),
                ..Route::default()
            }],
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn target_leads_through_listener_and_route_to_the_cluster_of_its_name() {
        let listener = listener("orders", true);
        assert_eq!(listener.name, "orders");
        let any = listener.api_listener.unwrap().api_listener.unwrap();
        let manager = HttpConnectionManager::decode(any.value.as_slice()).unwrap();
        let Some(RouteSpecifier::Rds(rds)) = manager.route_specifier else { panic!("no rds") };
        assert_eq!(manager.http_filters.last().unwrap().name, "envoy.filters.http.router");
        let route = route_configuration(&rds.route_config_name);
        let action = route.virtual_hosts[0].routes[0].action.clone();
        let Some(Action::Route(action)) = action else { panic!("no route action") };
        assert_eq!(action.cluster_specifier, Some(ClusterSpecifier::Cluster("orders".to_owned())));
    }
}
