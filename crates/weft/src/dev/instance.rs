//! One instance of a demo service: a listener, a registration in the public HTTP API, and heartbeats.
//!
//! ```text
//! Stopped ──start──▶ Running ──stop──▶ Stopped
//! ```
//! `stop` is a crash: listener, connections and heartbeats end at once and nobody is told. `start` takes
//! the same port again if it is still free, and registers anew.

use std::net::SocketAddr;
use std::time::Duration;

use http::{Method, StatusCode};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::http::{call, serve};
use super::services::{HEALTH_PATH, Service};

/// How long the registry keeps an instance without heartbeats: short, so that a stopped one soon leaves
/// the lists too.
const TTL: Duration = Duration::from_secs(15);
/// Two heartbeats may get lost.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);

/// An instance, running or not.
#[derive(Debug)]
pub(crate) struct Instance {
    id: String,
    service: Service,
    registry: SocketAddr,
    address: SocketAddr,
    /// Present while it runs.
    tasks: Option<[JoinHandle<()>; 2]>,
}

impl Instance {
    /// An instance that does not run yet and will listen at `address`.
    pub(crate) fn new(id: String, service: Service, registry: SocketAddr, address: SocketAddr) -> Self {
        Self { id, service, registry, address, tasks: None }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Where it listens, or did when it ran last.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn is_running(&self) -> bool {
        self.tasks.is_some()
    }

    /// Starts it; nothing to do if it runs.
    pub(crate) async fn start(&mut self) -> Result<(), String> {
        if self.is_running() {
            return Ok(());
        }
        let listener = self.bind().await.map_err(|error| format!("{} finds no port: {error}", self.id))?;
        self.address = listener.local_addr().map_err(|error| error.to_string())?;
        let (id, service, address) = (self.id.clone(), self.service.clone(), self.address);
        // It answers before anyone is told where it is.
        let serving = tokio::spawn(serve(listener, move |request| {
            let (id, service) = (id.clone(), service.clone());
            async move { service.answer(request, &id, address).await }
        }));
        if let Err(why) = self.register().await {
            serving.abort();
            return Err(why);
        }
        let heartbeats = tokio::spawn(heartbeats(self.registration(), self.registry));
        self.tasks = Some([serving, heartbeats]);
        Ok(())
    }

    /// Ends it as a crash would.
    pub(crate) async fn stop(&mut self) {
        for task in self.tasks.take().into_iter().flatten() {
            task.abort();
            // Ends as cancelled, which is what we asked for; waiting makes sure that the port is closed.
            let _ = task.await;
        }
    }

    /// The port it had, so that its address stays; any other if that one is taken by now.
    async fn bind(&self) -> std::io::Result<TcpListener> {
        match TcpListener::bind(self.address).await {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                TcpListener::bind((self.address.ip(), 0)).await
            }
            other => other,
        }
    }

    fn registration(&self) -> Registration {
        let body = serde_json::json!({
            "service": self.service.name(),
            "instance_id": self.id,
            "host": self.address.ip(),
            "port": self.address.port(),
            "metadata": {"demo": "weft dev"},
            "check": {"path": HEALTH_PATH},
            "ttl": weft_core::config::format_duration(TTL),
        });
        Registration { id: self.id.clone(), service: self.service.name(), body: body.to_string() }
    }

    async fn register(&self) -> Result<(), String> {
        self.registration().send(self.registry).await
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        for task in self.tasks.iter().flatten() {
            task.abort();
        }
    }
}

struct Registration {
    id: String,
    service: &'static str,
    body: String,
}

impl Registration {
    async fn send(&self, registry: SocketAddr) -> Result<(), String> {
        let answer =
            call(registry, &registry.to_string(), Method::POST, "/register", Some(self.body.clone())).await;
        match answer {
            Ok(answer) if answer.status.is_success() => Ok(()),
            Ok(answer) => Err(format!("registering {}: {} {}", self.id, answer.status, answer.body.trim())),
            Err(why) => Err(format!("registering {}: {why}", self.id)),
        }
    }

    /// Whether the registry still knows it.
    async fn beat(&self, registry: SocketAddr) -> Result<bool, String> {
        let path = format!("/heartbeat/{}/{}", self.service, self.id);
        let answer = call(registry, &registry.to_string(), Method::PUT, &path, None).await?;
        match answer.status {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => Ok(true),
            status => Err(format!("{status} {}", answer.body.trim())),
        }
    }
}

async fn heartbeats(registration: Registration, registry: SocketAddr) {
    loop {
        tokio::time::sleep(HEARTBEAT_INTERVAL).await;
        let beaten = match registration.beat(registry).await {
            // This machine slept for longer than the TTL.
            Ok(false) => registration.send(registry).await,
            other => other.map(|_| ()),
        };
        if let Err(why) = beaten {
            tracing::warn!(instance = registration.id, why, "heartbeat failed");
        }
    }
}
