//! The requests of one HTTP/2 connection, run inside the connection's own task.
//!
//! hyper hands each request to an executor. As a task of its own it would be woken on any thread, finish at
//! its own moment and wake the connection for its answer alone: two changes of task and one write to the socket
//! per request. Here what arrived together is answered together, in one write, and what a batch of the log
//! decided wakes the connection once.
//!
//! The price: requests of one connection do not run in parallel. So what computes for long goes to a task of
//! its own (see [`crate::api`]); connections are still spread over all threads.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{StreamExt, stream::FuturesUnordered};
use hyper::rt::Executor;
use parking_lot::Mutex;

type Request = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Takes the requests that hyper hands over; clones share them.
#[derive(Clone, Default)]
pub(super) struct Inbox {
    new: Arc<Mutex<Vec<Request>>>,
}

impl<F> Executor<F> for Inbox
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, request: F) {
        // Only called from within a poll of the connection, which looks here right after.
        self.new.lock().push(Box::pin(request));
    }
}

/// A connection and its requests as one future. Ends with the connection; requests that are still there then
/// have nobody to answer, and are dropped.
pub(super) struct WithStreams<C> {
    connection: Pin<Box<C>>,
    inbox: Inbox,
    running: FuturesUnordered<Request>,
}

impl<C> WithStreams<C> {
    /// `inbox` is what the connection was built with.
    pub(super) fn new(connection: C, inbox: Inbox) -> Self {
        Self { connection: Box::pin(connection), inbox, running: FuturesUnordered::new() }
    }

    /// The connection, to be told to stop.
    pub(super) fn connection(&mut self) -> Pin<&mut C> {
        self.connection.as_mut()
    }
}

impl<C: Future> Future for WithStreams<C> {
    type Output = C::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C::Output> {
        let this = self.get_mut();
        if let Poll::Ready(ended) = this.connection.as_mut().poll(cx) {
            return Poll::Ready(ended);
        }
        this.running.extend(this.inbox.new.lock().drain(..));
        // An answer wakes this task, and the next poll of the connection writes all that are there.
        while let Poll::Ready(Some(())) = this.running.poll_next_unpin(cx) {}
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use tokio::{sync::oneshot, time::sleep};

    use super::*;

    /// A connection that hands over these requests when it is first polled, and then ends after a time.
    async fn connection(inbox: Inbox, requests: Vec<Request>, length: Duration) -> &'static str {
        requests.into_iter().for_each(|request| inbox.execute(request));
        sleep(length).await;
        "ended"
    }

    #[tokio::test(start_paused = true)]
    async fn requests_run_beside_each_other_and_end_in_their_own_order() {
        let inbox = Inbox::default();
        let order = Arc::new(Mutex::new(Vec::new()));
        let requests = [3_u64, 1, 2].map(|seconds| -> Request {
            let order = order.clone();
            Box::pin(async move {
                sleep(Duration::from_secs(seconds)).await;
                order.lock().push(seconds);
            })
        });
        let connection = connection(inbox.clone(), requests.into(), Duration::from_secs(10));
        assert_eq!(WithStreams::new(connection, inbox).await, "ended");
        assert_eq!(*order.lock(), [1, 2, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_running_when_the_connection_ends_is_dropped() {
        let inbox = Inbox::default();
        let (held, mut dropped) = oneshot::channel::<()>();
        let request: Request = Box::pin(async move {
            let _held = held;
            sleep(Duration::from_secs(60)).await;
        });
        let connection = connection(inbox.clone(), vec![request], Duration::from_secs(1));
        WithStreams::new(connection, inbox).await;
        assert!(matches!(dropped.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_wakes_itself_does_not_keep_the_connection_from_going_on() {
        let inbox = Inbox::default();
        let request: Request = Box::pin(poll_fn(|cx| {
            cx.waker().wake_by_ref();
            Poll::Pending
        }));
        let mut turns = 0;
        let connection = poll_fn({
            let inbox = inbox.clone();
            let mut request = Some(request);
            move |cx| {
                if let Some(request) = request.take() {
                    inbox.execute(request);
                }
                turns += 1;
                cx.waker().wake_by_ref();
                if turns < 100 { Poll::Pending } else { Poll::Ready("ended") }
            }
        });
        assert_eq!(WithStreams::new(connection, inbox).await, "ended");
    }
}
