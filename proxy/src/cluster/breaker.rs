//! What a cluster has under way at once, over all workers, and the limits on it.
//!
//! ```text
//! request ─▶ admitted? ─▶ HTTP/1 connection free? ──────────────▶ exchange ─▶ answered, everything given back
//!              │ no          │ no: waits in the queue ─▶ freed ──▲
//!              ▼             ▼ queue full, or waited for too long
//!             503           503
//! ```
//! Counters are atomics that survive updates. Requests and retries cost one addition and one subtraction each;
//! connections are only counted while they are limited.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use weft_xds_proto::resource::cluster::{CircuitBreaker, RetryLimit};

use super::state::Cluster;
use crate::telemetry::cluster_metrics::Share;

/// Counters of one cluster.
#[derive(Debug, Default)]
pub struct Load {
    requests: AtomicU32,
    retries: AtomicU32,
    connections: AtomicU32,
    pending: AtomicU32,
    freed: Notify,
}

/// What was full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Overflow {
    /// Requests under way.
    #[error("as many requests as max-requests allows are under way")]
    Requests,
    /// Requests under way, as far as the service bears them.
    #[error("as many requests as the service bears at present are under way (adaptive-concurrency)")]
    Adaptive(u32),
    /// The queue for a connection.
    #[error("as many requests as max-pending allows wait for a connection")]
    Pending,
    /// The time to wait for a connection.
    #[error("none of the connections that max-connections allows became free within {0:?}")]
    Wait(Duration),
}

impl Load {
    /// Requests under way.
    pub fn requests(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Repetitions under way or waiting for their turn.
    pub fn retries(&self) -> u32 {
        self.retries.load(Ordering::Relaxed)
    }

    /// HTTP/1 connections in use, while they are limited.
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Requests that wait for a connection.
    pub fn pending(&self) -> u32 {
        self.pending.load(Ordering::Relaxed)
    }

    fn take_connection(&self, max: u32) -> bool {
        take(&self.connections, max)
    }
}

/// Adds one if that stays within the limit. The order matters where [`Load::pending`] is read after it.
fn take(counter: &AtomicU32, max: u32) -> bool {
    let more = |n: u32| (n < max).then_some(n + 1);
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok()
}

impl Cluster {
    /// Requests that may be under way now, and those that it bears as far as that is found out.
    fn requests_max(&self) -> (u32, Option<u32>) {
        let found = self.config.cluster.adaptive.map(|rule| self.shared.gradient.limit(rule));
        let max = self.config.cluster.breaker.max_requests;
        (max.min(found.unwrap_or(max)), found)
    }

    /// Repetitions that may be under way now.
    fn retries_max(&self) -> u32 {
        let retries = self.config.cluster.breaker.retries;
        retries.at(match retries {
            RetryLimit::Budget { .. } => self.shared.load.requests(),
            RetryLimit::AtOnce(_) => 0,
        })
    }

    /// What is in use of each limit: requests, places in the queue for a connection, connections and retries.
    pub(crate) fn shares(&self) -> [Share; 4] {
        let (load, limits) = (&self.shared.load, &self.config.cluster.breaker);
        let limit = |max: u32| (max != u32::MAX).then_some(max);
        // Where connections are not limited they are not counted, and nobody waits for one.
        let connections = limit(limits.max_connections);
        let pending = connections.and(limit(limits.max_pending));
        [
            Share { used: Some(load.requests()), limit: limit(self.requests_max().0) },
            Share { used: Some(load.pending()), limit: pending },
            Share { used: connections.map(|_| load.connections()), limit: connections },
            Share { used: Some(load.retries()), limit: limit(self.retries_max()) },
        ]
    }
}

/// A request that the cluster has taken on, until it is dropped.
#[derive(Debug)]
pub struct Admitted(Arc<Cluster>);

impl Admitted {
    /// Takes it on if the cluster's limit allows it.
    ///
    /// # Errors
    /// If as many as are allowed are under way.
    pub fn new(cluster: Arc<Cluster>) -> Result<Self, (Arc<Cluster>, Overflow)> {
        let (max, found) = cluster.requests_max();
        let requests = &cluster.shared.load.requests;
        // An addition does not fail under contention, as an exchange would: this is done for every request.
        if requests.fetch_add(1, Ordering::Relaxed) < max {
            return Ok(Self(cluster));
        }
        requests.fetch_sub(1, Ordering::Relaxed);
        let max = cluster.config.cluster.breaker.max_requests;
        let why = found.filter(|limit| *limit < max).map_or(Overflow::Requests, Overflow::Adaptive);
        Err((cluster, why))
    }

