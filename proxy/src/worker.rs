//! A worker: one thread with one current-thread runtime, which owns its sockets, connections and upstream pool.
//! Workers share nothing but atomics and snapshots.
//!
//! ```text
//!  Serving ──> Closing ──────────────> Stopping ────────────────────────────> Stopped
//!              answers say             no more accepted, idle connections     whatever is left is cut
//!              Connection: close       closed, the others finish
//!    └───> HandedOver ─────────────────────┘
//!          no more accepted, HTTP/2 and answers say goodbye, idle connections stay
//! ```

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::http::context::{Context, Side, WorkerParts};
use crate::http::seen::Observers;
use crate::limits::DRAIN_LINGER;
use crate::listener::accept::{self, Door, Entry};
use crate::listener::connection::{Connections, Room, TICK, Timeouts};
use crate::listener::stream::Socket;
use crate::mesh_view::MeshState;
use crate::policy::cache::{Cache, Changes};
use crate::policy::forwarding::Forwarding;
use crate::policy::overload::{Limits, MEASURE_EVERY, Queue};
use crate::telemetry::metrics::Metrics;
use crate::tls::door::DoorTls;
use crate::upstream::pool::Pool;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Serving,
    Closing,
    HandedOver,
    Stopping,
    Stopped,
}

/// What a worker is made of.
pub(crate) struct WorkerConfig {
    pub index: usize,
    pub doors: Vec<DoorConfig>,
    pub metrics: Metrics,
    pub observers: Option<Arc<Observers>>,
    pub epoch: Instant,
    /// What workers tell each other of the answers that they have stored.
    pub cached_changes: Arc<Changes>,
    pub connections_max: usize,
    pub timeouts: Timeouts,
    pub phase: watch::Receiver<Phase>,
    /// Limits of this proxy itself, and what of its memory is to be refused for, in thousandths.
    pub overload: (Limits, Arc<AtomicU32>),
}

/// One listening socket with the side that it serves.
pub(crate) struct DoorConfig {
    pub socket: Socket,
    pub entry: Entry,
    pub side: Side,
    pub forwarding: Forwarding,
    pub mesh: Arc<MeshState>,
    pub tls: Option<DoorTls>,
}

/// A running worker. It ends when its phase says so, or when the sender of the phase is gone.
pub(crate) struct Worker {
    thread: JoinHandle<()>,
    done: oneshot::Receiver<usize>,
}

impl Worker {
    /// Starts the thread. It accepts when this returns.
    ///
    /// # Errors
    /// If the system gives no thread or no event queue.
    pub fn spawn(config: WorkerConfig) -> io::Result<Self> {
        let (started, start) = std::sync::mpsc::sync_channel(1);
        let (finished, done) = oneshot::channel();
        let thread =
            std::thread::Builder::new().name(format!("weft-worker-{}", config.index)).spawn(move || {
                let runtime =
                    match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
                        Ok(runtime) => runtime,
                        Err(error) => {
                            // The receiver waits below.
                            let _ = started.send(Err(error));
                            return;
                        }
                    };
                let left = runtime.block_on(run(config, started));
                // Tasks that are left end with the runtime.
                drop(runtime);
                // Nobody waits if the proxy was dropped without a drain.
                let _ = finished.send(left);
            })?;
        start.recv().map_err(|_| io::Error::other("the worker ended before it started"))??;
        Ok(Self { thread, done })
    }

    /// Waits for its end. Answers how many connections were cut.
    pub async fn join(self) -> usize {
        let left = self.done.await.unwrap_or(0);
        // It ends right after it said so.
        let _ = tokio::task::spawn_blocking(move || self.thread.join()).await;
        left
    }
}

