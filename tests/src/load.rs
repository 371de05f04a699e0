//! Requests without a pause, none of which may fail.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use http::StatusCode;
use tokio::task::JoinHandle;

use crate::http_client;

/// Clients, each with one request at a time.
const CLIENTS: usize = 4;

/// Fewer requests than this would show nothing.
const REQUESTS_MIN: u64 = 100;

/// Runs until [`Load::finish`].
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Asks for `/x` of a host, again and again.
    pub fn start(to: SocketAddr, host: &'static str) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let client = |_| {
            let (stop, done) = (stop.clone(), done.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let answer = http_client::get(to, host, "/x").await.expect("an answer");
                    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let clients = (0..CLIENTS).map(client).collect();
        Self { stop, done, clients }
    }

    /// Ends it.
    ///
    /// # Panics
    /// If a request was not answered by 200, or there were hardly any.
    pub async fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.expect("every request was answered");
        }
        assert!(self.done.load(Ordering::Relaxed) > REQUESTS_MIN, "there was load");
    }
}
