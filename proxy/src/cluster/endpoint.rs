//! What is remembered of an endpoint across updates of its cluster.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use weft_xds_proto::resource::labels::ReportedLoad;

use super::check::CheckState;
use super::compare::Window;
use super::latency::Latency;
use super::outlier::{Ejection, Failures};

/// State of one address in one cluster, shared by all workers and by successive endpoint sets.
#[derive(Debug)]
pub struct EndpointState {
    addr: SocketAddr,
    since: Instant,
    active: AtomicU32,
    /// What it last reported: load and capacity as two `f32`, or nothing.
    reported: AtomicU64,
    /// That was in the answer to a check.
    by_check: AtomicBool,
    /// Of answers, where the balancing policy looks at them.
    pub latency: Latency,
    /// Of this interval, where endpoints are compared.
    pub window: Window,
    /// Failures in a row.
    pub failures: Failures,
    /// Changed and read under the lock of the mesh state's writer, except for display.
    pub(crate) health: Mutex<Health>,
}

/// Ejection and active checks.
#[derive(Debug, Default, Clone)]
pub(crate) struct Health {
    pub ejection: Ejection,
    pub check: CheckState,
    /// When its checks passed again after they had failed.
    pub passed: Option<Instant>,
}

impl EndpointState {
    /// Of an address seen for the first time.
    pub fn new(addr: SocketAddr) -> Arc<Self> {
        Arc::new(Self {
            addr,
            since: Instant::now(),
            active: AtomicU32::new(0),
            reported: AtomicU64::new(NOT_REPORTED),
            by_check: AtomicBool::new(false),
            latency: Latency::default(),
            window: Window::default(),
            failures: Failures::default(),
            health: Mutex::default(),
        })
    }

    /// The address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// When this proxy first heard of it; for display.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Since when it has been in rotation, if it is.
    pub(crate) fn in_since(&self) -> Instant {
        let health = self.health.lock();
        health.ejection.returned().into_iter().chain(health.passed).fold(self.since, Instant::max)
    }

    /// Requests in flight, of all workers.
    pub fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    /// See [`Latency::cost`].
    pub fn cost(&self, now: u64) -> f64 {
        self.latency.cost(now, self.active())
    }

    /// It says that it bears this, in its answer to a check.
    pub fn report(&self, load: ReportedLoad) {
        self.by_check.store(true, Ordering::Relaxed);
        self.reported.store(pair(Some(load)), Ordering::Relaxed);
    }

    /// Its labels say this, or nothing. What it says in checks is newer.
    pub fn labelled(&self, load: Option<ReportedLoad>) {
        if !self.by_check.load(Ordering::Relaxed) {
            self.reported.store(pair(load), Ordering::Relaxed);
        }
    }

    /// What part of its capacity is in use: as it last said, and this proxy's requests under way on top, since a report
    /// is older than they are. One that says nothing counts as half used.
    pub fn reported_share(&self) -> f64 {
        let active = f64::from(self.active());
        match self.reported.load(Ordering::Relaxed) {
            NOT_REPORTED => 0.5 + active / 100.0,
            pair => {
                let (load, capacity) = (f32::from_bits((pair >> 32) as u32), f32::from_bits(pair as u32));
                (f64::from(load) + active) / f64::from(capacity)
            }
        }
    }

    /// Counts a request in flight until it is dropped.
    pub fn start(self: &Arc<Self>) -> ActiveRequest {
        self.active.fetch_add(1, Ordering::Relaxed);
        ActiveRequest(self.clone())
    }
}

/// Six digits are enough to compare by.
fn pair(load: Option<ReportedLoad>) -> u64 {
    let bits = |n: f64| u64::from((n as f32).to_bits());
    load.map_or(NOT_REPORTED, |r| bits(r.load) << 32 | bits(r.capacity))
}

/// No load has these bits.
const NOT_REPORTED: u64 = u64::MAX;

/// One request in flight.
#[derive(Debug)]
pub struct ActiveRequest(Arc<EndpointState>);

impl ActiveRequest {
    /// Of which endpoint.
    pub fn endpoint(&self) -> &Arc<EndpointState> {
        &self.0
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_endpoint_says_in_checks_counts_more_than_its_labels() {
        let endpoint = EndpointState::new("127.0.0.1:1".parse().unwrap());
        assert_eq!(endpoint.reported_share(), 0.5, "nothing is known");
        let load = |load| ReportedLoad { load, capacity: 100.0 };
        endpoint.labelled(Some(load(20.0)));
        let held = endpoint.start();
        assert!((endpoint.reported_share() - 0.21).abs() < 1e-6, "with a request of ours");
        drop(held);
        endpoint.report(load(90.0));
        endpoint.labelled(Some(load(20.0)));
        assert!((endpoint.reported_share() - 0.9).abs() < 1e-6);
    }

    #[test]
    fn requests_in_flight_are_counted_until_dropped() {
        let endpoint = EndpointState::new("127.0.0.1:1".parse().unwrap());
        let (one, two) = (endpoint.start(), endpoint.start());
        assert_eq!(endpoint.active(), 2);
        drop(one);
        assert_eq!(two.endpoint().active(), 1);
        drop(two);
        assert_eq!(endpoint.active(), 0);
    }
}
