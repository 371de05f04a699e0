use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::resource::subset::Subset;

fn proto() -> pb::Cluster {
    (&Cluster::with_defaults("orders")).into()
}

fn refused(change: impl FnOnce(&mut pb::Cluster)) -> InvalidResource {
    let mut p = proto();
    change(&mut p);
    Cluster::try_from(p).unwrap_err()
}

fn duration(max_ms: u64) -> impl Strategy<Value = Duration> {
    (10..=max_ms).prop_map(Duration::from_millis)
}

prop_compose! {
    fn health_check()(
        by in prop_oneof![
            Just(CheckBy::Connect),
            "/[a-z0-9/?=%._-]{0,40}".prop_map(CheckBy::Get),
            "[a-zA-Z0-9._]{0,40}".prop_map(CheckBy::Grpc),
        ],
        interval in duration(3_600_000),
        timeout in duration(3_600_000),
        unhealthy_threshold in 1u32..=100,
        healthy_threshold in 1u32..=100,
    ) -> HealthCheck {
        HealthCheck { by, interval, timeout, unhealthy_threshold, healthy_threshold }
    }
}

fn sample() -> impl Strategy<Value = Sample> {
    (any::<u32>(), any::<u32>()).prop_map(|(hosts, requests)| Sample { hosts, requests })
}

prop_compose! {
    fn outlier()(
        consecutive_failures in 0u32..1000,
        consecutive_gateway in 0u32..1000,
        base in 1u64..1_000_000,
        more in 0u64..1_000_000,
        max_ejection_percent in 0u32..=100,
        interval in 1u64..=3600,
        success_rate in prop::option::of((any::<u32>(), sample())),
        failure_percentage in prop::option::of((1u32..=100, sample())),
        latency in prop::option::of((2u32..=100, sample())),
        off in any::<bool>(),
    ) -> OutlierDetection {
        if off || (consecutive_failures, consecutive_gateway) == (0, 0) {
            return OutlierDetection::disabled();
        }
        OutlierDetection {
            consecutive_failures,
            consecutive_gateway,
            base_ejection_time: Duration::from_millis(base),
            max_ejection_time: Duration::from_millis(base + more),
            max_ejection_percent,
            interval: Duration::from_secs(interval),
            success_rate: success_rate.map(|(stdev_factor, sample)| SuccessRate { stdev_factor, sample }),
            failure_percentage: failure_percentage
                .map(|(percent, sample)| FailurePercentage { percent, sample }),
            latency: latency.map(|(factor, sample)| Latency { factor, sample }),
        }
    }
}

fn panic_policy() -> impl Strategy<Value = PanicPolicy> {
    prop_oneof![
        Just(PanicPolicy::Degraded),
        (1u32..=100).prop_map(|below| PanicPolicy::Spread { below }),
        (1u32..=100).prop_map(|below| PanicPolicy::Fail { below }),
    ]
}

fn breaker() -> impl Strategy<Value = CircuitBreaker> {
    let retries = prop_oneof![
        any::<u32>().prop_map(RetryLimit::AtOnce),
        (0u32..=100, any::<u32>()).prop_map(|(percent, min)| RetryLimit::Budget { percent, min }),
    ];
    (any::<u32>(), any::<u32>(), any::<u32>(), retries).prop_map(
        |(max_requests, max_connections, max_pending, retries)| CircuitBreaker {
            max_requests,
            max_connections,
            max_pending,
            retries,
        },
    )
}

fn lb_policy() -> impl Strategy<Value = LbPolicy> {
    let key = prop_oneof![
        "[a-z0-9-]{1,64}".prop_map(HashOn::Header),
        "[a-zA-Z0-9_]{1,64}".prop_map(HashOn::Cookie),
        Just(HashOn::Source),
    ];
    let hashed = (any::<bool>(), prop::option::of(key))
        .prop_map(|(ring, key)| if ring { LbPolicy::RingHash(key) } else { LbPolicy::Maglev(key) });
    prop_oneof![prop::sample::select(LbPolicy::PLAIN.to_vec()), hashed]
}

fn subset_fallback() -> impl Strategy<Value = SubsetFallback> {
    let default = |(key, text): (String, String)| {
        let subset = Subset::new([(key.as_str(), text.as_str())]).expect("a value");
        SubsetFallback::Default(Arc::new(subset))
    };
    prop_oneof![
        Just(SubsetFallback::None),
        Just(SubsetFallback::Any),
        ("[a-z]{1,6}", "[a-z0-9.]{1,6}").prop_map(default),
    ]
}

