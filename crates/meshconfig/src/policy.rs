//! How sidecars treat the traffic to a service: `TrafficPolicy` documents, and the same keys in a proxy's file.
//!
//! | written in | keys |
//! |---|---|
//! | a `TrafficPolicy` (`spec`, beside `targetRef`) | `circuitBreaker: {maxRequests: 100}` |
//! | an entry of `clusters` in the file of `weft proxy --config` | `circuit-breaker: {max-requests: 100}` |
//!
//! Both have one [`shape`] and become one [`PolicySpec`], whose [`PolicySpec::apply`] says what each key means.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use weft_xds_proto::resource::cluster::{
    AdaptiveConcurrency, CheckBy, CircuitBreaker, Cluster, FailurePercentage, HealthCheck, Latency, LbPolicy,
    OutlierDetection, PanicPolicy, RateLimit, RetryLimit, Sample, SlowStart, SubsetFallback, SuccessRate,
    Timeouts, ZoneAware,
};

use crate::document::{ObjectRef, duration, null_is_default, spec};
use crate::lower;
use crate::shape::{self, Names, Problem, Shape};

pub mod keys;
mod tls;

pub use tls::TlsSpec;

/// Below so many percent of usable endpoints a panic policy applies, if nobody says so.
const PANIC_BELOW: u32 = 50;
/// Rates are by the second if nobody says so.
const RATE_PER: Duration = Duration::from_secs(1);
const SLOW_START: SlowStart = SlowStart { window: Duration::from_secs(30), min_weight_percent: 10 };

/// `spec` of a `TrafficPolicy`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TrafficPolicySpec {
    /// The service.
    #[serde(deserialize_with = "null_is_default")]
    pub target_ref: ObjectRef,
    /// What is said of it.
    #[serde(flatten)]
    pub policy: PolicySpec,
}

spec!(
    /// What is said of a service; all that is missing stays as it is without a policy.
    #[derive(Eq)]
    PolicySpec {
        load_balancing: Option<String>, slow_start: Option<SlowStartSpec>, connect_timeout: Option<String>,
        health_check: Option<HealthCheckSpec>, outlier_detection: Option<OutlierSpec>, panic: Option<PanicSpec>,
        tls: Option<TlsSpec>, send_proxy: Option<String>,
        circuit_breaker: Option<BreakerSpec>, retry_budget: Option<RetryBudgetSpec>, rate_limit: Option<RateLimitSpec>, adaptive_concurrency: Option<AdaptiveSpec>,
        zone_aware: Option<ZoneAwareSpec>, subsets: Option<SubsetsSpec>, timeouts: Option<TimeoutsSpec>,
    }
);
spec!(
    /// Endpoints that are new, or back, get their share step by step.
    #[derive(Eq)]
    SlowStartSpec { window: Option<String>, min_weight_percent: Option<u32>, }
);
spec!(
    /// Active checks.
    #[derive(Eq)]
    HealthCheckSpec {
        path: Option<String>, grpc: Option<String>, interval: Option<String>, timeout: Option<String>,
        unhealthy_threshold: Option<u32>, healthy_threshold: Option<u32>,
    }
);
spec!(
    /// Ejection of endpoints that fail or are slow.
    #[derive(Eq)]
    OutlierSpec {
        consecutive_failures: Option<u32>, consecutive_gateway_failures: Option<u32>,
        base_ejection_time: Option<String>, max_ejection_time: Option<String>, max_ejection_percent: Option<u32>,
        interval: Option<String>, success_rate: Option<RuleSpec>, failure_percentage: Option<RuleSpec>,
        latency: Option<RuleSpec>,
    }
);
spec!(
    /// A comparison of endpoints with each other.
    #[derive(Eq)]
    RuleSpec { threshold: Option<u32>, min_hosts: Option<u32>, min_requests: Option<u32>, }
);
spec!(
    /// What happens when few endpoints are usable.
    #[derive(Eq)]
    PanicSpec { policy: String, below: Option<u32>, }
);
spec!(
    /// What may be under way at once.
    #[derive(Eq)]
    BreakerSpec { max_requests: Option<u32>, max_connections: Option<u32>, max_pending: Option<u32>, }
);
spec!(
    /// How many repetitions may be under way.
    #[derive(Eq)]
    RetryBudgetSpec { percent: Option<u32>, min: Option<u32>, }
);

