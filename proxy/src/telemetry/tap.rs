//! Requests as they end, for people who look on: `/tap` of the admin port and `weft tap`.
//!
//! Nothing is noted while nobody looks on: a request asks one atomic. Workers never wait for whoever does: what does not
//! fit into the queue is dropped, and the reader is told how much.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::access_log::{Entry, Format};
use super::flag::Flag;

/// Lookers at once.
pub const TAPS_MAX: usize = 8;

/// Lines that wait for one of them.
const LINES_WAITING_MAX: usize = 1024;

/// All who look on.
#[derive(Debug, Default)]
pub struct Taps {
    /// How many there are, for those who only want to know that.
    count: AtomicUsize,
    /// Locked when one comes or goes, and by requests that end while there is one.
    all: Mutex<Vec<Arc<Tap>>>,
}

#[derive(Debug)]
struct Tap {
    filter: Filter,
    lines: mpsc::Sender<Bytes>,
    dropped: AtomicU64,
}

/// Which requests somebody wants to see. What is none does not matter.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Filter {
    pub service: Option<String>,
    pub direction: Option<String>,
    pub method: Option<String>,
    /// Beginning of the path.
    pub path: Option<String>,
    pub status: Option<StatusFilter>,
    pub flag: Option<String>,
    pub client: Option<IpAddr>,
    /// Until the end of the answer, at least.
    pub min_ms: Option<u64>,
}

/// A status, or a class of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusFilter {
    /// Such as 404.
    Exact(u16),
    /// Such as 5xx.
    Class(u16),
}

impl Filter {
    /// From the query of a request, such as `service=orders&status=5xx`. Keys of `others` are left to the caller.
    ///
    /// # Errors
    /// The key, what was seen and what is allowed.
    pub fn from_query(query: &HashMap<String, String>, others: &[&str]) -> Result<Self, String> {
        let mut filter = Self::default();
        // Sorted, so that the same query gets the same error.
        let mut keys: Vec<_> = query.iter().collect();
        keys.sort();
        for (key, value) in keys {
            let bad = |allowed: &str| format!("{key}: {value:?}; allowed is {allowed}");
            match key.as_str() {
                "service" => filter.service = Some(value.clone()),
                "method" => filter.method = Some(value.to_ascii_uppercase()),
                "path" if value.starts_with('/') => filter.path = Some(value.clone()),
                "path" => return Err(bad("the beginning of a path, with its slash")),
                "direction" if matches!(value.as_str(), "outbound" | "inbound") => {
                    filter.direction = Some(value.clone());
                }
                "direction" => return Err(bad("outbound or inbound")),
                "flag" if Flag::ALL.iter().any(|f| f.word() == value) => filter.flag = Some(value.clone()),
                "flag" => return Err(bad("one of the flags of the access log, such as upstream-timeout")),
                "status" => {
                    let class = value.strip_suffix("xx").and_then(|c| c.parse().ok());
                    filter.status = Some(match (class, value.parse()) {
                        (Some(class @ 1..=5), _) => StatusFilter::Class(class),
                        (None, Ok(status @ 100..=599)) => StatusFilter::Exact(status),
                        _ => return Err(bad("a status from 100 to 599, or 1xx to 5xx")),
                    });
                }
                "client" => filter.client = Some(value.parse().map_err(|_| bad("an IP address"))?),
                "min-ms" => {
                    filter.min_ms = Some(value.parse().map_err(|_| bad("a number of milliseconds"))?);
                }
                other if others.contains(&other) => {}
                other => {
                    return Err(format!(
                        "{other}: unknown; allowed are service, direction, method, path, status, flag, client, min-ms, {}",
                        others.join(", ")
                    ));
                }
            }
        }
        Ok(filter)
    }

    /// Whether this request is wanted.
    pub fn wants(&self, e: &Entry) -> bool {
        let is = |wanted: &Option<String>, seen: &str| wanted.as_ref().is_none_or(|w| w == seen);
        is(&self.service, &e.service)
            && is(&self.direction, e.direction.as_str())
            && is(&self.method, e.method.as_str())
            && self.path.as_ref().is_none_or(|prefix| e.path.starts_with(prefix.as_str()))
            && self.client.is_none_or(|ip| ip == e.client.ip().to_canonical())
            && self.min_ms.is_none_or(|ms| e.took >= Duration::from_millis(ms))
            && self.flag.as_ref().is_none_or(|word| e.flags.iter().any(|f| f.word() == word))
            && self.status.is_none_or(|wanted| {
                e.status.is_some_and(|status| match wanted {
                    StatusFilter::Exact(code) => status == code,
                    StatusFilter::Class(class) => status.as_u16() / 100 == class,
                })
            })
    }
}

