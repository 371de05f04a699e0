//! Many questions to one peer on one lasting stream, instead of a call for each.
//!
//! ```text
//! ask ─► queue ─► Exchange stream ─► the peer answers each when it can, several at a time
//!   ◄── by number ◄───────────────── answers, in any order
//! ```
//! What is asked often is small (heartbeats, confirmations of leadership, renewals), and a gRPC call for it costs
//! several times what it says: its own stream, headers both ways, trailers. Here what is asked at the same time
//! leaves in one write, and so do the answers.
//!
//! The stream lives as long as its connection. When it breaks everyone who waits is told; the next question opens
//! another one.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Code, Status, transport::Channel};
use weft_xds_proto::peer::{Ask, Refused, Told, ask, peer_client::PeerClient, told};

/// Questions that may wait for the connection to take them; then whoever asks waits too.
const QUEUE_MAX: usize = 1024;

/// Questions of one stream that a server answers at one time; further ones wait in the stream.
pub const ANSWERING_MAX: usize = 4096;

/// One stream to one peer. Dropping the last handle ends it.
pub struct Exchange {
    queue: mpsc::Sender<Ask>,
    next: AtomicU64,
    waiting: Arc<Waiting>,
}

/// Tells the answer to the one who asked.
type Tell = oneshot::Sender<Result<Bytes, Status>>;

/// Who waits for which answer; none any more once the stream has ended, with the reason.
struct Waiting {
    state: Mutex<Result<HashMap<u64, Tell>, Status>>,
}

impl Exchange {
    /// Opens a stream as a task of `tasks`. It ends with `stop`, when the peer is gone, or when nobody holds the
    /// exchange any more.
    pub fn open(mut client: PeerClient<Channel>, tasks: &TaskTracker, stop: CancellationToken) -> Arc<Self> {
        let call =
            move |asks: Asks| async move { client.exchange(asks).await.map(tonic::Response::into_inner) };
        Self::over(call, tasks, stop)
    }

    fn over<F, A>(call: impl FnOnce(Asks) -> F, tasks: &TaskTracker, stop: CancellationToken) -> Arc<Self>
    where
        F: Future<Output = Result<A, Status>> + Send + 'static,
        A: Stream<Item = Result<Told, Status>> + Send + Unpin + 'static,
    {
        let (queue, asked) = mpsc::channel(QUEUE_MAX);
        let waiting = Arc::new(Waiting { state: Mutex::new(Ok(HashMap::new())) });
        let answers = call(Asks(asked));
        let run = stop.run_until_cancelled_owned(run(answers, End(waiting.clone())));
        tasks.spawn(run);
        Arc::new(Self { queue, next: AtomicU64::new(0), waiting })
    }

    /// Whether it can still be asked.
    pub fn is_open(&self) -> bool {
        self.waiting.state.lock().is_ok()
    }

    /// Asks. Dropping the future forgets the question; the peer may carry it out nevertheless.
    ///
    /// # Errors
    /// The peer's refusal, or why the stream could not be opened or broke.
    pub async fn ask(&self, cluster_id: u64, body: ask::Body) -> Result<Bytes, Status> {
        let id = self.next.fetch_add(1, Relaxed);
        let (tell, told) = oneshot::channel();
        self.waiting.state.lock().as_mut().map_err(|ended| ended.clone())?.insert(id, tell);
        let _forget = Forget { waiting: &self.waiting, id };
        // A queue without a reader belongs to a stream that has ended, which tells everyone.
        let _ = self.queue.send(Ask { id, cluster_id, body: Some(body) }).await;
        told.await.unwrap_or_else(|_| Err(Status::unavailable("this server stops")))
    }
}

/// What leaves on the stream.
struct Asks(mpsc::Receiver<Ask>);

impl Stream for Asks {
    type Item = Ask;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Ask>> {
        self.0.poll_recv(cx)
    }
}

/// Takes a question that is no longer waited for out of the list.
struct Forget<'a> {
    waiting: &'a Waiting,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.waiting.take(self.id);
    }
}

impl Waiting {
    fn take(&self, id: u64) -> Option<Tell> {
        self.state.lock().as_mut().ok()?.remove(&id)
    }

    fn end(&self, status: Status) {
        let waiting = std::mem::replace(&mut *self.state.lock(), Err(status.clone()));
        for tell in waiting.into_iter().flat_map(HashMap::into_values) {
            let _ = tell.send(Err(status.clone()));
        }
    }
}

/// However the task ends, nobody is left waiting.
struct End(Arc<Waiting>);

impl Drop for End {
    fn drop(&mut self) {
        if self.0.state.lock().is_ok() {
            self.0.end(Status::unavailable("the stream to the peer has ended"));
        }
    }
}

async fn run<A>(answers: impl Future<Output = Result<A, Status>>, end: End)
where
    A: Stream<Item = Result<Told, Status>> + Unpin,
{
    let mut answers = match answers.await {
        Ok(answers) => answers,
        Err(status) => return end.0.end(status),
    };
    while let Some(answer) = answers.next().await {
        let Told { id, outcome } = match answer {
            Ok(told) => told,
            Err(status) => return end.0.end(status),
        };
        let Some(tell) = end.0.take(id) else { continue };
        let _ = tell.send(match outcome {
            Some(told::Outcome::Body(body)) => Ok(body),
            Some(told::Outcome::Refused(Refused { code, message })) => {
                Err(Status::new(Code::from_i32(code), message))
            }
            None => Err(Status::internal("the peer's answer is of an unknown kind")),
        });
    }
}

