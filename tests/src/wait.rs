//! Waiting for a condition with a deadline and a reason.

use std::future::Future;
use std::time::{Duration, Instant};

/// How often a condition is looked at. Real processes have no clock that a test could advance.
const POLL_INTERVAL: Duration = Duration::from_millis(25);

/// Polls until `check` answers `Some`, and panics with `what` and the last `seen` after `limit`.
pub async fn until<T, F, Fut>(what: &str, limit: Duration, mut check: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, String>>,
{
    let started = Instant::now();
    loop {
        let seen = match check().await {
            Ok(value) => return value,
            Err(seen) => seen,
        };
        assert!(started.elapsed() < limit, "not within {limit:?}: {what}; last seen: {seen}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