spec!(
    /// How many requests each sidecar sends.
    #[derive(Eq)]
    RateLimitSpec { requests: u32, per: Option<String>, burst: Option<u32>, }
);

spec!(
    /// A limit on what is under way that each sidecar finds out.
    #[derive(Eq)]
    AdaptiveSpec { min_requests: Option<u32>, max_requests: Option<u32>, tolerance_percent: Option<u32>, }
);

spec!(
    /// Endpoints near the sidecar come first.
    #[derive(Eq)]
    ZoneAwareSpec { min_endpoints: Option<u32>, spill_above: Option<u32>, }
);

spec!(
    /// Requests for instances with labels of which there is no usable one.
    #[derive(Eq)]
    SubsetsSpec { fallback: Option<String>, default: BTreeMap<String, String>, }
);

spec!(
    /// Times of requests whose route says none.
    #[derive(Eq)]
    TimeoutsSpec { request: Option<String>, backend_request: Option<String>, stream_idle: Option<String>, tunnel_idle: Option<String>, }
);

/// The policy of one service, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Name of the `TrafficPolicy`.
    pub document: String,
    /// What it says.
    pub spec: PolicySpec,
}

impl PolicySpec {
    /// Reads the keys of a cluster in a proxy's file, as far as they are right. `others` are the keys that a cluster may
    /// have beside these.
    pub fn from_file(keys: &Map<String, Value>, others: &[&str]) -> (Self, Vec<Problem>) {
        let mut problems = Vec::new();
        let known: Vec<_> = keys::POLICY.iter().map(|field| Names::Kebab.path(field.name)).collect();
        let (keys, unknown): (Map<_, _>, Map<_, _>) =
            keys.clone().into_iter().partition(|(key, _)| known.contains(key));
        for key in unknown.into_iter().map(|(key, _)| key) {
            let all: Vec<_> = others.iter().copied().chain(known.iter().map(String::as_str)).collect();
            problems.push(shape::unknown_key("", key, &all));
        }
        let mut value = Value::Object(keys);
        shape::check_named(Names::Kebab, &Shape::Object(&keys::POLICY), &mut value, "", &mut problems);
        let spec: Self = match serde_json::from_value(value) {
            Ok(spec) => spec,
            Err(error) => {
                problems.push(Problem::new("", error.to_string()));
                return (Self::default(), problems);
            }
        };
        let mut meant = Vec::new();
        spec.check("", &mut meant);
        problems.extend(meant.into_iter().map(|p| Problem { at: Names::Kebab.path(&p.at), ..p }));
        (spec, problems)
    }

    /// How an endpoint is chosen, if it is said.
    pub fn balancing(&self) -> Option<LbPolicy> {
        self.load_balancing.as_ref()?.parse().ok()
    }

    /// What keys and types alone do not say. `at` is the path of these keys, empty or with a dot at its end.
    pub fn check(&self, at: &str, problems: &mut Vec<Problem>) {
        if let (Some(_), Some(balancing)) = (&self.slow_start, self.load_balancing.as_ref())
            && let Ok(policy) = balancing.parse::<LbPolicy>()
            && !policy.takes_slow_start()
        {
            let message = format!(
                "there is none under {policy}; it works with round-robin, least-connections and least-request"
            );
            problems.push(Problem::new(format!("{at}slowStart"), message));
        }
        if let Some(check) = &self.health_check
            && check.path.is_some()
            && check.grpc.is_some()
        {
            problems.push(Problem::new(
                format!("{at}healthCheck.grpc"),
                "given beside path; allowed is one of them",
            ));
        }
        if let Some(tls) = &self.tls {
            tls.check(&format!("{at}tls"), problems);
        }
        if let Some(rule) = &self.adaptive_concurrency
            && let (Some(min), Some(max)) = (rule.min_requests, rule.max_requests)
            && min > max
        {
            let message = format!("{max} is less than minRequests, {min}");
            problems.push(Problem::new(format!("{at}adaptiveConcurrency.maxRequests"), message));
        }
        if let Some(subsets) = &self.subsets {
            subsets.check(&format!("{at}subsets"), problems);
        }
        if let Some(times) = &self.timeouts
            && let (Some(request), Some(one)) = (time(&times.request), time(&times.backend_request))
            && one > request
        {
            let message = "longer than request, which ends all tries together";
            problems.push(Problem::new(format!("{at}timeouts.backendRequest"), message));
        }
        if let Some(outlier) = &self.outlier_detection
            && let (Some(base), Some(max)) =
                (time(&outlier.base_ejection_time), time(&outlier.max_ejection_time))
            && base > max
        {
            let message = format!("{max:?} is shorter than the first ejection, {base:?}");
            problems.push(Problem::new(format!("{at}outlierDetection.maxEjectionTime"), message));
        }
    }

