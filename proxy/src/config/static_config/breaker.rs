//! Keys `circuit-breaker` and `retry-budget` of a cluster.

use serde::{Deserialize, Serialize};
use weft_xds_proto::resource::cluster::{CircuitBreaker, RetryLimit};

/// What may be under way at once; each limit has a default.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StaticCircuitBreaker {
    /// From their start to the end of their answers.
    #[serde(default)]
    pub max_requests: Option<u32>,
    /// HTTP/1 connections in use; no limit if missing.
    #[serde(default)]
    pub max_connections: Option<u32>,
    /// Requests that wait for a connection.
    #[serde(default)]
    pub max_pending: Option<u32>,
}

/// Repetitions that may be under way.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StaticRetryBudget {
    /// Of the requests under way.
    #[serde(default)]
    pub percent: Option<u32>,
    /// So many may always be.
    #[serde(default)]
    pub min: Option<u32>,
}

/// Both together, with defaults.
pub(super) fn breaker(
    limits: Option<&StaticCircuitBreaker>,
    budget: Option<&StaticRetryBudget>,
) -> CircuitBreaker {
    let mut breaker = CircuitBreaker::default();
    if let Some(limits) = limits {
        breaker.max_requests = limits.max_requests.unwrap_or(breaker.max_requests);
        breaker.max_connections = limits.max_connections.unwrap_or(breaker.max_connections);
        breaker.max_pending = limits.max_pending.unwrap_or(breaker.max_pending);
    }
    if let (Some(budget), RetryLimit::Budget { percent, min }) = (budget, breaker.retries) {
        breaker.retries =
            RetryLimit::Budget { percent: budget.percent.unwrap_or(percent), min: budget.min.unwrap_or(min) };
    }
    breaker
}

/// What is wrong with it.
pub(super) fn problems(
    limits: Option<&StaticCircuitBreaker>,
    budget: Option<&StaticRetryBudget>,
) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(limits) = limits {
        for (key, value) in
            [("max-requests", limits.max_requests), ("max-connections", limits.max_connections)]
        {
            if value == Some(0) {
                problems
                    .push(format!("circuit-breaker: {key} 0 lets nothing through; at least 1 is allowed"));
            }
        }
    }
    if let Some(percent) = budget.and_then(|b| b.percent).filter(|p| *p > 100) {
        problems.push(format!("retry-budget: percent {percent} is not between 0 and 100"));
    }
    problems
}
