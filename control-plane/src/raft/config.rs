//! What the Raft part of a server is told at start.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use weft_core::{
    id::NodeId,
    net::{Dialer, Listener},
};
use weft_state::retention::HistoryLimits;

use crate::{gate::Gate, wal::LogDisk};

/// Applied entries between two snapshots, unless told otherwise: replaying this many at a start takes
/// well under a second, and writing the image this seldom costs little.
pub const SNAPSHOT_EVERY: u64 = 50_000;

/// What [`super::Coordinator::start`] needs.
#[derive(Debug)]
pub struct RaftConfig {
    /// This server, from its data folder.
    pub id: NodeId,
    /// A label for people.
    pub name: String,
    /// Holds `wal/`, `snapshots/` and `cluster`; created if absent.
    pub data_dir: PathBuf,
    /// Bound already, so that its port is known before it is announced.
    pub peer_listener: Listener,
    /// Who is let in there, and how this server gets in elsewhere.
    pub gate: Arc<Gate>,
    /// Where the other servers reach `peer_listener`.
    pub peer_advertise: SocketAddr,
    /// Form a new group of one if the data folder holds no state. Without it, an empty server waits to
    /// be taken into a group by [`super::Coordinator::join_group`]. With state it means nothing.
    pub bootstrap: bool,
    /// Stay without a vote when taken into a group, until promoted.
    pub learner: bool,
    /// Clocks.
    pub timing: RaftTiming,
    /// Log entries between two snapshots; at least 1.
    pub snapshot_every: u64,
    /// How much history the group keeps while this server leads it.
    pub history: HistoryLimits,
}

/// What a server stands on other than this machine. The default is the machine; a simulation gives its own.
#[derive(Clone, Default)]
pub struct Outside {
    /// Holds the log in place of `DATA/wal`.
    pub log: Option<LogDisk>,
    /// Connects to the other servers.
    pub dialer: Option<Dialer>,
    /// Ends this server at once when nothing that it holds may be relied on any more, in place of the process. What
    /// it leaves running is stopped behind it.
    pub end: Option<End>,
}

/// See [`Outside::end`].
pub type End = Arc<dyn Fn() + Send + Sync>;

/// How a leader makes sure that it still leads before it answers a linearizable read. Counts on the server that leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadMode {
    /// It asks a majority, once for all reads that wait (ReadIndex, Raft thesis §6.4). Relies on no clock.
    #[default]
    Index,
    /// That a majority heard of it within a quarter of `election_timeout_max` is enough (thesis §6.4.1), which heartbeats
    /// see to: no messages for a read. Followers elect nobody for half of that time after they heard of a leader.
    /// So a read may be stale if the leader's clock runs at half the speed of others' or slower, or stands still while
    /// its machine is suspended.
    Lease,
}

/// The clocks of the Raft group. All servers should have the same.
#[derive(Debug, Clone)]
pub struct RaftTiming {
    /// How often a leader shows itself. Default 100 ms. Lower finds a lost leader sooner and costs
    /// processor time; it must be well under `election_timeout_min`.
    pub heartbeat_interval: Duration,
    /// A follower that hears nothing for a random time between this and `election_timeout_max` asks for
    /// an election. Default 500 ms: five lost heartbeats, above the pauses of a busy two-core machine.
    pub election_timeout_min: Duration,
    /// Default 1 s. Also the leader's lease: followers refuse another candidate for this long after
    /// they heard of the leader, and a leader without a majority for this long answers no renewals.
    pub election_timeout_max: Duration,
    /// How long a proposal, read or renewal may take before it fails. Default 5 s: longer than an
    /// election, shorter than a client's own patience.
    pub deadline: Duration,
    /// What linearizable reads rely on.
    pub reads: ReadMode,
}

impl Default for RaftTiming {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_millis(100),
            election_timeout_min: Duration::from_millis(500),
            election_timeout_max: Duration::from_millis(1000),
            deadline: Duration::from_secs(5),
            reads: ReadMode::Index,
        }
    }
}

impl RaftTiming {
    /// For how long after a majority confirmed it a leader may rely on being the only one.
    pub(super) fn leader_lease(&self) -> Duration {
        self.election_timeout_max / 2
    }

    /// For how long it does so to answer a read, in [`ReadMode::Lease`].
    pub(super) fn read_lease(&self) -> Duration {
        self.leader_lease() / 2
    }

    /// Says what is wrong, if anything.
    pub(super) fn check(&self) -> Result<(), String> {
        let Self { heartbeat_interval, election_timeout_min, election_timeout_max, deadline, .. } = self;
        if *heartbeat_interval < Duration::from_millis(5) {
            return Err(format!("heartbeat interval {heartbeat_interval:?} is below 5ms"));
        }
        if election_timeout_min >= election_timeout_max {
            return Err(format!(
                "election timeout is {election_timeout_min:?} to {election_timeout_max:?}: the first must be below the second"
            ));
        }
        if self.leader_lease() <= 2 * *heartbeat_interval {
            return Err(format!(
                "election timeout maximum {election_timeout_max:?} must be above four heartbeat intervals of {heartbeat_interval:?}"
            ));
        }
        if deadline < election_timeout_max {
            return Err(format!(
                "deadline {deadline:?} is below the election timeout maximum {election_timeout_max:?}: no write could outlast an election"
            ));
        }
        Ok(())
    }
}