    /// Puts what is said in the place of what `cluster` has.
    pub fn apply(&self, cluster: &mut Cluster) {
        if let Some(policy) = self.balancing() {
            cluster.lb_policy = policy;
        }
        if let Some(slow) = &self.slow_start {
            cluster.slow_start = Some(SlowStart {
                window: time(&slow.window).unwrap_or(SLOW_START.window),
                min_weight_percent: slow.min_weight_percent.unwrap_or(SLOW_START.min_weight_percent),
            });
        }
        // Whoever sets the one does not take the other with him: `weft lb` may say what the policy leaves open.
        cluster.slow_start = cluster.slow_start.filter(|_| cluster.lb_policy.takes_slow_start());
        set(&mut cluster.connect_timeout, time(&self.connect_timeout));
        if let Some(check) = &self.health_check {
            check.apply(cluster.health_check.get_or_insert_with(HealthCheck::default));
        }
        if let Some(outlier) = &self.outlier_detection {
            outlier.apply(&mut cluster.outlier_detection);
        }
        if let Some(panic) = &self.panic {
            let below = panic.below.unwrap_or(PANIC_BELOW);
            cluster.panic = match panic.policy.as_str() {
                "spread" => PanicPolicy::Spread { below },
                "fail" => PanicPolicy::Fail { below },
                _ => PanicPolicy::Degraded,
            };
        }
        if let Some(limit) = &self.rate_limit {
            cluster.rate_limit = Some(limit.meant());
        }
        if let Some(rule) = &self.adaptive_concurrency {
            let mut adaptive = AdaptiveConcurrency::default();
            set(&mut adaptive.min, rule.min_requests);
            set(&mut adaptive.max, rule.max_requests);
            set(&mut adaptive.tolerance_percent, rule.tolerance_percent);
            adaptive.max = adaptive.max.max(adaptive.min);
            cluster.adaptive = Some(adaptive);
        }
        if let Some(rule) = &self.zone_aware {
            let mut zone_aware = ZoneAware::default();
            set(&mut zone_aware.min_endpoints, rule.min_endpoints);
            set(&mut zone_aware.spill_above, rule.spill_above);
            cluster.zone_aware = Some(zone_aware);
        }
        if let Some(subsets) = &self.subsets {
            cluster.subsets.fallback = subsets.meant();
        }
        if let Some(tls) = &self.tls {
            cluster.tls = tls.meant();
        }
        if let Some(version) = self.send_proxy.as_ref().and_then(|text| text.parse().ok()) {
            cluster.send_proxy = Some(version);
        }
        if let Some(times) = &self.timeouts {
            cluster.timeouts = Timeouts {
                request: time(&times.request).or(cluster.timeouts.request),
                one_try: time(&times.backend_request).or(cluster.timeouts.one_try),
                stream_idle: time(&times.stream_idle).or(cluster.timeouts.stream_idle),
                tunnel_idle: time(&times.tunnel_idle).or(cluster.timeouts.tunnel_idle),
            };
        }
        if let Some(limits) = &self.circuit_breaker {
            limits.apply(&mut cluster.breaker);
        }
        if let (Some(budget), RetryLimit::Budget { percent, min }) =
            (&self.retry_budget, RetryLimit::default())
        {
            cluster.breaker.retries = RetryLimit::Budget {
                percent: budget.percent.unwrap_or(percent),
                min: budget.min.unwrap_or(min),
            };
        }
    }
}

