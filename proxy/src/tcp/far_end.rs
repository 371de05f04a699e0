//! Where a tunnel leads, with what it counts for until it ends.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::cluster::breaker::{Admitted, ConnectionPermit};
use crate::cluster::endpoint::ActiveRequest;
use crate::cluster::state::Cluster;
use crate::listener::connection::{Connection, InFlight};
use crate::tcp::relay::{Broken, relay};
use crate::upstream::stream::FarStream;

/// The far end of a tunnel: a connection of its own, which is never used again.
pub(crate) struct FarEnd {
    pub stream: FarStream,
    /// Read from it already, for the near end.
    pub seen: Bytes,
    pub counted: Counted,
}

impl FarEnd {
    /// Carries bytes between a connection and this end of it, until both have ended, or nothing moves for `idle`, where the
    /// service says no other time. `ahead` was read from it already;
    /// `to_near` says how many bytes have gone back.
    ///
    /// # Errors
    /// If a side breaks off, or the tunnel is cut.
    pub async fn tunnel<S>(
        self,
        mut near: S,
        ahead: Vec<u8>,
        connection: &Connection,
        idle: Duration,
        to_near: &Cell<u64>,
    ) -> Result<(), Broken>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Self { stream: mut far, seen, counted } = self;
        let idle = counted.cluster().config.cluster.timeouts.tunnel_idle.unwrap_or(idle);
        let metrics = &counted.cluster().shared.metrics.tunnels;
        let ends = ((&mut near, ahead), (&mut far, seen.to_vec()));
        let ended = relay(ends.0, ends.1, connection, idle, metrics, to_near).await;
        // Before what it occupied is given to others.
        drop(far);
        ended
    }
}

/// What a tunnel occupies. Dropped with it, after its connection.
pub(crate) struct Counted {
    admitted: Admitted,
    active: ActiveRequest,
    _permit: Option<ConnectionPermit>,
    /// At the client's connection.
    in_flight: Option<InFlight>,
}

impl Counted {
    pub fn new(admitted: Admitted, active: ActiveRequest, permit: Option<ConnectionPermit>) -> Self {
        admitted.cluster().shared.metrics.tunnels.open.inc();
        Self { admitted, active, _permit: permit, in_flight: None }
    }

    /// Dropped with it.
    pub fn hold(&mut self, in_flight: InFlight) {
        self.in_flight = Some(in_flight);
    }

    /// Which endpoint it leads to.
    pub fn endpoint(&self) -> SocketAddr {
        self.active.endpoint().addr()
    }

    pub fn cluster(&self) -> &Arc<Cluster> {
        self.admitted.cluster()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.cluster().shared.metrics.tunnels.open.dec();
    }
}
