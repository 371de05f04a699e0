//! One question asked for everyone who wants to know it at that time.

use std::{future::Future, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

/// Answers that are shared: everyone who asks while a round runs waits for the *next* round, so an answer
/// always comes from a question asked after the one who gets it had come. While nobody asks nothing runs.
pub struct Rounds<T> {
    state: Mutex<State<T>>,
    tasks: TaskTracker,
}

struct State<T> {
    running: bool,
    waiting: Vec<oneshot::Sender<T>>,
}

impl<T: Clone + Send + 'static> Rounds<T> {
    /// Rounds run as tasks of `tasks`.
    pub fn new(tasks: TaskTracker) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { running: false, waiting: Vec::new() }), tasks })
    }

    /// The answer of the next round. `round` asks the question once; it must end in bounded time.
    pub async fn join<F, R>(self: &Arc<Self>, round: F) -> T
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = T> + Send + 'static,
    {
        let answer = {
            let mut state = self.state.lock();
            let (tell, answer) = oneshot::channel();
            state.waiting.push(tell);
            if !state.running {
                state.running = true;
                self.tasks.spawn(self.clone().run(round));
            }
            answer
        };
        answer.await.expect("the running task answers everyone who is waiting before it ends")
    }

    async fn run<F, R>(self: Arc<Self>, round: F)
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = T> + Send + 'static,
    {
        loop {
            let waiting = {
                let mut state = self.state.lock();
                state.waiting.retain(|w| !w.is_closed());
                if state.waiting.is_empty() {
                    state.running = false;
                    return;
                }
                std::mem::take(&mut state.waiting)
            };
            let answer = round().await;
            for waiter in waiting {
                let _ = waiter.send(answer.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn many_who_ask_together_share_a_round_and_late_ones_get_a_later_one() {
        let rounds = Rounds::new(TaskTracker::new());
        let count = Arc::new(AtomicU32::new(0));
        let ask = || {
            let (rounds, count) = (rounds.clone(), count.clone());
            async move {
                let round = move || {
                    let number = count.fetch_add(1, Relaxed) + 1;
                    async move {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        number
                    }
                };
                rounds.join(round).await
            }
        };
        let first = tokio::spawn(ask());
        tokio::time::sleep(Duration::from_millis(5)).await;
        let later = futures::future::join_all((0..100).map(|_| ask())).await;
        assert_eq!(first.await.expect("runs"), 1);
        assert!(later.iter().all(|n| *n == 2), "{later:?}");
        assert_eq!(count.load(Relaxed), 2);
        assert_eq!(ask().await, 3);
    }
}
