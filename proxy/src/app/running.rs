//! What can be asked of a proxy that runs, and how it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{ProxyAddrs, RunningProxy};
use crate::handover::offer::{Carried, Offer};
use crate::handover::wire::Order;
use crate::limits::{DRAIN_ACKNOWLEDGED_MAX, DRAIN_PROPAGATION};
use crate::listener::unix::SocketFile;
use crate::telemetry::trace::export::END_TIMEOUT;

/// What [`RunningProxy::event`] tells.
#[derive(Debug)]
pub enum Event {
    /// Another process has taken over (see [`crate::handover`]): it is time for [`RunningProxy::drain_and_shutdown`].
    TakenOver,
    /// [`RunningProxy::withdraw`] is wanted; drop this when it is done.
    Withdraw(WhenDone),
    /// [`RunningProxy::drain_and_shutdown`] is wanted.
    Stop,
}

/// Dropping it answers whoever waits.
#[derive(Debug)]
pub struct WhenDone(#[allow(dead_code)] Carried);

impl RunningProxy {
    /// Where it listens.
    pub fn addrs(&self) -> &ProxyAddrs {
        &self.addrs
    }

    /// Why it should not get traffic yet, or any more: what `/ready` says. `None` if it should.
    pub fn why_not_ready(&self) -> Option<String> {
        self.state.why_not_ready()
    }

    /// Step 1 of [`crate::drain`]: not ready, and its services are taken out of the mesh. When it returns, peers have
    /// had the time to hear of it; everything is still served. Done once; a call that was given up is made good by the next.
    pub async fn withdraw(&mut self) {
        self.draining.store(true, Ordering::Release);
        if self.withdrawn {
            return;
        }
        self.local_checks.shutdown().await;
        if let Some(gossip) = &self.gossip
            && !self.config.services.is_empty()
        {
            let limit = DRAIN_ACKNOWLEDGED_MAX.min(self.config.drain_timeout);
            if let Err(members) = gossip.withdraw(limit).await {
                tracing::warn!(
                    members,
                    ?limit,
                    "members have not said that they use this proxy's services no more"
                );
            }
            tokio::time::sleep(DRAIN_PROPAGATION.min(self.config.drain_timeout)).await;
        }
        self.withdrawn = true;
    }

    /// Waits for what another process has done or wants. May be cancelled and called again.
    pub async fn event(&mut self) -> Event {
        let taken = async {
            match &self.offer {
                Some(offer) => offer.taken().await,
                None => std::future::pending().await,
            }
        };
        let ordered = async {
            match &mut self.orders {
                Some(orders) => orders.recv().await,
                None => None,
            }
        };
        tokio::select! {
            () = taken => Event::TakenOver,
            Some((order, carried)) = ordered => match order {
                Order::Withdraw => Event::Withdraw(WhenDone(carried)),
                Order::Stop => Event::Stop,
            },
            else => std::future::pending().await,
        }
    }

    /// The folder that it has open.
    pub fn data_dir(&self) -> Option<&std::path::Path> {
        self.config.data_dir.as_deref()
    }

    fn refuse_handover(&self) {
        if let Some(offer) = &self.offer {
            offer.withdraw();
        }
    }

    /// Nothing is advertised, left or removed any more: that is for the other process.
    async fn leave_to_successor(&mut self) {
        self.draining.store(true, Ordering::Release);
        self.local_checks.shutdown().await;
        self.admin.shutdown().await;
        if let Some(gossip) = &self.gossip {
            gossip.let_go().await;
        }
        self.socket_files.iter_mut().for_each(SocketFile::leave);
    }

    /// Stops in the order that [`crate::drain`] tells. Takes the drain timeout and about two seconds at most.
    pub async fn drain_and_shutdown(mut self) {
        let is_taken = |offer: &Option<Arc<Offer>>| offer.as_ref().is_some_and(|offer| offer.is_taken());
        if !is_taken(&self.offer) {
            self.withdraw().await;
        }
        // A process that takes over in this very moment has it, and one that comes later is refused.
        self.refuse_handover();
        let taken = is_taken(&self.offer);
        if taken {
            self.leave_to_successor().await;
        }
        crate::drain::drain(&self.phase, self.workers, self.config.drain_timeout, taken).await;
        if let Some(gossip) = self.gossip.as_ref().filter(|_| !taken) {
            gossip.leave().await;
        }
        self.control.shutdown().await;
        self.discovery.shutdown().await;
        self.admin.shutdown().await;
        // Spans that are not sent by then are lost; the task is aborted with its set.
        let sent = async { while self.exports.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(END_TIMEOUT, sent).await;
        if let Some(writer) = self.log_writer.take() {
            // It writes what the workers have left behind; a panic there is told by the thread.
            let _ = tokio::task::spawn_blocking(move || writer.join()).await;
        }
    }
}