prop_compose! {
    fn cluster()(
        name in "[a-z][a-z0-9-]{0,62}",
        lb_policy in lb_policy(),
        slow in prop::option::of((1u64..=3600, 1u32..=100)),
        connect_timeout in duration(3_600_000),
        health_check in proptest::option::of(health_check()),
        outlier_detection in outlier(),
        protocol in prop_oneof![Just(Protocol::Http1), Just(Protocol::Http2)],
        breaker in breaker(),
        panic in panic_policy(),
        limit in prop::option::of((1u32.., 1u64..=3_600_000, 1u32..)),
        adaptive in prop::option::of((1u32..1000, 1000u32.., 100u32..=1000)),
        times in prop::array::uniform4(prop::option::of(1u64..=3_600_000)),
        subsets in (prop::collection::btree_set(prop::collection::btree_set("[a-z]{1,6}", 1..3), 0..3), subset_fallback()),
        zone in prop::option::of((1u32.., any::<u32>())),
        send_proxy in prop::option::of(prop_oneof![Just(ProxyVersion::V1), Just(ProxyVersion::V2)]),
    ) -> Cluster {
        let slow_start = slow.filter(|_| lb_policy.takes_slow_start()).map(|(window, min_weight_percent)| {
            SlowStart { window: Duration::from_secs(window), min_weight_percent }
        });
        let rate_limit = limit.map(|(requests, per, burst)| RateLimit { requests, per: Duration::from_millis(per), burst });
        let adaptive = adaptive.map(|(min, max, tolerance_percent)| AdaptiveConcurrency { min, max, tolerance_percent });
        let zone_aware = zone.map(|(min_endpoints, spill_above)| ZoneAware { min_endpoints, spill_above });
        let [request, one_try, stream_idle, tunnel_idle] = times.map(|t| t.map(Duration::from_millis));
        let timeouts = Timeouts { request, one_try, stream_idle, tunnel_idle };
        let subsets = Subsets { selectors: subsets.0, fallback: subsets.1 };
        Cluster { subsets, timeouts, zone_aware, adaptive, rate_limit, slow_start, name, lb_policy, connect_timeout, health_check, outlier_detection, protocol, tls: None, send_proxy, guard: None, breaker, panic }
    }
}

proptest! {
    #[test]
    fn a_cluster_survives_the_wire(c in cluster()) {
        let bytes = pb::Cluster::from(&c).encode_to_vec();
        let back = Cluster::try_from(pb::Cluster::decode(bytes.as_slice()).unwrap()).unwrap();
        prop_assert_eq!(back, c);
    }

    #[test]
    fn any_bytes_are_decoded_or_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(p) = pb::Cluster::decode(bytes.as_slice()) {
            let _ = Cluster::try_from(p);
        }
    }
}

#[test]
fn error_names_resource_field_seen_and_allowed() {
    let e = refused(|p| p.lb_policy = pb::cluster::LbPolicy::ClusterProvided as i32);
    assert_eq!(
        e.to_string(),
        r#"Cluster "orders": lb_policy: seen CLUSTER_PROVIDED, allowed ROUND_ROBIN, RANDOM, LEAST_REQUEST, RING_HASH or MAGLEV"#
    );
}

#[test]
fn empty_and_oversized_names_are_refused() {
    assert_eq!(refused(|p| p.name.clear()).seen, "0 bytes");
    assert_eq!(refused(|p| p.name = "x".repeat(254)).seen, "254 bytes");
    assert_eq!(refused(|p| p.name = "a b".to_owned()).field, "name");
}

#[test]
fn a_discovery_type_other_than_eds_is_refused() {
    use pb::cluster::{ClusterDiscoveryType, DiscoveryType};
    let e = refused(|p| {
        p.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::StrictDns as i32));
    });
    assert_eq!((e.field.as_str(), e.seen.as_str(), e.allowed.as_str()), ("type", "STRICT_DNS", "EDS"));
    assert_eq!(refused(|p| p.cluster_discovery_type = None).seen, "STATIC");
    assert_eq!(refused(|p| p.eds_cluster_config = None).field, "eds_cluster_config");
}

#[test]
fn durations_out_of_range_are_refused() {
    use envoy_types::pb::google::protobuf::Duration as D;
    for (bad, seen) in [
        (D { seconds: 0, nanos: 0 }, "0ns"),
        (D { seconds: -1, nanos: 0 }, "-1 s and 0 ns"),
        (D { seconds: 1, nanos: 1_000_000_000 }, "1 s and 1000000000 ns"),
        (D { seconds: 3601, nanos: 0 }, "3601s"),
        (D { seconds: i64::MAX, nanos: 0 }, "9223372036854775807s"),
    ] {
        let e = refused(|p| p.connect_timeout = Some(bad));
        assert_eq!((e.field.as_str(), e.seen.as_str()), ("connect_timeout", seen));
    }
}

