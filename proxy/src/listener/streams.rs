//! The requests of one HTTP/2 connection, run inside the connection's own task.
//!
//! hyper hands each request to an executor. As a task of its own it would be copied there, be woken by itself, and wake the
//! connection for its answer alone. Here what arrived together is answered together, in one write. All tasks of a worker
//! take turns on one thread anyway.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hyper::rt::Executor;

type Request = Pin<Box<dyn Future<Output = ()>>>;

/// Takes the requests that hyper hands over; clones share them.
#[derive(Clone, Default)]
pub(super) struct Inbox(Rc<RefCell<Vec<Request>>>);

impl<F: Future<Output = ()> + 'static> Executor<F> for Inbox {
    fn execute(&self, request: F) {
        // Only called from within a poll of the connection, which looks here right after.
        self.0.borrow_mut().push(Box::pin(request));
    }
}

/// A connection and its requests as one future. Ends with the connection; requests that are still there then have nobody
/// to answer, and are dropped.
pub(super) struct WithStreams<C> {
    connection: Pin<Box<C>>,
    inbox: Inbox,
    running: FuturesUnordered<Request>,
}

impl<C> WithStreams<C> {
    /// `inbox` is what the connection was built with.
    pub fn new(connection: C, inbox: Inbox) -> Self {
        Self { connection: Box::pin(connection), inbox, running: FuturesUnordered::new() }
    }

    /// The connection, to be told to stop.
    pub fn connection(&mut self) -> Pin<&mut C> {
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
        this.running.extend(this.inbox.0.borrow_mut().drain(..));
        // An answer wakes this task, and the next poll of the connection writes all that are there.
        while let Poll::Ready(Some(())) = this.running.poll_next_unpin(cx) {}
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::sleep;

    use super::*;

    async fn connection(inbox: Inbox, requests: Vec<Request>, length: Duration) -> &'static str {
        requests.into_iter().for_each(|request| inbox.execute(request));
        sleep(length).await;
        "ended"
    }

    #[tokio::test(start_paused = true)]
    async fn requests_run_beside_each_other_and_what_is_left_at_the_end_is_dropped() {
        let (inbox, order) = (Inbox::default(), Rc::new(RefCell::new(Vec::new())));
        let requests = [3_u64, 1, 2, 60].map(|seconds| -> Request {
            let order = order.clone();
            Box::pin(async move {
                sleep(Duration::from_secs(seconds)).await;
                order.borrow_mut().push(seconds);
            })
        });
        let connection = connection(inbox.clone(), requests.into(), Duration::from_secs(10));
        assert_eq!(WithStreams::new(connection, inbox).await, "ended");
        assert_eq!(*order.borrow(), [1, 2, 3]);
        assert_eq!(Rc::strong_count(&order), 1, "the one that waits longer is gone");
    }
}
