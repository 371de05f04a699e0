//! What a proxy may have under way to a service at once: Envoy's `circuit_breakers`, of the default priority.
//!
//! Beyond these limits a request is answered at once, so that a service that has become slow does not take the
//! proxy's memory and its callers' patience with it. Every proxy counts for itself.

use envoy_types::pb::envoy::config::cluster::v3::{CircuitBreakers, circuit_breakers};
use envoy_types::pb::envoy::r#type::v3::Percent;
use serde::Serialize;

use super::{InvalidResource, Validator, number_to_proto};

/// See the module. [`u32::MAX`] is no limit, as in Envoy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CircuitBreaker {
    /// Requests from their start to the end of their answers.
    pub max_requests: u32,
    /// HTTP/1 connections in use. Further requests wait for one. HTTP/2 needs only one for each endpoint and worker.
    pub max_connections: u32,
    /// Requests that wait for a connection.
    pub max_pending: u32,
    /// Repetitions that routes ask for.
    pub retries: RetryLimit,
}

impl Default for CircuitBreaker {
    /// Far above what one app has under way, and below what would fill a sidecar's memory. Envoy's 1024 of each are
    /// met by ordinary use of streams.
    fn default() -> Self {
        Self {
            max_requests: 16_384,
            max_connections: u32::MAX,
            max_pending: 1_024,
            retries: RetryLimit::default(),
        }
    }
}

/// How many repetitions may be under way, those that wait for their turn included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum RetryLimit {
    /// A share of the requests under way, so that retries cannot multiply the load of a service that fails (P41).
    Budget {
        /// Of the requests; 0 to 100.
        percent: u32,
        /// So many may always be.
        min: u32,
    },
    /// So many (Envoy's `max_retries` without a budget).
    AtOnce(u32),
}

impl RetryLimit {
    /// How many may be under way beside so many requests.
    pub fn at(self, requests: u32) -> u32 {
        match self {
            // At most `requests`, as `percent` is at most 100.
            Self::Budget { percent, min } => {
                min.max((u64::from(requests) * u64::from(percent.min(100)) / 100) as u32)
            }
            Self::AtOnce(n) => n,
        }
    }
}

impl Default for RetryLimit {
    /// 20 % and 3, the values of Envoy's budgets, which there are off unless asked for.
    fn default() -> Self {
        Self::Budget { percent: 20, min: 3 }
    }
}

const FIELD: &str = "circuit_breakers";

pub(super) fn decode(
    v: &Validator<'_>,
    breakers: Option<&CircuitBreakers>,
) -> Result<CircuitBreaker, InvalidResource> {
    let default = CircuitBreaker::default();
    let Some(breakers) = breakers else { return Ok(default) };
    if !breakers.per_host_thresholds.is_empty() {
        return Err(v.error(format!("{FIELD}.per_host_thresholds"), "set", "unset; use thresholds"));
    }
    // The high priority is for routes that ask for it, which are refused.
    let Some(t) = breakers.thresholds.iter().find(|t| t.priority == 0) else { return Ok(default) };
    let number = |field: &str, value: Option<&_>, default| {
        v.number(format!("{FIELD}.thresholds.{field}"), value, default, (0, u32::MAX))
    };
    let retries = match (&t.retry_budget, &t.max_retries) {
        (Some(budget), _) => {
            let RetryLimit::Budget { percent, min } = RetryLimit::default() else { return Ok(default) };
            if budget.budget_interval.is_some() {
                let field = format!("{FIELD}.thresholds.retry_budget.budget_interval");
                return Err(v.error(field, "set", "unset; the share is of the requests under way"));
            }
            let field = "retry_budget.min_retry_concurrency";
            RetryLimit::Budget {
                percent: whole_percent(v, budget.budget_percent.as_ref(), percent)?,
                min: number(field, budget.min_retry_concurrency.as_ref(), min)?,
            }
        }
        (None, Some(max)) => RetryLimit::AtOnce(max.value),
        (None, None) => RetryLimit::default(),
    };
    Ok(CircuitBreaker {
        max_requests: number("max_requests", t.max_requests.as_ref(), default.max_requests)?,
        max_connections: number("max_connections", t.max_connections.as_ref(), default.max_connections)?,
        max_pending: number("max_pending_requests", t.max_pending_requests.as_ref(), default.max_pending)?,
        retries,
    })
}

fn whole_percent(v: &Validator<'_>, p: Option<&Percent>, default: u32) -> Result<u32, InvalidResource> {
    let Some(p) = p else { return Ok(default) };
    if !(0.0..=100.0).contains(&p.value) || p.value.fract() != 0.0 {
        let field = format!("{FIELD}.thresholds.retry_budget.budget_percent");
        return Err(v.error(field, p.value.to_string(), "a whole number from 0 to 100"));
    }
    Ok(p.value as u32)
}

pub(super) fn encode(b: &CircuitBreaker) -> CircuitBreakers {
    let mut t = circuit_breakers::Thresholds {
        max_requests: Some(number_to_proto(b.max_requests)),
        max_connections: Some(number_to_proto(b.max_connections)),
        max_pending_requests: Some(number_to_proto(b.max_pending)),
        ..circuit_breakers::Thresholds::default()
    };
    match b.retries {
        RetryLimit::Budget { percent, min } => {
            t.retry_budget = Some(circuit_breakers::thresholds::RetryBudget {
                budget_percent: Some(Percent { value: f64::from(percent) }),
                min_retry_concurrency: Some(number_to_proto(min)),
                budget_interval: None,
            });
        }
        RetryLimit::AtOnce(n) => t.max_retries = Some(number_to_proto(n)),
    }
    CircuitBreakers { thresholds: vec![t], ..CircuitBreakers::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V: Validator<'static> = Validator { kind: "Cluster", name: "orders" };

    #[test]
    fn a_budget_grows_with_the_requests_and_has_a_minimum() {
        let budget = RetryLimit::default();
        assert_eq!([0, 10, 15, 20, 100].map(|n| budget.at(n)), [3, 3, 3, 4, 20]);
        assert_eq!(RetryLimit::AtOnce(7).at(1000), 7);
        assert_eq!(RetryLimit::Budget { percent: 100, min: 0 }.at(u32::MAX), u32::MAX);
    }

    #[test]
    fn without_circuit_breakers_the_budget_is_on() {
        assert_eq!(decode(&V, None).unwrap(), CircuitBreaker::default());
        assert_eq!(decode(&V, Some(&CircuitBreakers::default())).unwrap(), CircuitBreaker::default());
        let mut some = encode(&CircuitBreaker::default());
        some.thresholds[0].retry_budget = None;
        some.thresholds[0].max_retries = Some(number_to_proto(9));
        assert_eq!(decode(&V, Some(&some)).unwrap().retries, RetryLimit::AtOnce(9));
    }

    #[test]
    fn a_percentage_out_of_range_and_limits_by_host_are_refused() {
        for bad in [-1.0, 100.5, 20.5, f64::NAN] {
            let mut some = encode(&CircuitBreaker::default());
            some.thresholds[0].retry_budget.as_mut().unwrap().budget_percent = Some(Percent { value: bad });
            let e = decode(&V, Some(&some)).unwrap_err();
            assert!(e.field.ends_with("budget_percent"), "{e}");
        }
        let by_host =
            CircuitBreakers { per_host_thresholds: vec![Default::default()], ..CircuitBreakers::default() };
        assert!(decode(&V, Some(&by_host)).unwrap_err().field.ends_with("per_host_thresholds"));
    }
}
