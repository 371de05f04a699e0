//! The turns of a task whose parts wake one another: it goes on for as long as they do, without being put back into the
//! runtime's queue for each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures::task::AtomicWaker;

/// More in a row than parts have to tell each other; what wakes the task still is something else, such as the runtime that
/// wants it to leave the thread to others, and has its way.
const ROUNDS_MAX: usize = 3;

/// See the module.
pub(super) struct Turn {
    shared: Arc<Shared>,
    waker: Waker,
}

#[derive(Default)]
struct Shared {
    task: AtomicWaker,
    /// Somebody's turn is now, and it looks at `again` before it ends.
    inside: AtomicBool,
    again: AtomicBool,
}

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.inside.load(Ordering::SeqCst) {
            self.again.store(true, Ordering::SeqCst);
        } else {
            self.task.wake();
        }
    }
}

impl Turn {
    pub fn new() -> Self {
        let shared = Arc::new(Shared::default());
        Self { waker: shared.clone().into(), shared }
    }

    /// Calls `parts` until none of them has woken another, with a waker that wakes the task of `cx`.
    pub fn take<T>(
        &self,
        cx: &mut Context<'_>,
        mut parts: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let shared = &*self.shared;
        shared.task.register(cx.waker());
        shared.inside.store(true, Ordering::SeqCst);
        let mut rounds = 0;
        let polled = loop {
            shared.again.store(false, Ordering::SeqCst);
            rounds += 1;
            let polled = parts(&mut Context::from_waker(&self.waker));
            if polled.is_ready() || rounds == ROUNDS_MAX || !shared.again.load(Ordering::SeqCst) {
                break polled;
            }
        };
        shared.inside.store(false, Ordering::SeqCst);
        // Also by another thread, a moment ago.
        if shared.again.load(Ordering::SeqCst) {
            cx.waker().wake_by_ref();
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures::task::noop_waker_ref;

    use super::*;

    #[derive(Default)]
    struct Counted(std::sync::atomic::AtomicUsize);

    impl Wake for Counted {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn parts_that_wake_one_another_are_called_again_without_waking_the_task() {
        let (turn, woken, calls) = (Turn::new(), Arc::new(Counted::default()), Cell::new(0));
        let task = Waker::from(woken.clone());
        let polled: Poll<()> = turn.take(&mut Context::from_waker(&task), |cx| {
            calls.set(calls.get() + 1);
            if calls.get() == 1 {
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        });
        assert!(polled.is_pending() && calls.get() == 2);
        assert_eq!(woken.0.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn whoever_wakes_it_later_wakes_the_task() {
        let (turn, woken) = (Turn::new(), Arc::new(Counted::default()));
        let (task, mut held) = (Waker::from(woken.clone()), None);
        let _ = turn.take(&mut Context::from_waker(&task), |cx| -> Poll<()> {
            held = Some(cx.waker().clone());
            Poll::Pending
        });
        held.unwrap().wake();
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    }

    /// A runtime that takes the thread away does so by waking whoever does not stop.
    #[test]
    fn one_that_is_always_woken_leaves_the_thread_and_comes_back() {
        let (turn, woken, calls) = (Turn::new(), Arc::new(Counted::default()), Cell::new(0));
        let task = Waker::from(woken.clone());
        let polled: Poll<()> = turn.take(&mut Context::from_waker(&task), |cx| {
            calls.set(calls.get() + 1);
            cx.waker().wake_by_ref();
            Poll::Pending
        });
        assert!(polled.is_pending() && calls.get() == ROUNDS_MAX);
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn what_is_ready_is_told_at_once() {
        let turn = Turn::new();
        let polled = turn.take(&mut Context::from_waker(noop_waker_ref()), |_| Poll::Ready(7));
        assert_eq!(polled, Poll::Ready(7));
    }
}
