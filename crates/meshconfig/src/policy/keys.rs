//! The keys of a policy with what each may be. The bounds are those of the resources that proxies accept
//! (`weft_xds_proto::resource::cluster`), so that what is accepted here is accepted by every proxy.

use std::time::Duration;

use weft_xds_proto::resource::cluster::{LbPolicy, ProxyVersion};

use crate::document::duration;
use crate::shape::{Field, Rule, Shape, optional, required};

const HOUR: Duration = Duration::from_secs(3600);
const TIME_PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";

fn within(text: &str, min: Duration) -> bool {
    duration(text).is_some_and(|d| (min..=HOUR).contains(&d))
}

pub(crate) const TIME: Shape = Shape::Text(Rule {
    allowed: "a time such as 500ms, 10s or 1m30s, from 1ms to 1h",
    pattern: TIME_PATTERN,
    check: |t| within(t, Duration::from_millis(1)),
});
const CHECK_INTERVAL: Shape = Shape::Text(Rule {
    allowed: "a time from 100ms to 1h",
    pattern: TIME_PATTERN,
    check: |t| within(t, Duration::from_millis(100)),
});
const LONG_TIME: Shape = Shape::Text(Rule {
    allowed: "a time from 1s to 1h",
    pattern: TIME_PATTERN,
    check: |t| within(t, Duration::from_secs(1)),
});
const BALANCING: Shape = Shape::Text(Rule {
    allowed: LbPolicy::WORDS,
    pattern: "^(round-robin|random|least-connections|least-request|peak-ewma|lowest-load|(ring-hash|maglev):(source|(header|cookie)=.+))$",
    check: |t| t.parse::<LbPolicy>().is_ok(),
});
const HEALTH_PATH: Shape = Shape::Text(Rule {
    allowed: "a path of 1 to 1024 visible ASCII characters that starts with /",
    pattern: "^/",
    check: |t| t.starts_with('/') && is_visible(t),
});
const GRPC_SERVICE: Shape = Shape::Text(Rule {
    allowed: "up to 1024 visible ASCII characters; \"\" for the server as a whole",
    pattern: "",
    check: is_visible,
});

fn is_visible(text: &str) -> bool {
    text.len() <= 1024 && text.bytes().all(|b| b.is_ascii_graphic())
}

const ANY: Shape = Shape::Integer(0, u32::MAX as i64);
const SOME: Shape = Shape::Integer(1, u32::MAX as i64);
const IN_A_ROW: Shape = Shape::Integer(0, 1_000_000);
const THRESHOLD: Shape = Shape::Integer(1, 100);
const PERCENT: Shape = Shape::Integer(0, 100);

const SLOW_START: Shape = Shape::Object(&[
    optional("window", &LONG_TIME, "after it, an endpoint has its whole share; 30s if missing"),
    optional("minWeightPercent", &Shape::Integer(1, 100), "what it has at first; 10 if missing"),
]);

const HEALTH_CHECK: Shape = Shape::Object(&[
    optional("path", &HEALTH_PATH, "GET it and want a 2xx"),
    optional("grpc", &GRPC_SERVICE, "ask grpc.health.v1.Health for this service"),
    optional("interval", &CHECK_INTERVAL, "between two checks of an endpoint; 2s if missing"),
    optional("timeout", &TIME, "for one check; 1s if missing"),
    optional("unhealthyThreshold", &THRESHOLD, "failures in a row that take an endpoint out; 2 if missing"),
    optional("healthyThreshold", &THRESHOLD, "successes in a row that bring it back; 1 if missing"),
]);

const OUTLIER: Shape = Shape::Object(&[
    optional(
        "consecutiveFailures",
        &IN_A_ROW,
        "5xx answers, broken exchanges and time-outs in a row that eject; 0 for never; 5 if missing",
    ),
    optional(
        "consecutiveGatewayFailures",
        &IN_A_ROW,
        "502, 503, 504, broken exchanges and time-outs in a row that eject; never if missing",
    ),
    optional(
        "baseEjectionTime",
        &TIME,
        "first ejection; each further one takes twice as long; 5s if missing",
    ),
    optional("maxEjectionTime", &TIME, "longest ejection; 5m if missing"),
    optional("maxEjectionPercent", &PERCENT, "share of the endpoints that may be ejected; 50 if missing"),
    optional("interval", &LONG_TIME, "over which endpoints are compared; 10s if missing"),
    optional("successRate", &Shape::Object(&RULE_ANY), "who answers well less often than the others"),
    optional("failurePercentage", &Shape::Object(&RULE_PERCENT), "who fails at least so often"),
    optional("latency", &Shape::Object(&RULE_TIMES), "who takes so many times as long as the others"),
]);

