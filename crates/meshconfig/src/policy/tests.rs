use serde_json::json;
use weft_xds_proto::envoy_types::pb::envoy::config::cluster::v3 as pb;
use weft_xds_proto::resource::cluster::ProxyVersion;

use super::*;
use crate::document::{Document, Spec};

fn document(spec: Value) -> Result<PolicySpec, Vec<String>> {
    let mut spec = spec;
    spec["targetRef"] = json!({"kind": "Service", "name": "orders"});
    let document = json!({
        "apiVersion": "weft.dev/v1", "kind": "TrafficPolicy", "metadata": {"name": "p"}, "spec": spec,
    });
    match Document::new(document) {
        Ok(Document { spec: Spec::Policy(spec), .. }) => Ok(spec.policy),
        Ok(other) => panic!("{other:?}"),
        Err(problems) => Err(problems.iter().map(ToString::to_string).collect()),
    }
}

fn everything() -> Value {
    json!({
        "loadBalancing": "least-request",
        "slowStart": {"window": "1m", "minWeightPercent": 5},
        "connectTimeout": "200ms",
        "healthCheck": {"path": "/health", "interval": "1s", "timeout": "300ms", "unhealthyThreshold": 3, "healthyThreshold": 2},
        "outlierDetection": {
            "consecutiveFailures": 3, "consecutiveGatewayFailures": 2, "baseEjectionTime": "2s", "maxEjectionTime": "1m",
            "maxEjectionPercent": 20, "interval": "5s", "successRate": {"threshold": 1500},
            "failurePercentage": {"minHosts": 4}, "latency": {"minRequests": 9},
        },
        "panic": {"policy": "fail", "below": 30},
        "circuitBreaker": {"maxRequests": 100, "maxConnections": 10, "maxPending": 5},
        "retryBudget": {"percent": 10},
        "rateLimit": {"requests": 100, "per": "10s"},
        "adaptiveConcurrency": {"minRequests": 7},
        "timeouts": {"request": "9s", "backendRequest": "3s", "streamIdle": "30s", "tunnelIdle": "60s"},
        "zoneAware": {"minEndpoints": 2, "spillAbove": 50},
        "subsets": {"fallback": "default", "default": {"version": "stable"}},
        "sendProxy": "v2",
    })
}

fn kebab(value: Value) -> Value {
    match value {
        Value::Object(entries) => {
            Value::Object(entries.into_iter().map(|(k, v)| (Names::Kebab.path(&k), kebab(v))).collect())
        }
        other => other,
    }
}

#[test]
fn document_and_file_say_the_same_in_their_own_ways_of_writing() {
    let from_document = document(everything()).unwrap();
    let Value::Object(keys) = kebab(everything()) else { unreachable!("it is a mapping") };
    assert!(keys.contains_key("circuit-breaker"));
    assert_eq!(PolicySpec::from_file(&keys, &[]), (from_document, vec![]));
}

#[test]
fn every_key_reaches_the_cluster_and_survives_the_wire() {
    let mut cluster = Cluster::with_defaults("orders");
    document(everything()).unwrap().apply(&mut cluster);
    assert_eq!(cluster.lb_policy, LbPolicy::LeastRequest);
    assert_eq!(
        cluster.slow_start,
        Some(SlowStart { window: Duration::from_secs(60), min_weight_percent: 5 })
    );
    assert_eq!(cluster.connect_timeout, Duration::from_millis(200));
    let check = cluster.health_check.as_ref().unwrap();
    assert_eq!(check.by, CheckBy::Get("/health".to_owned()));
    assert_eq!((check.unhealthy_threshold, check.healthy_threshold), (3, 2));
    assert_eq!((check.interval, check.timeout), (Duration::from_secs(1), Duration::from_millis(300)));
    let o = &cluster.outlier_detection;
    assert_eq!((o.consecutive_failures, o.consecutive_gateway, o.max_ejection_percent), (3, 2, 20));
    assert_eq!(
        (o.base_ejection_time, o.max_ejection_time),
        (Duration::from_secs(2), Duration::from_secs(60))
    );
    assert_eq!(o.success_rate.unwrap().stdev_factor, 1500);
    assert_eq!(o.failure_percentage.unwrap().sample.hosts, 4);
    assert_eq!(o.latency.unwrap().sample.requests, 9);
    assert_eq!(cluster.panic, PanicPolicy::Fail { below: 30 });
    let b = cluster.breaker;
    assert_eq!((b.max_requests, b.max_connections, b.max_pending), (100, 10, 5));
    assert_eq!(b.retries, RetryLimit::Budget { percent: 10, min: 3 });
    let limit = RateLimit { requests: 100, per: Duration::from_secs(10), burst: 100 };
    assert_eq!(cluster.rate_limit, Some(limit));
    let adaptive = AdaptiveConcurrency { min: 7, ..AdaptiveConcurrency::default() };
    assert_eq!(cluster.adaptive, Some(adaptive));
    let seconds = |n| Some(Duration::from_secs(n));
    assert_eq!(
        cluster.timeouts,
        Timeouts {
            request: seconds(9),
            one_try: seconds(3),
            stream_idle: seconds(30),
            tunnel_idle: seconds(60)
        }
    );
    assert_eq!(cluster.zone_aware, Some(ZoneAware { min_endpoints: 2, spill_above: 50 }));
    assert_eq!(cluster.send_proxy, Some(ProxyVersion::V2));
    assert_eq!(Cluster::try_from(pb::Cluster::from(&cluster)), Ok(cluster));
}