    /// An answer took so long, or was waited for so long.
    pub fn observe(&self, now: Duration, took: Duration) {
        if let Some(rule) = self.0.config.cluster.adaptive {
            self.0.shared.gradient.observe(rule, now, took, self.load().requests());
        }
    }

    /// By whom.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.0
    }

    fn load(&self) -> &Load {
        &self.0.shared.load
    }

    fn limits(&self) -> &CircuitBreaker {
        &self.0.config.cluster.breaker
    }

    /// Counts a repetition, from the moment at which it is decided: those that wait are load to come. `None` if the
    /// budget is used up.
    pub fn retry(&self) -> Option<RetryPermit> {
        RetryPermit::take(&self.0)
    }

    /// An HTTP/1 connection's place; waits until there is one. `None` if connections are not limited.
    ///
    /// # Errors
    /// If too many wait already, or if none became free until then.
    pub async fn connection(&self, until: Instant) -> Result<Option<ConnectionPermit>, Overflow> {
        let (load, limits) = (self.load(), self.limits());
        let max = limits.max_connections;
        if max == u32::MAX {
            return Ok(None);
        }
        let permit = || Ok(Some(ConnectionPermit(self.0.clone())));
        // Whoever waits comes first.
        if load.pending() == 0 && load.take_connection(max) {
            return permit();
        }
        let Some(_place) = Place::new(load, limits.max_pending) else { return Err(Overflow::Pending) };
        let since = Instant::now();
        loop {
            let freed = load.freed.notified();
            tokio::pin!(freed);
            // From here on, a connection that becomes free is heard of.
            freed.as_mut().enable();
            if load.take_connection(max) {
                return permit();
            }
            if tokio::time::timeout_at(until, freed).await.is_err() {
                return Err(Overflow::Wait(since.elapsed()));
            }
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.load().requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A place in the queue.
struct Place<'a>(&'a Load);

impl<'a> Place<'a> {
    fn new(load: &'a Load, max: u32) -> Option<Self> {
        // Made only then: it gives a place back when it is dropped.
        take(&load.pending, max).then(|| Self(load))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A repetition under way.
#[derive(Debug)]
pub struct RetryPermit(Arc<Cluster>);

impl RetryPermit {
    /// See [`Admitted::retry`].
    pub fn take(cluster: &Arc<Cluster>) -> Option<Self> {
        take(&cluster.shared.load.retries, cluster.retries_max()).then(|| Self(cluster.clone()))
    }
}

impl Drop for RetryPermit {
    fn drop(&mut self) {
        self.0.shared.load.retries.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A connection in use.
#[derive(Debug)]
pub struct ConnectionPermit(Arc<Cluster>);

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let load = &self.0.shared.load;
        load.connections.fetch_sub(1, Ordering::SeqCst);
        if load.pending.load(Ordering::SeqCst) > 0 {
            load.freed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use weft_xds_proto::resource::cluster::AdaptiveConcurrency;

    use super::*;
    use crate::cluster::security::Security;
    use crate::cluster::state::ClusterShared;
    use crate::config_snapshot::ClusterConfig;
    use crate::telemetry::cluster_metrics::ClusterMetrics;

    fn cluster(breaker: CircuitBreaker) -> Arc<Cluster> {
        let mut cluster = weft_xds_proto::resource::cluster::Cluster::with_defaults("orders");
        cluster.breaker = breaker;
        let config = ClusterConfig { cluster, endpoints: Vec::new(), version: String::new() };
        let shared = ClusterShared::new(0, Arc::default(), ClusterMetrics::detached());
        Arc::new(Cluster::new(Arc::new(config), Arc::new(shared), Security::Plain))
    }

    fn limits() -> CircuitBreaker {
        CircuitBreaker {
            max_requests: 4,
            max_connections: 1,
            max_pending: 1,
            retries: RetryLimit::Budget { percent: 50, min: 1 },
        }
    }

    #[test]
    fn requests_beyond_the_limit_are_refused_until_one_ends() {
        let cluster = cluster(CircuitBreaker { max_requests: 1, ..limits() });
        let first = Admitted::new(cluster.clone()).unwrap();
        assert_eq!(Admitted::new(cluster.clone()).unwrap_err().1, Overflow::Requests);
        assert_eq!(cluster.shared.load.requests(), 1, "a refused one is not counted");
        drop(first);
        Admitted::new(cluster).unwrap();
    }

    /// P41: what is scheduled counts, and the share is of what is under way now.
    #[test]
    fn retries_are_a_share_of_the_requests_under_way() {
        let cluster = cluster(limits());
        let requests: Vec<_> = (0..4).map(|_| Admitted::new(cluster.clone()).unwrap()).collect();
        let (one, two) = (requests[0].retry().unwrap(), requests[1].retry().unwrap());
        assert!(requests[2].retry().is_none(), "2 of 4 is half");
        drop(one);
        let again = requests[2].retry().unwrap();
        drop((two, again));
        drop(requests);
        let last = Admitted::new(cluster.clone()).unwrap();
        let minimum = last.retry().unwrap();
        assert!(last.retry().is_none());
        drop((minimum, last));
        assert_eq!((cluster.shared.load.requests(), cluster.shared.load.retries()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_for_a_connection_and_no_more_than_the_queue_holds() {
        let cluster = cluster(limits());
        let request = Admitted::new(cluster.clone()).unwrap();
        let until = Instant::now() + Duration::from_secs(5);
        let first = request.connection(until).await.unwrap().unwrap();
        let waiting = request.connection(until);
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        assert_eq!(cluster.shared.load.pending(), 1);
        assert_eq!(request.connection(until).await.unwrap_err(), Overflow::Pending);
        drop(first);
        let second = waiting.await.unwrap().unwrap();
        assert_eq!((cluster.shared.load.pending(), cluster.shared.load.connections()), (0, 1));
        let late = request.connection(until).await.unwrap_err();
        assert_eq!(late, Overflow::Wait(Duration::from_secs(5)));
        drop(second);
        assert_eq!((cluster.shared.load.pending(), cluster.shared.load.connections()), (0, 0));
    }

    /// A waiter that gives up as it is woken passes its place on.
    #[tokio::test(start_paused = true)]
    async fn a_waiter_that_goes_away_does_not_take_a_wake_up_with_it() {
        let cluster = cluster(CircuitBreaker { max_pending: 9, ..limits() });
        let request = Admitted::new(cluster.clone()).unwrap();
        let until = Instant::now() + Duration::from_secs(5);
        let first = request.connection(until).await.unwrap().unwrap();
        let mut gone = Box::pin(request.connection(until));
        let mut stays = Box::pin(request.connection(until));
        assert!(futures::poll!(&mut gone).is_pending() && futures::poll!(&mut stays).is_pending());
        drop(first);
        drop(gone);
        assert!(stays.await.unwrap().is_some());
    }

    #[test]
    fn what_is_not_limited_has_no_limit_and_the_budget_grows_with_the_requests() {
        let shares = |cluster: &Arc<Cluster>| cluster.shares().map(|share| (share.used, share.limit));
        let none = RetryLimit::AtOnce(u32::MAX);
        let free = CircuitBreaker {
            max_requests: u32::MAX,
            max_connections: u32::MAX,
            max_pending: 1,
            retries: none,
        };
        let (free, tight) = (cluster(free), cluster(limits()));
        assert_eq!(shares(&free), [(Some(0), None), (Some(0), None), (None, None), (Some(0), None)]);
        let _requests: Vec<_> = (0..4).map(|_| Admitted::new(tight.clone()).unwrap()).collect();
        let used = [(Some(4), Some(4)), (Some(0), Some(1)), (Some(0), Some(1)), (Some(0), Some(2))];
        assert_eq!(shares(&tight), used);
    }

    #[test]
    fn the_limit_of_requests_is_the_one_that_holds_now() {
        let mut cluster = weft_xds_proto::resource::cluster::Cluster::with_defaults("orders");
        cluster.adaptive = Some(AdaptiveConcurrency { min: 2, max: 9, tolerance_percent: 150 });
        let config = ClusterConfig { cluster, endpoints: Vec::new(), version: String::new() };
        let shared = ClusterShared::new(0, Arc::default(), ClusterMetrics::detached());
        let cluster = Cluster::new(Arc::new(config), Arc::new(shared), Security::Plain);
        assert_eq!(cluster.shares()[0], Share { used: Some(0), limit: Some(9) });
    }

    #[tokio::test]
    async fn unlimited_connections_are_not_counted() {
        let cluster = cluster(CircuitBreaker::default());
        let request = Admitted::new(cluster).unwrap();
        assert!(request.connection(Instant::now()).await.unwrap().is_none());
    }
}