async fn run(config: WorkerConfig, started: std::sync::mpsc::SyncSender<io::Result<()>>) -> usize {
    let connections = Rc::new(Connections::new(config.timeouts));
    let parts = WorkerParts {
        cache: Rc::new(RefCell::new(Cache::new(config.cached_changes))),
        pool: Rc::new(Pool::default()),
        metrics: config.metrics,
        observers: config.observers,
        epoch: config.epoch,
        closing: Rc::default(),
        timeouts: config.timeouts,
        connections: connections.clone(),
        timer: Rc::default(),
        shed: Rc::default(),
    };
    if config.overload.0.any() {
        let (limits, memory) = config.overload;
        tokio::task::spawn_local(watch_load(limits, memory, parts.shed.clone()));
    }
    let (stop, stopped) = (Rc::new(Cell::new(false)), Rc::new(Notify::new()));
    let mut doors = Vec::new();
    let inbound = |door: &DoorConfig| matches!(door.side, Side::Inbound { .. });
    let both_ways = config.doors.iter().any(inbound) && !config.doors.iter().all(inbound);
    let room = Room::new(config.connections_max, both_ways);
    for door in config.doors {
        let listener = match door.socket.register() {
            Ok(listener) => listener,
            Err(error) => {
                // The receiver waits in `spawn`.
                let _ = started.send(Err(error));
                return 0;
            }
        };
        let door = Rc::new(Door {
            ctx: Rc::new(Context::new(door.side, door.forwarding, door.mesh, &parts)),
            connections: connections.clone(),
            entry: door.entry,
            tls: door.tls,
            room,
            stop: stop.clone(),
        });
        doors.push(tokio::task::spawn_local(accept::run(listener, door, stopped.clone())));
    }
    // The receiver waits in `spawn`.
    let _ = started.send(Ok(()));
    let mut phase = config.phase;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                connections.sweep();
                parts.timer.tick();
                parts.pool.expire(Instant::now());
            }
            changed = phase.changed() => {
                let now = if changed.is_ok() { *phase.borrow_and_update() } else { Phase::Stopped };
                match now {
                    Phase::Serving => {}
                    Phase::Closing => parts.closing.set(true),
                    Phase::HandedOver | Phase::Stopping => {
                        parts.closing.set(true);
                        stop.set(true);
                        stopped.notify_waiters();
                        for door in doors.drain(..) {
                            // It ends once the kernel's queue is empty.
                            let _ = door.await;
                        }
                        if now == Phase::HandedOver {
                            connections.close_http2();
                            finish(&connections, &parts, &mut phase, Phase::Stopping).await;
                        }
                        // The last ones to be accepted have not sent their requests yet.
                        tokio::time::sleep(DRAIN_LINGER).await;
                        connections.close_all();
                        return finish(&connections, &parts, &mut phase, Phase::Stopped).await;
                    }
                    Phase::Stopped => return connections.count(),
                }
            }
        }
    }
}

/// Looks how late this worker comes to what it has to do, and says which part of its requests is refused. Ends with the
/// runtime.
async fn watch_load(limits: Limits, memory: Arc<AtomicU32>, shed: Rc<Cell<u32>>) {
    let mut queue = Queue::default();
    loop {
        let due = Instant::now() + MEASURE_EVERY;
        tokio::time::sleep(MEASURE_EVERY).await;
        // The timer's own grain of a millisecond is no queue.
        let late = due.elapsed().saturating_sub(Duration::from_millis(1));
        let for_queue = limits.queue.map_or(0, |limit| queue.observe(late, limit));
        shed.set(for_queue.max(memory.load(Ordering::Relaxed)));
    }
}

/// Waits for the last connection, or for a phase in which patience ends. Answers how many are left.
async fn finish(
    connections: &Connections,
    parts: &WorkerParts,
    phase: &mut watch::Receiver<Phase>,
    end: Phase,
) -> usize {
    let mut look = tokio::time::interval(Duration::from_millis(5));
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let stopped = async {
        // An error means that nobody decides any more.
        let _ = phase.wait_for(|p| *p == Phase::Stopped || *p == end).await;
    };
    tokio::pin!(stopped);
    while connections.count() > 0 {
        tokio::select! {
            _ = look.tick() => {}
            // Tunnels end when they are quiet, and clients that stand still are no reason to wait.
            _ = tick.tick() => {
                connections.sweep();
                parts.timer.tick();
                // Its connections may lead back to this very worker.
                parts.pool.expire(Instant::now());
            }
            () = &mut stopped => break,
        }
    }
    connections.count()
}

#[cfg(test)]
mod tests;