#[test]
fn a_relative_health_path_and_a_second_check_are_refused() {
    let with_path = |path: &str| {
        let mut c = Cluster::with_defaults("orders");
        c.health_check = Some(HealthCheck { by: CheckBy::Get(path.to_owned()), ..HealthCheck::default() });
        Cluster::try_from(pb::Cluster::from(&c))
    };
    assert!(with_path("/health").is_ok());
    for bad in ["health", "", "/a b", "/a\r\nHost: x"] {
        assert_eq!(with_path(bad).unwrap_err().field, "health_checks[0].http_health_check.path");
    }
    let grpc = |name: &str| {
        let mut c = Cluster::with_defaults("orders");
        c.health_check = Some(HealthCheck { by: CheckBy::Grpc(name.to_owned()), ..HealthCheck::default() });
        Cluster::try_from(pb::Cluster::from(&c))
    };
    assert!(grpc("").is_ok());
    assert_eq!(grpc("a b").unwrap_err().field, "metadata[weft.health_check].grpc");
    let e = refused(|p| p.health_checks.push(p.health_checks[0].clone()));
    assert_eq!(e.seen, "2 of them");
}

/// Envoy refuses one by gRPC where requests go by HTTP/1, and asks by path over HTTP/1 unless it is told otherwise.
#[test]
fn a_check_is_said_so_that_envoy_can_do_it() {
    use envoy_types::pb::envoy::config::core::v3::health_check::HealthChecker;
    let by = CheckBy::Grpc("orders".to_owned());
    let mut c = Cluster {
        health_check: Some(HealthCheck { by, ..HealthCheck::default() }),
        ..Cluster::with_defaults("o")
    };
    let checker = |c: &Cluster| pb::Cluster::from(c).health_checks[0].health_checker.clone();
    assert!(matches!(checker(&c), Some(HealthChecker::TcpHealthCheck(_))));
    assert_eq!(Cluster::try_from(pb::Cluster::from(&c)).unwrap(), c, "ours asks by gRPC all the same");
    c.protocol = Protocol::Http2;
    assert!(matches!(checker(&c), Some(HealthChecker::GrpcHealthCheck(_))));
    c.health_check.as_mut().unwrap().by = CheckBy::Get("/health".to_owned());
    let Some(HealthChecker::HttpHealthCheck(http)) = checker(&c) else { panic!("{:?}", checker(&c)) };
    assert_eq!(http.codec_client_type().as_str_name(), "HTTP2");
}

/// Sending plain text where the control plane asked for TLS would be worse than refusing.
#[test]
fn a_transport_socket_that_is_no_tls_is_refused_not_ignored() {
    let empty = refused(|p| p.transport_socket = Some(Default::default()));
    assert_eq!(empty.field, "transport_socket.typed_config");
    let matches = refused(|p| p.transport_socket_matches.push(Default::default()));
    assert_eq!(matches.field, "transport_socket_matches[0].transport_socket");
}

#[test]
fn max_ejection_time_below_base_is_refused() {
    let e = refused(|p| {
        let o = p.outlier_detection.as_mut().unwrap();
        o.max_ejection_time = Some(duration_to_proto(Duration::from_secs(1)));
    });
    assert_eq!(e.field, "outlier_detection.max_ejection_time");
    assert_eq!(e.allowed, "5s to 3600s");
}

/// As Envoy has it: the rule is on unless it is said to be off.
#[test]
fn an_empty_outlier_detection_has_envoys_rules() {
    let mut p = proto();
    p.outlier_detection = Some(Default::default());
    let o = Cluster::try_from(p).unwrap().outlier_detection;
    assert_eq!((o.consecutive_failures, o.consecutive_gateway), (5, 0));
    assert_eq!((o.success_rate, o.failure_percentage), (Some(SuccessRate::default()), None));
    let e =
        refused(|p| p.outlier_detection.as_mut().unwrap().interval = Some(duration_to_proto(Duration::ZERO)));
    assert_eq!(e.field, "outlier_detection.interval");
}

#[test]
fn absent_outlier_detection_ejects_nobody() {
    let mut p = proto();
    p.outlier_detection = None;
    assert_eq!(Cluster::try_from(p).unwrap().outlier_detection.consecutive_failures, 0);
}
