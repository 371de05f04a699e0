//! A machine: one runtime of one thread, whose clock only moves when it is told to.
//!
//! A crash drops the runtime and every task in it at once, as a power loss does. A pause does not run it; its clock
//! goes on without it (a stopped process) or stands still with it (a suspended machine).

use std::future::Future;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};

use super::intercept;

/// One machine.
pub(crate) struct Host {
    runtime: Option<Runtime>,
    /// Its monotonic clock.
    now: Duration,
    /// Its speed against the world's, in thousandths.
    pub(crate) rate_permille: u32,
    /// Thousandths of a millisecond that it is behind by its rate.
    rest: u32,
    /// By how much its time of day is off, in milliseconds.
    pub(crate) wall_offset: i64,
    /// Does not run until then.
    pub(crate) paused_until: u64,
    /// Whether its clock stands still while it is paused.
    pub(crate) suspended: bool,
    /// Milliseconds that passed while it was paused.
    missed: u64,
}

impl Host {
    /// Switched off.
    pub(crate) fn new() -> Self {
        Self {
            runtime: None,
            // Clocks of machines have nothing to do with each other; none starts at 0, which means something else.
            now: Duration::from_secs(1000),
            rate_permille: 1000,
            rest: 0,
            wall_offset: 0,
            paused_until: 0,
            suspended: false,
            missed: 0,
        }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.runtime.is_some()
    }

    /// Switches it on.
    pub(crate) fn boot(&mut self) {
        assert!(self.runtime.is_none(), "it is off");
        self.enter();
        let (started, at) = (self.now, Instant::now());
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .on_thread_unpark(move || {
                // The runtime moves its clock when all tasks wait. What reads the system's clock follows.
                let now = tokio::time::Instant::now().into_std();
                intercept::set_now(started + now.saturating_duration_since(at));
            })
            .build()
            .expect("a runtime without I/O needs nothing of the system");
        self.runtime = Some(runtime);
        self.missed = 0;
        self.paused_until = 0;
    }

    /// Switches it off. Nothing of what it was doing goes on.
    pub(crate) fn crash(&mut self) {
        self.enter();
        drop(self.runtime.take());
    }

    /// Starts a task.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let runtime = self.runtime.as_ref().expect("it is on");
        self.enter();
        runtime.spawn(task);
    }

    /// A millisecond of the world passes.
    pub(crate) fn tick(&mut self, world_ms: u64) {
        self.rest += self.rate_permille;
        let local_ms = u64::from(self.rest / 1000);
        self.rest %= 1000;
        let Some(runtime) = &self.runtime else {
            self.now += Duration::from_millis(local_ms);
            return;
        };
        if world_ms < self.paused_until {
            if !self.suspended {
                self.missed += local_ms;
            }
            return;
        }
        let missed = std::mem::take(&mut self.missed);
        let (missed, step) = (Duration::from_millis(missed), Duration::from_millis(local_ms));
        // What it missed has passed before anything of it runs again.
        self.now += missed;
        self.enter();
        runtime.block_on(async {
            if !missed.is_zero() {
                tokio::time::advance(missed).await;
            }
            if !step.is_zero() {
                tokio::time::sleep(step).await;
            }
        });
        self.now += step;
        self.enter();
    }

    /// What is called now sees this machine's clock.
    pub(crate) fn enter(&self) {
        intercept::set_now(self.now);
        intercept::set_wall_offset(self.wall_offset);
    }
}
