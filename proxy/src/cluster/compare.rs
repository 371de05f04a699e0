//! Endpoints of one cluster compared with each other: who fails, or is slow, much more than the others is ejected. Pure.
//!
//! This finds what failures in a row do not: one answer in five that is bad. Counters of an interval are taken at its
//! end; an endpoint with few requests says nothing, and few endpoints have no ordinary way to be.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use weft_xds_proto::resource::cluster::{OutlierDetection, Sample};

use super::outlier::Cause;

/// What one endpoint did in an interval. Counted only where a policy asks for it.
#[derive(Debug, Default)]
pub struct Window {
    requests: AtomicU32,
    failures: AtomicU32,
    timed: AtomicU32,
    nanos: AtomicU64,
}

/// The same, read.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Seen {
    /// All.
    pub requests: u32,
    /// Of those.
    pub failures: u32,
    /// Answers with a time.
    pub timed: u32,
    /// Mean time to the head of an answer.
    pub mean_nanos: f64,
}

impl Window {
    /// Counts one exchange.
    pub fn count(&self, failed: bool) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if failed {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts what an answer took.
    pub fn took(&self, nanos: u64) {
        self.timed.fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Reads it and begins the next one.
    pub fn take(&self) -> Seen {
        let timed = self.timed.swap(0, Ordering::Relaxed);
        let nanos = self.nanos.swap(0, Ordering::Relaxed);
        Seen {
            requests: self.requests.swap(0, Ordering::Relaxed),
            failures: self.failures.swap(0, Ordering::Relaxed),
            timed,
            mean_nanos: if timed == 0 { 0.0 } else { nanos as f64 / f64::from(timed) },
        }
    }
}

/// Who is to be ejected and why, the worst first, since not all may be.
pub fn outliers(seen: &[(SocketAddr, Seen)], policy: &OutlierDetection) -> Vec<(SocketAddr, Cause)> {
    let mut found: Vec<(f64, SocketAddr, Cause)> = Vec::new();
    let good = |s: &Seen| 1.0 - f64::from(s.failures) / f64::from(s.requests.max(1));
    if let Some(rule) = &policy.success_rate
        && let Some(known) = enough(seen, rule.sample, |s| s.requests)
    {
        let n = known.len() as f64;
        let mean = known.iter().map(|(_, s)| good(s)).sum::<f64>() / n;
        let variance = known.iter().map(|(_, s)| (good(s) - mean).powi(2)).sum::<f64>() / n;
        let least = mean - variance.sqrt() * f64::from(rule.stdev_factor) / 1000.0;
        let bad = known.iter().filter(|(_, s)| good(s) < least);
        found.extend(bad.map(|(addr, s)| (good(s), *addr, Cause::SuccessRate)));
    }
    if let Some(rule) = &policy.failure_percentage
        && let Some(known) = enough(seen, rule.sample, |s| s.requests)
    {
        let bad = known.iter().filter(|(_, s)| (1.0 - good(s)) * 100.0 >= f64::from(rule.percent));
        found.extend(bad.map(|(addr, s)| (good(s), *addr, Cause::FailurePercentage)));
    }
    if let Some(rule) = &policy.latency
        && let Some(known) = enough(seen, rule.sample, |s| s.timed)
    {
        let mut times: Vec<f64> = known.iter().map(|(_, s)| s.mean_nanos).collect();
        times.sort_by(f64::total_cmp);
        // The lower one of two, so that of two endpoints the slow one can be told.
        let median = times.get((times.len().max(1) - 1) / 2).copied().unwrap_or(0.0);
        let most = (median * f64::from(rule.factor)).max(LATENCY_NANOS_MIN);
        let bad = known.iter().filter(|(_, s)| s.mean_nanos > most);
        found.extend(bad.map(|(addr, s)| (most / s.mean_nanos, *addr, Cause::Latency)));
    }
    found.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    found.dedup_by_key(|(_, addr, _)| *addr);
    found.into_iter().map(|(_, addr, cause)| (addr, cause)).collect()
}

/// Nobody is slow who answers within this time, however fast the others are: 2 ms.
const LATENCY_NANOS_MIN: f64 = 2_000_000.0;

fn enough(
    seen: &[(SocketAddr, Seen)],
    sample: Sample,
    count: impl Fn(&Seen) -> u32,
) -> Option<Vec<(SocketAddr, Seen)>> {
    let known: Vec<_> = seen.iter().filter(|(_, s)| count(s) >= sample.requests.max(1)).copied().collect();
    (!known.is_empty() && known.len() >= sample.hosts as usize).then_some(known)
}

#[cfg(test)]
mod tests {
    use weft_xds_proto::resource::cluster::{FailurePercentage, Latency, SuccessRate};

    use super::*;

    fn addr(port: usize) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port as u16))
    }

    fn failing(failures: &[u32]) -> Vec<(SocketAddr, Seen)> {
        let seen = |f: &u32| Seen { requests: 100, failures: *f, ..Seen::default() };
        failures.iter().enumerate().map(|(i, f)| (addr(i), seen(f))).collect()
    }

    fn slow(millis: &[u32]) -> Vec<(SocketAddr, Seen)> {
        let seen = |ms: &u32| Seen { timed: 20, mean_nanos: f64::from(*ms) * 1e6, ..Seen::default() };
        millis.iter().enumerate().map(|(i, ms)| (addr(i), seen(ms))).collect()
    }

    fn policy() -> OutlierDetection {
        OutlierDetection {
            success_rate: Some(SuccessRate::default()),
            latency: Some(Latency::default()),
            ..OutlierDetection::default()
        }
    }

    #[test]
    fn one_that_fails_more_than_the_others_is_out() {
        assert_eq!(outliers(&failing(&[1, 0, 2, 1, 20]), &policy()), [(addr(4), Cause::SuccessRate)]);
        assert_eq!(outliers(&failing(&[20, 20, 20, 20, 20]), &policy()), [], "all alike");
        assert_eq!(outliers(&failing(&[0, 0, 0, 20]), &policy()), [], "four are too few");
        let mut few = failing(&[1, 0, 2, 1, 20]);
        few[4].1.requests = 99;
        assert_eq!(outliers(&few, &policy()), [], "99 requests are too few");
    }

    #[test]
    fn those_that_fail_often_are_out_the_worst_first() {
        let rule = FailurePercentage { percent: 40, ..FailurePercentage::default() };
        let policy = OutlierDetection { failure_percentage: Some(rule), ..OutlierDetection::default() };
        let found = outliers(&failing(&[40, 90, 39, 0, 0]), &policy);
        assert_eq!(found, [(addr(1), Cause::FailurePercentage), (addr(0), Cause::FailurePercentage)]);
    }

    #[test]
    fn one_that_is_much_slower_than_the_median_is_out() {
        assert_eq!(outliers(&slow(&[5, 6, 19]), &policy()), [(addr(2), Cause::Latency)]);
        assert_eq!(outliers(&slow(&[5, 6, 18]), &policy()), [], "three times is not more than three times");
        assert_eq!(outliers(&slow(&[0, 0, 2]), &policy()), [], "2 ms is slow for nobody");
        assert_eq!(outliers(&slow(&[5, 100]), &policy()), [], "two are too few");
    }

    #[test]
    fn an_interval_begins_with_nothing() {
        let window = Window::default();
        window.count(true);
        window.count(false);
        window.took(10);
        assert_eq!(window.take(), Seen { requests: 2, failures: 1, timed: 1, mean_nanos: 10.0 });
        assert_eq!(window.take(), Seen::default());
        assert_eq!(outliers(&[(addr(1), Seen::default())], &policy()), []);
    }
}