impl HealthCheckSpec {
    /// With neither path nor gRPC service, what is asked stays: instances may have said it.
    fn apply(&self, check: &mut HealthCheck) {
        match (&self.path, &self.grpc) {
            (_, Some(service)) => check.by = CheckBy::Grpc(service.clone()),
            (Some(path), None) => check.by = CheckBy::Get(path.clone()),
            (None, None) => {}
        }
        set(&mut check.interval, time(&self.interval));
        set(&mut check.timeout, time(&self.timeout));
        set(&mut check.unhealthy_threshold, self.unhealthy_threshold);
        set(&mut check.healthy_threshold, self.healthy_threshold);
    }
}

impl RateLimitSpec {
    /// With defaults for what is not said.
    pub fn meant(&self) -> RateLimit {
        RateLimit {
            requests: self.requests.max(1),
            per: time(&self.per).unwrap_or(RATE_PER),
            burst: self.burst.unwrap_or(self.requests).max(1),
        }
    }
}

impl SubsetsSpec {
    fn check(&self, at: &str, problems: &mut Vec<Problem>) {
        let at = format!("{at}.default");
        if (self.fallback.as_deref() == Some("default")) == self.default.is_empty() {
            let message = "labels of the instances that take over, beside fallback: default and no other";
            problems.push(Problem::new(at, format!("allowed is {message}")));
            return;
        }
        match lower::subset(&self.default) {
            Err(error) => {
                let message = format!("{:?}; allowed is {}", error.seen, error.allowed);
                problems.push(Problem::new(format!("{at}.{}", error.key), message));
            }
            Ok(subset) => {
                for (key, text, _) in subset.texts().filter(|(.., range)| *range) {
                    let message = format!("{text:?}; allowed is a value, not a range of versions");
                    problems.push(Problem::new(format!("{at}.{key}"), message));
                }
            }
        }
    }

    fn meant(&self) -> SubsetFallback {
        match (self.fallback.as_deref(), lower::subset(&self.default)) {
            (Some("any"), _) => SubsetFallback::Any,
            (Some("default"), Ok(subset)) => SubsetFallback::Default(Arc::new(subset)),
            _ => SubsetFallback::None,
        }
    }
}

impl OutlierSpec {
    fn apply(&self, o: &mut OutlierDetection) {
        set(&mut o.consecutive_failures, self.consecutive_failures);
        set(&mut o.consecutive_gateway, self.consecutive_gateway_failures);
        set(&mut o.base_ejection_time, time(&self.base_ejection_time));
        set(&mut o.max_ejection_time, time(&self.max_ejection_time));
        o.max_ejection_time = o.max_ejection_time.max(o.base_ejection_time);
        set(&mut o.max_ejection_percent, self.max_ejection_percent);
        set(&mut o.interval, time(&self.interval));
        if let Some(rule) = &self.success_rate {
            let d = SuccessRate::default();
            o.success_rate = Some(SuccessRate {
                stdev_factor: rule.threshold.unwrap_or(d.stdev_factor),
                sample: rule.sample(d.sample),
            });
        }
        if let Some(rule) = &self.failure_percentage {
            let d = FailurePercentage::default();
            o.failure_percentage = Some(FailurePercentage {
                percent: rule.threshold.unwrap_or(d.percent),
                sample: rule.sample(d.sample),
            });
        }
        if let Some(rule) = &self.latency {
            let d = Latency::default();
            let factor = rule.threshold.unwrap_or(d.factor);
            o.latency = Some(Latency { factor, sample: rule.sample(d.sample) });
        }
    }
}

impl RuleSpec {
    fn sample(&self, default: Sample) -> Sample {
        Sample {
            hosts: self.min_hosts.unwrap_or(default.hosts),
            requests: self.min_requests.unwrap_or(default.requests),
        }
    }
}

impl BreakerSpec {
    fn apply(&self, breaker: &mut CircuitBreaker) {
        set(&mut breaker.max_requests, self.max_requests);
        set(&mut breaker.max_connections, self.max_connections);
        set(&mut breaker.max_pending, self.max_pending);
    }
}

fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

/// Texts were checked when they were read.
fn time(text: &Option<String>) -> Option<Duration> {
    text.as_deref().and_then(duration)
}

#[cfg(test)]
mod tests;
