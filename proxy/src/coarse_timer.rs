//! Limits of seconds for a worker's requests, at the cost of two numbers each: once a tick it is looked whose time is over.
//! The runtime's timers are exact, and cost each request a place in a sorted wheel and its removal.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Poll, Waker};
use std::time::Duration;

use slab::Slab;

use crate::listener::connection::TICK;

/// See the module. A time is over within two ticks after its end, and never before.
#[derive(Debug, Default)]
pub(crate) struct CoarseTimer {
    now: Cell<u64>,
    waiting: RefCell<Slab<Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    until: u64,
    waker: Waker,
}

/// The time was over first.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Elapsed;

impl CoarseTimer {
    /// One more [`TICK`] has passed.
    pub fn tick(&self) {
        let now = self.now.get() + 1;
        self.now.set(now);
        for (_, waiting) in self.waiting.borrow().iter().filter(|(_, w)| w.until <= now) {
            waiting.waker.wake_by_ref();
        }
    }

    /// What becomes of a future within this time.
    ///
    /// # Errors
    /// If that is nothing; it is dropped then.
    pub async fn limit<F: Future>(&self, limit: Duration, future: F) -> Result<F::Output, Elapsed> {
        let ticks = u64::try_from(limit.as_millis().div_ceil(TICK.as_millis())).unwrap_or(u64::MAX);
        // The present tick has begun already.
        let until = self.now.get().saturating_add(ticks).saturating_add(1);
        let mut future = pin!(future);
        let mut place = Place { timer: self, key: None };
        poll_fn(|cx| {
            if let Poll::Ready(done) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(done));
            }
            if self.now.get() >= until {
                return Poll::Ready(Err(Elapsed));
            }
            place.wait(until, cx.waker());
            Poll::Pending
        })
        .await
    }
}

/// Gives its entry back when it is dropped.
struct Place<'a> {
    timer: &'a CoarseTimer,
    key: Option<usize>,
}

impl Place<'_> {
    fn wait(&mut self, until: u64, waker: &Waker) {
        let mut all = self.timer.waiting.borrow_mut();
        match self.key {
            None => self.key = Some(all.insert(Waiting { until, waker: waker.clone() })),
            Some(key) if !all[key].waker.will_wake(waker) => all[key].waker = waker.clone(),
            Some(_) => {}
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.timer.waiting.borrow_mut().remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[tokio::test]
    async fn a_time_is_over_at_the_tick_after_it_and_leaves_nothing_behind() {
        let timer = Rc::new(CoarseTimer::default());
        assert_eq!(timer.limit(Duration::ZERO, async { 1 }).await, Ok(1), "what is done needs no time");
        let mut waiting = by_hand(&timer, TICK * 2);
        assert!(waiting.poll().is_pending());
        for _ in 0..2 {
            timer.tick();
            assert!(waiting.poll().is_pending());
        }
        timer.tick();
        assert_eq!(waiting.poll(), Poll::Ready(Err(Elapsed)));
        drop(waiting);
        let mut given_up = by_hand(&timer, TICK);
        assert!(given_up.poll().is_pending());
        assert_eq!(timer.waiting.borrow().len(), 1);
        drop(given_up);
        assert!(timer.waiting.borrow().is_empty());
    }

    #[tokio::test]
    async fn whoever_waits_is_woken() {
        let timer = Rc::new(CoarseTimer::default());
        let local = tokio::task::LocalSet::new();
        let (ticks, ends) = (timer.clone(), timer.clone());
        local.spawn_local(async move {
            for _ in 0..5 {
                tokio::task::yield_now().await;
                ticks.tick();
            }
        });
        let never = ends.limit(TICK, std::future::pending::<()>());
        assert_eq!(local.run_until(never).await, Err(Elapsed));
    }

    /// A wait that never ends by itself, polled by hand.
    struct ByHand<F>(std::pin::Pin<Box<F>>);

    impl<F: Future> ByHand<F> {
        fn poll(&mut self) -> Poll<F::Output> {
            self.0.as_mut().poll(&mut std::task::Context::from_waker(Waker::noop()))
        }
    }

    fn by_hand(timer: &CoarseTimer, limit: Duration) -> ByHand<impl Future<Output = Result<(), Elapsed>>> {
        ByHand(Box::pin(timer.limit(limit, std::future::pending())))
    }
}