impl Taps {
    /// Whether anybody looks on.
    pub fn any(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Lets somebody look on, until the answer is dropped. None if too many do.
    pub fn open(self: &Arc<Self>, filter: Filter) -> Option<TapLines> {
        let mut all = self.all.lock();
        if all.len() >= TAPS_MAX {
            return None;
        }
        let (lines, waiting) = mpsc::channel(LINES_WAITING_MAX);
        let tap = Arc::new(Tap { filter, lines, dropped: AtomicU64::new(0) });
        all.push(tap.clone());
        self.count.store(all.len(), Ordering::Relaxed);
        Some(TapLines { taps: self.clone(), tap, waiting })
    }

    /// Tells all who want to know of a request that ended at `now` after the epoch.
    pub fn tell(&self, entry: &Entry, now: Duration) {
        let wanted: Vec<_> = self.all.lock().iter().filter(|tap| tap.filter.wants(entry)).cloned().collect();
        if wanted.is_empty() {
            return;
        }
        let line = Bytes::from(Format::Json.line(entry, now));
        for tap in wanted {
            if tap.lines.try_send(line.clone()).is_err() {
                tap.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// What one looker gets: a JSON object a line, as in the access log, and `{"dropped":N}` where lines were lost.
#[derive(Debug)]
pub struct TapLines {
    taps: Arc<Taps>,
    tap: Arc<Tap>,
    waiting: mpsc::Receiver<Bytes>,
}

impl TapLines {
    /// The next line.
    pub fn poll_next(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<Bytes>> {
        let dropped = self.tap.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            return std::task::Poll::Ready(Some(Bytes::from(format!("{{\"dropped\":{dropped}}}\n"))));
        }
        self.waiting.poll_recv(cx)
    }
}

impl Drop for TapLines {
    fn drop(&mut self) {
        let mut all = self.taps.all.lock();
        all.retain(|tap| !Arc::ptr_eq(tap, &self.tap));
        self.taps.count.store(all.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode, Version};

    use super::*;
    use crate::telemetry::flag::Flags;
    use crate::telemetry::metrics::Direction;

    fn entry() -> Entry {
        Entry {
            direction: Direction::Outbound,
            client: "10.0.0.1:7".parse().unwrap(),
            method: Method::GET,
            host: "orders".to_owned(),
            path: "/api/1?x=2".to_owned(),
            protocol: Some(Version::HTTP_11),
            status: Some(StatusCode::BAD_GATEWAY),
            flags: Flags::default().with(Flag::UpstreamClosed),
            bytes: 5,
            took: Duration::from_millis(120),
            head: None,
            service: "orders".to_owned(),
            route: String::new(),
            endpoint: None,
            tries: 1,
            trace_id: String::new(),
        }
    }

    fn filter(query: &[(&str, &str)]) -> Result<Filter, String> {
        let query = query.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Filter::from_query(&query, &["limit"])
    }

    #[test]
    fn all_conditions_must_hold() {
        for (query, wants) in [
            (vec![], true),
            (vec![("service", "orders"), ("status", "5xx"), ("method", "get"), ("limit", "3")], true),
            (vec![("service", "billing")], false),
            (vec![("status", "502")], true),
            (vec![("status", "4xx")], false),
            (vec![("path", "/api")], true),
            (vec![("path", "/other")], false),
            (vec![("direction", "inbound")], false),
            (vec![("flag", "upstream-closed"), ("client", "10.0.0.1")], true),
            (vec![("flag", "deadline")], false),
            (vec![("min-ms", "120")], true),
            (vec![("min-ms", "121")], false),
        ] {
            assert_eq!(filter(&query).unwrap().wants(&entry()), wants, "{query:?}");
        }
    }

    #[test]
    fn conditions_that_are_none_are_refused_by_name() {
        for (key, value, why) in [
            ("status", "6xx", "1xx to 5xx"),
            ("status", "99", "100 to 599"),
            ("path", "api", "slash"),
            ("direction", "up", "outbound or inbound"),
            ("flag", "slow", "flags of the access log"),
            ("min-ms", "-1", "milliseconds"),
            ("client", "me", "IP address"),
            ("colour", "red", "allowed are service"),
        ] {
            let refused = filter(&[(key, value)]).unwrap_err();
            assert!(refused.contains(why) && refused.starts_with(key), "{refused}");
        }
    }

    #[tokio::test]
    async fn lookers_are_bounded_and_are_told_of_what_was_dropped() {
        let taps = Arc::new(Taps::default());
        assert!(!taps.any());
        let mut all: Vec<_> = (0..TAPS_MAX).map(|_| taps.open(Filter::default()).unwrap()).collect();
        assert!(taps.any() && taps.open(Filter::default()).is_none());
        for _ in 0..LINES_WAITING_MAX + 2 {
            taps.tell(&entry(), Duration::from_secs(1));
        }
        let mut next = async || std::future::poll_fn(|cx| all[0].poll_next(cx)).await.unwrap();
        assert_eq!(next().await, "{\"dropped\":2}\n");
        let line = next().await;
        assert!(line.starts_with(b"{\"time\":") && line.ends_with(b"}\n"), "{line:?}");
        drop(all);
        assert!(!taps.any(), "nothing is noted once they are gone");
    }
}