const MIN_HOSTS: Field = optional("minHosts", &ANY, "endpoints that must have had enough requests");
const MIN_REQUESTS: Field = optional("minRequests", &ANY, "requests of each in an interval");
const RULE_ANY: [Field; 3] = [
    optional("threshold", &ANY, "thousandths of a standard deviation below the mean; 1900 if missing"),
    MIN_HOSTS,
    MIN_REQUESTS,
];
const RULE_PERCENT: [Field; 3] =
    [optional("threshold", &THRESHOLD, "percent; 85 if missing"), MIN_HOSTS, MIN_REQUESTS];
const RULE_TIMES: [Field; 3] = [
    optional("threshold", &Shape::Integer(2, 100), "times the median; 3 if missing"),
    MIN_HOSTS,
    MIN_REQUESTS,
];

const PANIC: Shape = Shape::Object(&[
    required(
        "policy",
        &Shape::Choice(&["degraded", "spread", "fail"]),
        "degraded: the usable ones; spread: all of them; fail: 503",
    ),
    optional("below", &Shape::Integer(1, 100), "percent of usable endpoints; 50 if missing"),
]);

const BREAKER: Shape = Shape::Object(&[
    optional("maxRequests", &SOME, "requests under way; 16384 if missing"),
    optional("maxConnections", &SOME, "HTTP/1 connections in use; no limit if missing"),
    optional("maxPending", &ANY, "requests that wait for a connection; 1024 if missing"),
]);

const RETRY_BUDGET: Shape = Shape::Object(&[
    optional("percent", &PERCENT, "of the requests under way; 20 if missing"),
    optional("min", &ANY, "so many may always be; 3 if missing"),
]);

pub(crate) const RATE_LIMIT: Shape = Shape::Object(&[
    required("requests", &SOME, "so many"),
    optional("per", &TIME, "in this time; 1s if missing"),
    optional("burst", &SOME, "so many at once, after a time without any; as many as requests if missing"),
]);

const ADAPTIVE: Shape = Shape::Object(&[
    optional("minRequests", &SOME, "so many may always be under way; 10 if missing"),
    optional("maxRequests", &SOME, "never more than so many; 1000 if missing"),
    optional(
        "tolerancePercent",
        &Shape::Integer(100, 1000),
        "what an answer may take of the time without a queue; 150 if missing",
    ),
]);

const ZONE_AWARE: Shape = Shape::Object(&[
    optional("minEndpoints", &SOME, "fewer usable ones in a zone or region are not preferred; 1 if missing"),
    optional(
        "spillAbove",
        &SOME,
        "an endpoint with so many requests of the sidecar under way sends the next further; never if missing",
    ),
]);

const SUBSETS: Shape = Shape::Object(&[
    optional(
        "fallback",
        &Shape::Choice(&["none", "any", "default"]),
        "none: 503; any: any instance; default: those with the labels of default; none if missing",
    ),
    optional("default", &Shape::Labels, "labels of the instances that take over"),
]);

const TIMEOUTS: Shape = Shape::Object(&[
    optional("request", &TIME, "for the whole request, all tries together, where its route says nothing"),
    optional("backendRequest", &TIME, "for each try, where the route says nothing"),
    optional(
        "streamIdle",
        &TIME,
        "an answer of which nothing comes for so long is cut off; no limit if missing",
    ),
    optional("tunnelIdle", &LONG_TIME, "a tunnel in which nothing moves for so long is ended; 1h if missing"),
]);

/// What may be said of a service.
pub const POLICY: [Field; 15] = [
    optional("loadBalancing", &BALANCING, "how an endpoint is chosen"),
    optional("slowStart", &SLOW_START, "endpoints that are new, or back, get their share step by step"),
    optional("connectTimeout", &TIME, "longest wait for a connection; 5s if missing"),
    optional("healthCheck", &HEALTH_CHECK, "active checks"),
    optional("outlierDetection", &OUTLIER, "endpoints that fail are left out for a while"),
    optional("panic", &PANIC, "what happens when few endpoints are usable"),
    optional("circuitBreaker", &BREAKER, "what may be under way at once"),
    optional("retryBudget", &RETRY_BUDGET, "how many repetitions may be under way"),
    optional("rateLimit", &RATE_LIMIT, "how many requests each sidecar sends; more are answered 429"),
    optional("tls", &super::tls::TLS, "TLS to the instances"),
    optional(
        "sendProxy",
        &Shape::Choice(ProxyVersion::WORDS),
        "the PROXY protocol tells instances who the client is; nothing does if missing",
    ),
    optional("adaptiveConcurrency", &ADAPTIVE, "a limit on what is under way that each sidecar finds out"),
    optional("zoneAware", &ZONE_AWARE, "endpoints in the sidecar's own zone come first, then its region"),
    optional("subsets", &SUBSETS, "requests for instances with labels of which there is no usable one"),
    optional("timeouts", &TIMEOUTS, "times of requests whose route says none"),
];

/// The same behind another key.
pub const fn with<const N: usize>(first: Field) -> [Field; N] {
    assert!(N == POLICY.len() + 1, "one more");
    let mut all = [first; N];
    let mut i = 0;
    while i < POLICY.len() {
        all[i + 1] = POLICY[i];
        i += 1;
    }
    all
}
