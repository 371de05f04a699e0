//! Bounds of the etcd API. Each is a named constant; [`Limits`] carries those that tests make small.

use std::time::Duration;

/// Largest write request in bytes, as encoded on the wire: etcd's default (`--max-request-bytes`), which
/// clients rely on. Above it: "request is too large", and nothing is stored.
pub const REQUEST_BYTES_MAX: usize = 1_572_864;

/// Largest message in bytes that is read off the wire at all. Above [`REQUEST_BYTES_MAX`], so that an
/// oversized request is answered with etcd's own text and not with a transport error.
pub const MESSAGE_BYTES_MAX: usize = 4 * REQUEST_BYTES_MAX;

/// Most compares, or operations in one branch, of a transaction including those it is nested in; etcd's
/// default (`--max-txn-ops`).
pub const TXN_OPS_MAX: usize = 128;

/// Bytes of keys and values in one `RangeStream` answer. Small enough to interleave with other streams of
/// the connection, large enough that per-message cost vanishes.
pub const RANGE_CHUNK_BYTES: usize = 1 << 20;

/// Keys that one page of a streamed range or of a hash reads while it holds the state's read lock.
pub const RANGE_PAGE_KEYS: i64 = 10_000;

/// Bytes of events put into one watch answer. A single revision that is larger is still sent whole unless
/// the watcher asked for fragments, as etcd does.
pub const WATCH_RESPONSE_BYTES: usize = 1 << 20;

/// Most bytes in one answer to a watcher that asked for fragments; a single larger event is sent alone.
pub const WATCH_FRAGMENT_BYTES: usize = REQUEST_BYTES_MAX;

/// Watchers on one stream. Client libraries put all watchers of a process on one stream, so this is high.
pub const WATCHERS_PER_STREAM_MAX: usize = 65_536;

/// Watchers on one server, over all streams: about 1 KiB each when idle, so about 1 GiB at the limit.
pub const WATCHERS_PER_SERVER_MAX: usize = 1_000_000;

/// How often an idle watcher that asked for `progress_notify` is told the revision it is synced to; etcd's
/// value. Up to a tenth is added at random so that watchers created together do not answer together.
pub const PROGRESS_NOTIFY_INTERVAL: Duration = Duration::from_secs(600);

/// How long a server may be without a leader before streams that asked for one (`hasleader`) are cut:
/// three election timeouts of 1 s, so that an ordinary change of leader cuts nothing.
pub const NO_LEADER_GRACE: Duration = Duration::from_secs(3);

/// Election timeout that [`min_lease_ttl_secs`] is computed from when the caller does not say.
pub const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// Smallest time to live of a lease in seconds: 1.5 election timeouts, rounded up. A shorter lease could
/// expire in an ordinary change of leader. Shorter requests are raised to it, and the answer says so.
pub fn min_lease_ttl_secs(election_timeout: Duration) -> i64 {
    let millis = election_timeout.as_millis().saturating_mul(3).div_ceil(2);
    i64::try_from(millis.div_ceil(1000)).unwrap_or(i64::MAX).max(1)
}

/// The bounds that differ between a server and a test.
#[derive(Debug, Clone)]
pub struct Limits {
    /// See [`min_lease_ttl_secs`]. In seconds, at least 1.
    pub min_lease_ttl_secs: i64,
    /// See [`PROGRESS_NOTIFY_INTERVAL`].
    pub progress_notify_interval: Duration,
    /// See [`NO_LEADER_GRACE`].
    pub no_leader_grace: Duration,
    /// See [`WATCHERS_PER_STREAM_MAX`].
    pub watchers_per_stream_max: usize,
    /// See [`WATCHERS_PER_SERVER_MAX`].
    pub watchers_per_server_max: usize,
    /// See [`WATCH_RESPONSE_BYTES`].
    pub watch_response_bytes: usize,
    /// See [`WATCH_FRAGMENT_BYTES`].
    pub watch_fragment_bytes: usize,
    /// See [`RANGE_CHUNK_BYTES`].
    pub range_chunk_bytes: usize,
    /// See [`RANGE_PAGE_KEYS`]. At least 1.
    pub range_page_keys: i64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            min_lease_ttl_secs: min_lease_ttl_secs(ELECTION_TIMEOUT),
            progress_notify_interval: PROGRESS_NOTIFY_INTERVAL,
            no_leader_grace: NO_LEADER_GRACE,
            watchers_per_stream_max: WATCHERS_PER_STREAM_MAX,
            watchers_per_server_max: WATCHERS_PER_SERVER_MAX,
            watch_response_bytes: WATCH_RESPONSE_BYTES,
            watch_fragment_bytes: WATCH_FRAGMENT_BYTES,
            range_chunk_bytes: RANGE_CHUNK_BYTES,
            range_page_keys: RANGE_PAGE_KEYS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minimum_lease_ttl_is_one_and_a_half_election_timeouts_rounded_up() {
        assert_eq!(min_lease_ttl_secs(Duration::from_millis(1000)), 2);
        assert_eq!(min_lease_ttl_secs(Duration::from_millis(2000)), 3);
        assert_eq!(min_lease_ttl_secs(Duration::from_millis(2001)), 4);
        assert_eq!(min_lease_ttl_secs(Duration::from_millis(150)), 1);
        assert_eq!(min_lease_ttl_secs(Duration::ZERO), 1);
    }
}