/// An answer as it goes back.
pub fn told(id: u64, answer: Result<Bytes, Status>) -> Told {
    let outcome = match answer {
        Ok(body) => told::Outcome::Body(body),
        Err(status) => {
            let message = status.message().to_owned();
            told::Outcome::Refused(Refused { code: status.code() as i32, message })
        }
    };
    Told { id, outcome: Some(outcome) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::stream;

    use super::*;

    /// The peer's end: what was asked, and where answers go.
    struct Peer {
        asks: Asks,
        answers: mpsc::Sender<Result<Told, Status>>,
    }

    impl Peer {
        async fn asked(&mut self) -> (u64, Bytes) {
            match self.asks.next().await.expect("the stream goes on") {
                Ask { id, body: Some(ask::Body::Question(body)), .. } => (id, body),
                other => panic!("{other:?}"),
            }
        }

        fn tell(&self, id: u64, answer: Result<Bytes, Status>) {
            self.answers.try_send(Ok(told(id, answer))).expect("somebody listens");
        }
    }

    fn exchange(tasks: &TaskTracker, stop: CancellationToken) -> (Arc<Exchange>, Peer) {
        let (answers, mut told) = mpsc::channel(8);
        let mut end = None;
        let call = |asks| {
            end = Some(Peer { asks, answers });
            std::future::ready(Ok(stream::poll_fn(move |cx| told.poll_recv(cx))))
        };
        let exchange = Exchange::over(call, tasks, stop);
        (exchange, end.expect("is called at once"))
    }

    fn question(text: &'static str) -> ask::Body {
        ask::Body::Question(Bytes::from_static(text.as_bytes()))
    }

    fn opened() -> (Arc<Exchange>, Peer) {
        exchange(&TaskTracker::new(), CancellationToken::new())
    }

    fn asking(
        exchange: &Arc<Exchange>,
        text: &'static str,
    ) -> tokio::task::JoinHandle<Result<Bytes, Status>> {
        let exchange = exchange.clone();
        tokio::spawn(async move { exchange.ask(7, question(text)).await })
    }

    #[tokio::test(start_paused = true)]
    async fn answers_reach_those_who_asked_in_whatever_order_they_come() {
        let (exchange, mut peer) = opened();
        let (first, second) = (asking(&exchange, "first"), asking(&exchange, "second"));
        let (one, two) = (peer.asked().await, peer.asked().await);
        peer.tell(two.0, Ok(two.1.clone()));
        peer.tell(99, Ok(Bytes::from_static(b"nobody asked this")));
        peer.tell(one.0, Err(Status::failed_precondition("of another cluster")));
        let answers = [(one.1, first), (two.1, second)];
        for (text, answer) in answers {
            let answer = answer.await.expect("runs");
            if text == "first" {
                assert_eq!(answer.expect_err("refused").code(), Code::FailedPrecondition);
            } else {
                assert_eq!(answer.expect("answered"), "second");
            }
        }
        assert!(exchange.is_open(), "a refusal concerns one question");
    }

    #[tokio::test(start_paused = true)]
    async fn everyone_is_told_when_the_stream_breaks_and_whoever_asks_later_too() {
        let (exchange, mut peer) = opened();
        let (first, second) = (asking(&exchange, "a"), asking(&exchange, "b"));
        peer.asked().await;
        peer.answers.try_send(Err(Status::aborted("reset"))).expect("somebody listens");
        for answer in [first, second] {
            assert_eq!(answer.await.expect("runs").expect_err("broken").message(), "reset");
        }
        assert!(!exchange.is_open());
        assert_eq!(exchange.ask(7, question("c")).await.expect_err("broken").message(), "reset");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_peer_that_ends_the_stream_without_a_word_or_when_this_server_stops() {
        let tasks = TaskTracker::new();
        let stop = CancellationToken::new();
        let (ended, peer) = exchange(&tasks, stop.clone());
        let waiting = asking(&ended, "a");
        drop(peer);
        assert_eq!(waiting.await.expect("runs").expect_err("ended").code(), Code::Unavailable);
        let (stopped, mut peer) = exchange(&tasks, stop.clone());
        let waiting = asking(&stopped, "b");
        peer.asked().await;
        stop.cancel();
        assert_eq!(waiting.await.expect("runs").expect_err("stopped").code(), Code::Unavailable);
        tasks.close();
        tasks.wait().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_that_is_given_up_is_forgotten_and_its_late_answer_too() {
        let (exchange, mut peer) = opened();
        let patience = Duration::from_millis(10);
        tokio::time::timeout(patience, exchange.ask(7, question("a"))).await.expect_err("no answer");
        assert!(exchange.waiting.state.lock().as_ref().expect("open").is_empty());
        let (id, body) = peer.asked().await;
        peer.tell(id, Ok(body));
        let next = asking(&exchange, "b");
        let (id, body) = peer.asked().await;
        peer.tell(id, Ok(body));
        assert_eq!(next.await.expect("runs").expect("answered"), "b");
    }

    #[tokio::test(start_paused = true)]
    async fn the_stream_ends_when_nobody_holds_the_exchange() {
        let (exchange, mut peer) = opened();
        drop(exchange);
        assert!(peer.asks.next().await.is_none());
    }
}
