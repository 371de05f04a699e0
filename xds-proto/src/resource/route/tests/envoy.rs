//! Hedging and rate limits in Envoy's words.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, HttpStatus, TokenBucket};
use envoy_types::pb::google::protobuf::{self, UInt32Value};
use envoy_types::util::pack_any;

use super::super::*;
use crate::resource::cluster::RateLimit;

/// The one route of a configuration on the wire, with a change.
fn changed(policy: RoutePolicy, change: impl FnOnce(&mut pb::Route)) -> Result<Route, (String, String)> {
    let forward = Forward { backends: vec![Backend::new("orders", 1)], ..Forward::default() };
    let matches = RouteMatch::any();
    let route = Route { name: "r".to_owned(), matches, action: Action::Forward(Box::new(forward)), policy };
    let host = VirtualHost { name: "h".to_owned(), domains: vec!["*".to_owned()], routes: vec![route] };
    let mut wire = pb::RouteConfiguration::from(&RouteConfiguration {
        name: "orders".to_owned(),
        virtual_hosts: vec![host],
    });
    change(&mut wire.virtual_hosts[0].routes[0]);
    let decoded = RouteConfiguration::try_from(wire).map_err(|error| (error.field, error.seen))?;
    Ok(decoded.virtual_hosts[0].routes[0].clone())
}

fn route_action(route: &mut pb::Route) -> &mut pb::RouteAction {
    match route.action.as_mut() {
        Some(pb::route::Action::Route(action)) => action,
        other => panic!("{other:?}"),
    }
}

#[test]
fn envoy_hedges_when_a_try_takes_too_long() {
    let after = Duration::from_millis(50);
    let policy = RoutePolicy { hedge: Some(Hedge { after }), ..RoutePolicy::default() };
    let read = changed(policy, |route| {
        assert_eq!(route.metadata, None, "all of it is in Envoy's words");
        let action = route_action(route);
        assert!(action.hedge_policy.as_ref().unwrap().hedge_on_per_try_timeout);
        assert_eq!(action.retry_policy.as_ref().unwrap().num_retries, Some(UInt32Value { value: 1 }));
    });
    let Ok(Route { policy, action: Action::Forward(forward), .. }) = read else { panic!("{read:?}") };
    assert_eq!((policy.hedge, forward.try_timeout, forward.retry), (Some(Hedge { after }), None, None));
}

#[test]
fn what_of_hedging_is_not_done_is_refused_by_name() {
    let hedging = |hedge: pb::HedgePolicy| {
        changed(RoutePolicy::default(), |route| route_action(route).hedge_policy = Some(hedge))
    };
    let refused = |hedge| hedging(hedge).unwrap_err().0;
    let at = "virtual_hosts[0].routes[0].route.hedge_policy.";
    let on_timeout = pb::HedgePolicy { hedge_on_per_try_timeout: true, ..pb::HedgePolicy::default() };
    assert_eq!(refused(on_timeout), format!("{at}hedge_on_per_try_timeout"), "there is no such time");
    let two =
        pb::HedgePolicy { initial_requests: Some(UInt32Value { value: 2 }), ..pb::HedgePolicy::default() };
    assert_eq!(refused(two), format!("{at}initial_requests"));
    let chance = FractionalPercent { numerator: 5, denominator: 0 };
    let more = pb::HedgePolicy { additional_request_chance: Some(chance), ..pb::HedgePolicy::default() };
    assert_eq!(refused(more), format!("{at}additional_request_chance"));
    assert_eq!(hedging(pb::HedgePolicy::default()).unwrap().policy.hedge, None);
}

fn limited(change: impl FnOnce(&mut LocalRateLimit)) -> Result<Option<RateLimit>, (String, String)> {
    let all = || RuntimeFractionalPercent {
        default_value: Some(FractionalPercent { numerator: 100, denominator: 0 }),
        ..RuntimeFractionalPercent::default()
    };
    let mut limit = LocalRateLimit {
        stat_prefix: "x".to_owned(),
        token_bucket: Some(TokenBucket { max_tokens: 20, ..TokenBucket::default() }),
        filter_enabled: Some(all()),
        filter_enforced: Some(all()),
        ..LocalRateLimit::default()
    };
    change(&mut limit);
    let read = changed(RoutePolicy::default(), |route| {
        let filters = [("envoy.filters.http.local_ratelimit".to_owned(), pack_any(limit))];
        route.typed_per_filter_config = filters.into();
    })?;
    Ok(read.policy.rate_limit)
}

#[test]
fn a_bucket_of_envoy_is_a_rate_limit_if_it_is_enforced() {
    let second = Duration::from_secs(1);
    assert_eq!(limited(|_| ()).unwrap(), Some(RateLimit { requests: 1, per: second, burst: 20 }));
    assert_eq!(limited(|l| l.filter_enabled = None).unwrap(), None);
    assert_eq!(limited(|l| l.filter_enforced = None).unwrap(), None);
}

#[test]
fn what_of_a_bucket_is_not_done_is_refused_by_name() {
    let refused = |change: fn(&mut LocalRateLimit)| {
        let (field, seen) = limited(change).unwrap_err();
        let at = "virtual_hosts[0].routes[0].typed_per_filter_config[envoy.filters.http.local_ratelimit].";
        (field.strip_prefix(at).unwrap_or(&field).to_owned(), seen)
    };
    for (change, field) in [
        ((|l| l.token_bucket = None) as fn(&mut LocalRateLimit), "token_bucket"),
        (|l| l.token_bucket = Some(TokenBucket::default()), "token_bucket.max_tokens"),
        (|l| l.status = Some(HttpStatus { code: 503 }), "status"),
        (
            |l| l.local_rate_limit_per_downstream_connection = true,
            "local_rate_limit_per_downstream_connection",
        ),
        (|l| l.rate_limited_as_resource_exhausted = true, "rate_limited_as_resource_exhausted"),
        (|l| l.descriptors = vec![Default::default()], "descriptors"),
        (
            |l| {
                let half = FractionalPercent { numerator: 50, denominator: 0 };
                l.filter_enforced.as_mut().unwrap().default_value = Some(half);
            },
            "filter_enforced",
        ),
        (
            |l| {
                let interval = protobuf::Duration { seconds: 0, nanos: 10_000_000 };
                l.token_bucket.as_mut().unwrap().fill_interval = Some(interval);
            },
            "token_bucket.fill_interval",
        ),
    ] {
        assert_eq!(refused(change).0, field);
    }
}
