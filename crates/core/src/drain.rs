//! Graceful stop: one signal, many watchers, and a count of the work that is still going on.
//!
//! ```text
//! serving --DrainSignal::begin / drain--> draining --last DrainGuard dropped--> drained
//! ```
//! Both arrows go one way. A dropped [`DrainSignal`] signals nothing: watchers just keep serving.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, watch};

/// Makes a signal with its first watcher.
pub fn channel() -> (DrainSignal, DrainWatch) {
    let (draining, watch) = watch::channel(false);
    let draining = Arc::new(draining);
    let work = Arc::new(Work::default());
    (
        DrainSignal { draining: draining.clone(), work: work.clone() },
        DrainWatch { watch, _draining: draining, work },
    )
}

/// Held by the one who decides to stop.
#[derive(Debug)]
pub struct DrainSignal {
    draining: Arc<watch::Sender<bool>>,
    work: Arc<Work>,
}

impl DrainSignal {
    /// Tells all watchers to stop taking new work; does not wait.
    pub fn begin(&self) {
        self.draining.send_replace(true);
    }

    /// Tells all watchers, then waits until every [`DrainGuard`] is dropped. The deadline is the caller's:
    /// wrap it in `tokio::time::timeout`.
    pub async fn drain(self) {
        self.begin();
        loop {
            let dropped = self.work.idle.notified();
            tokio::pin!(dropped);
            // Registered before the count is read, so a guard dropped in between is not missed.
            dropped.as_mut().enable();
            if self.work.active.load(Ordering::Acquire) == 0 {
                return;
            }
            dropped.await;
        }
    }

    /// Guards held now.
    pub fn active(&self) -> usize {
        self.work.active.load(Ordering::Acquire)
    }
}

/// Held by everyone who serves.
#[derive(Debug, Clone)]
pub struct DrainWatch {
    watch: watch::Receiver<bool>,
    // Keeps the channel open when the signal is dropped without a drain.
    _draining: Arc<watch::Sender<bool>>,
    work: Arc<Work>,
}

impl DrainWatch {
    /// Completes when draining starts, at once if it already has.
    pub async fn signaled(&self) {
        let mut watch = self.watch.clone();
        // The sender lives in `self`, so the channel cannot close while we wait.
        let _ = watch.wait_for(|draining| *draining).await;
    }

    /// Whether draining has started.
    pub fn is_draining(&self) -> bool {
        *self.watch.borrow()
    }

    /// Counts one piece of work (a connection, a request) that a drain waits for.
    pub fn guard(&self) -> DrainGuard {
        self.work.active.fetch_add(1, Ordering::AcqRel);
        DrainGuard { work: self.work.clone() }
    }
}

/// One piece of work in progress. Drop it when the work is done.
#[derive(Debug)]
pub struct DrainGuard {
    work: Arc<Work>,
}

impl Drop for DrainGuard {
    fn drop(&mut self) {
        if self.work.active.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.work.idle.notify_waiters();
        }
    }
}

#[derive(Debug, Default)]
struct Work {
    active: AtomicUsize,
    idle: Notify,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn drain_waits_for_the_last_guard() {
        let (signal, watch) = channel();
        let first = watch.guard();
        let second = watch.guard();
        let drained = tokio::spawn(signal.drain());
        watch.signaled().await;
        assert!(watch.is_draining());
        drop(first);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!drained.is_finished());
        drop(second);
        drained.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn drain_without_work_completes_at_once() {
        let (signal, watch) = channel();
        signal.drain().await;
        assert!(watch.is_draining());
        watch.clone().signaled().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_signal_signals_nothing() {
        let (signal, watch) = channel();
        drop(signal);
        assert!(tokio::time::timeout(Duration::from_secs(60), watch.signaled()).await.is_err());
        assert!(!watch.is_draining());
    }

    #[tokio::test(start_paused = true)]
    async fn begin_tells_watchers_and_counts_what_is_left() {
        let (signal, watch) = channel();
        let guard = watch.guard();
        signal.begin();
        assert!(watch.is_draining());
        assert_eq!(signal.active(), 1);
        drop(guard);
        assert_eq!(signal.active(), 0);
    }
}
