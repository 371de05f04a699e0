//! What the request path of one worker shares for one side. Everything in it belongs to one thread, or is an atomic
//! or a snapshot.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::{ArcSwap, Cache};

use super::seen::Observers;
use crate::coarse_timer::CoarseTimer;
use crate::listener::connection::{Connections, Timeouts};
use crate::mesh_view::{MeshState, MeshView};
use crate::policy::cache::Cache as AnswerCache;
use crate::policy::forwarding::Forwarding;
use crate::telemetry::metrics::{Direction, Metrics};
use crate::upstream::pool::Pool;

/// Tells discovery that a service is in use.
pub(crate) type Want = Arc<dyn Fn(&str) + Send + Sync>;

/// Names a service, used or not, of an instance that takes bytes on their way to an address.
pub(crate) type Find = Arc<dyn Fn(SocketAddr) -> Option<String> + Send + Sync>;

/// Which way requests go.
#[derive(Clone)]
pub(crate) enum Side {
    /// From the local app; `want` if services can become known at run time.
    Outbound {
        want: Option<Want>,
        /// The same.
        find: Option<Find>,
        /// The one service that it is for, whatever host requests name.
        to: Option<String>,
    },
    /// From peers to local services. With only one, every host is its.
    Inbound { only: Option<String> },
}

/// See the module.
pub(crate) struct Context {
    pub side: Side,
    pub mesh: Arc<MeshState>,
    /// Whom to believe what they say of earlier hops.
    pub forwarding: Forwarding,
    cached: RefCell<Cache<MeshSwap, Arc<MeshView>>>,
    pub pool: Rc<Pool>,
    pub rng: RefCell<fastrand::Rng>,
    pub metrics: Metrics,
    /// Told of each request, if somebody wants to know.
    pub observers: Option<Arc<Observers>>,
    /// Origin of the process clock that [`crate::cluster::state::ClusterShared::touch`] counts from.
    pub epoch: Instant,
    /// Answers say `Connection: close`.
    pub closing: Rc<Cell<bool>>,
    pub timeouts: Timeouts,
    pub connections: Rc<Connections>,
    pub timer: Rc<CoarseTimer>,
    /// Copies of requests under way.
    pub mirrors: Cell<usize>,
    /// Answers of routes that want it.
    pub cache: Rc<RefCell<AnswerCache>>,
    /// Answers that are collected for it.
    pub storing: Cell<usize>,
    /// Which part of the requests is refused because this proxy has too much to do, in thousandths.
    pub shed: Rc<Cell<u32>>,
}

/// Lets a [`Cache`] look into the mesh state that it shares.
pub(crate) struct MeshSwap(Arc<MeshState>);

impl std::ops::Deref for MeshSwap {
    type Target = ArcSwap<MeshView>;

    fn deref(&self) -> &ArcSwap<MeshView> {
        self.0.published()
    }
}

impl Context {
    pub fn new(side: Side, forwarding: Forwarding, mesh: Arc<MeshState>, worker: &WorkerParts) -> Self {
        Self {
            side,
            forwarding,
            cached: RefCell::new(Cache::new(MeshSwap(mesh.clone()))),
            mesh,
            pool: worker.pool.clone(),
            rng: RefCell::new(fastrand::Rng::new()),
            metrics: worker.metrics.clone(),
            observers: worker.observers.clone(),
            epoch: worker.epoch,
            closing: worker.closing.clone(),
            timeouts: worker.timeouts,
            connections: worker.connections.clone(),
            timer: worker.timer.clone(),
            mirrors: Cell::new(0),
            cache: worker.cache.clone(),
            storing: Cell::new(0),
            shed: worker.shed.clone(),
        }
    }

    /// The same, for one service whatever host requests name.
    pub fn toward(&self, service: &str) -> Self {
        let only = Some(service.to_owned());
        let side = match &self.side {
            Side::Outbound { want, find, .. } => {
                Side::Outbound { want: want.clone(), find: find.clone(), to: only }
            }
            Side::Inbound { .. } => Side::Inbound { only },
        };
        Self {
            side,
            forwarding: self.forwarding.clone(),
            cached: RefCell::new(Cache::new(MeshSwap(self.mesh.clone()))),
            mesh: self.mesh.clone(),
            pool: self.pool.clone(),
            rng: RefCell::new(fastrand::Rng::new()),
            metrics: self.metrics.clone(),
            observers: self.observers.clone(),
            epoch: self.epoch,
            closing: self.closing.clone(),
            timeouts: self.timeouts,
            connections: self.connections.clone(),
            timer: self.timer.clone(),
            mirrors: Cell::new(0),
            cache: self.cache.clone(),
            storing: Cell::new(0),
            shed: self.shed.clone(),
        }
    }

    pub fn direction(&self) -> Direction {
        match self.side {
            Side::Outbound { .. } => Direction::Outbound,
            Side::Inbound { .. } => Direction::Inbound,
        }
    }

    /// The present view; a request asks once and keeps what it takes from it.
    pub fn with_view<R>(&self, f: impl FnOnce(&MeshView) -> R) -> R {
        f(self.cached.borrow_mut().load())
    }
}

/// What both sides of a worker share.
pub(crate) struct WorkerParts {
    pub cache: Rc<RefCell<AnswerCache>>,
    pub pool: Rc<Pool>,
    pub metrics: Metrics,
    pub observers: Option<Arc<Observers>>,
    pub epoch: Instant,
    pub closing: Rc<Cell<bool>>,
    pub timeouts: Timeouts,
    pub connections: Rc<Connections>,
    pub timer: Rc<CoarseTimer>,
    pub shed: Rc<Cell<u32>>,
}