#[test]
fn what_is_not_said_stays() {
    let mut cluster = Cluster::with_defaults("orders");
    cluster.health_check =
        Some(HealthCheck { by: CheckBy::Get("/of-instances".to_owned()), ..HealthCheck::default() });
    let before = cluster.clone();
    PolicySpec::default().apply(&mut cluster);
    assert_eq!(cluster, before);
    document(json!({"healthCheck": {"interval": "9s"}})).unwrap().apply(&mut cluster);
    let check = cluster.health_check.unwrap();
    assert_eq!(
        (check.by, check.interval),
        (CheckBy::Get("/of-instances".to_owned()), Duration::from_secs(9))
    );
}

#[test]
fn a_first_ejection_longer_than_the_usual_longest_one_makes_that_longer() {
    let mut cluster = Cluster::with_defaults("orders");
    document(json!({"outlierDetection": {"baseEjectionTime": "10m"}})).unwrap().apply(&mut cluster);
    assert_eq!(cluster.outlier_detection.max_ejection_time, Duration::from_secs(600));
}

#[test]
fn every_mistake_is_told_at_once_in_the_words_of_the_file() {
    let keys = json!({
        "load-balancing": "fastest", "circuit-breakers": {}, "slow-start": {"window": "1ms", "min-weight-percent": 0},
        "connect-timeout": "2h", "health-check": {"path": "/", "grpc": "a", "interval": "90000h", "timeout": "2h"},
        "panic": {"policy": "scream"}, "circuit-breaker": {"max-requests": 0}, "retry-budget": {"percent": 200}, "rate-limit": {"burst": 0}, "send-proxy": "v3",
        "outlier-detection": {"max-ejection-percent": 101, "interval": "10ms", "latency": {"threshold": 1},
            "base-ejection-time": "2s", "max-ejection-time": "1s", "successRate": {}},
    });
    let (_, problems) = PolicySpec::from_file(keys.as_object().unwrap(), &["name"]);
    let text = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    for part in [
        "load-balancing: \"fastest\"; allowed is round-robin",
        "circuit-breakers: unknown key; allowed are name, load-balancing, slow-start",
        "did you mean circuit-breaker?",
        "slow-start.window: \"1ms\"",
        "slow-start.min-weight-percent: 0; allowed is a whole number from 1 to 100",
        "connect-timeout: \"2h\"",
        "health-check.grpc: given beside path",
        "health-check.interval: \"90000h\"",
        "health-check.timeout: \"2h\"",
        "panic.policy: \"scream\"; allowed are degraded, spread, fail",
        "circuit-breaker.max-requests: 0",
        "retry-budget.percent: 200",
        "rate-limit.burst: 0",
        "send-proxy: \"v3\"; allowed are v1, v2",
        "rate-limit: requests is missing",
        "outlier-detection.max-ejection-percent: 101",
        "outlier-detection.interval: \"10ms\"",
        "outlier-detection.latency.threshold: 1",
        "outlier-detection.max-ejection-time: 1s is shorter than the first ejection, 2s",
        "outlier-detection.successRate: unknown key",
    ] {
        assert!(text.contains(part), "{part} not in\n{text}");
    }
    assert_eq!(problems.len(), 19, "{text}");
}

#[test]
fn parts_that_do_not_go_together_are_refused() {
    for (spec, part) in [
        (json!({}), "spec: it says nothing"),
        (json!({"loadBalancing": "random", "slowStart": {}}), "spec.slowStart: there is none under random"),
        (json!({"circuit-breaker": {}}), "did you mean circuitBreaker?"),
        (
            json!({"adaptiveConcurrency": {"minRequests": 5, "maxRequests": 4}}),
            "adaptiveConcurrency.maxRequests: 4 is less than minRequests, 5",
        ),
    ] {
        let problems = document(spec).unwrap_err().join("\n");
        assert!(problems.contains(part), "{part} not in {problems}");
    }
}

/// A policy may say one of two that go together; the other comes from elsewhere (`weft lb`).
#[test]
fn slow_start_waits_while_the_balancing_has_none() {
    let mut cluster = Cluster { lb_policy: LbPolicy::Random, ..Cluster::with_defaults("orders") };
    document(json!({"slowStart": {}})).unwrap().apply(&mut cluster);
    assert_eq!(cluster.slow_start, None);
}

#[test]
fn instances_that_take_over_are_named_by_values_where_they_are_wanted_and_nowhere_else() {
    for (subsets, problem) in [
        (json!({"fallback": "default"}), "spec.subsets.default: allowed is labels of the instances"),
        (json!({"fallback": "any", "default": {"version": "1"}}), "spec.subsets.default: allowed is labels"),
        (
            json!({"fallback": "default", "default": {"version": ">=2"}}),
            "spec.subsets.default.version: \">=2\"; allowed is a value, not a range of versions",
        ),
        (json!({"fallback": "all"}), "spec.subsets.fallback: \"all\"; allowed are none, any, default"),
    ] {
        let problems = document(json!({ "subsets": subsets })).unwrap_err();
        assert!(problems.iter().any(|p| p.contains(problem)), "{problem} not in {problems:?}");
    }
}
