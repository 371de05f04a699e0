//! Moments that chance makes too seldom, made by a script: who is cut off, loses power or is asked to change the group at
//! which point. Clients work meanwhile as ever, and the same must hold.
//!
//! A plot that does not come about is a failure too: it would show nothing. So each waits for what it is about.

mod late_snapshot;
mod left_behind;
mod stale_members;
mod vote_cut_short;

use crate::server::{Number, SNAPSHOT_EVERY};
use crate::stage::Stage;
use crate::world::World;

/// A script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plot {
    /// A former leader has a change of the group that never was committed in its log when a snapshot replaces it.
    StaleMembers,
    /// Only a snapshot brings a server back, on which watchers stand.
    LeftBehind,
    /// The same over a bad network, while leaders change and power fails.
    LateSnapshot,
    /// A voter loses power right after it gave its vote.
    VoteCutShort,
}

impl Plot {
    /// All of them.
    pub const ALL: [Plot; 4] = [Plot::StaleMembers, Plot::LeftBehind, Plot::LateSnapshot, Plot::VoteCutShort];

    /// What to call it on a command line: `stale-members`.
    pub fn name(self) -> &'static str {
        match self {
            Plot::StaleMembers => "stale-members",
            Plot::LeftBehind => "left-behind",
            Plot::LateSnapshot => "late-snapshot",
            Plot::VoteCutShort => "vote-cut-short",
        }
    }

    /// How many servers it takes.
    pub(crate) fn servers(self) -> Number {
        if self == Plot::StaleMembers { 5 } else { 3 }
    }

    /// From a group that is whole. What it leaves cut off or without power is for others to heal.
    pub(crate) fn play(self, stage: &mut Stage) -> Result<(), String> {
        match self {
            Plot::StaleMembers => stale_members::play(stage),
            Plot::LeftBehind => left_behind::play(stage),
            Plot::LateSnapshot => late_snapshot::play(stage),
            Plot::VoteCutShort => vote_cut_short::play(stage),
        }
    }
}

/// Longest time for a step of a plot, in milliseconds.
const STEP_MS_MAX: u64 = 30_000;

/// Whoever leads, once somebody does.
fn leader(stage: &mut Stage) -> Result<Number, String> {
    stage.until(STEP_MS_MAX, "plot: nobody leads", |world| world.leader().is_some())?;
    stage.world.leader().ok_or_else(|| "plot: nobody leads".to_owned())
}

fn without(servers: &[Number], gone: &[Number]) -> Vec<Number> {
    servers.iter().copied().filter(|server| !gone.contains(server)).collect()
}

/// Waits until the log of those who go on no longer reaches back to what these servers have.
fn leave_behind(stage: &mut Stage, behind: &[Number]) -> Result<(), String> {
    let has = |world: &World, server| world.inside(server, |inside| inside.status().last_log).unwrap_or(0);
    let last = behind.iter().map(|server| has(&stage.world, *server)).max().unwrap_or(0);
    let left = |world: &World| {
        let leader = world.leader().filter(|leader| !behind.contains(leader));
        let snapshot = leader.and_then(|leader| world.inside(leader, |inside| inside.status().snapshot));
        // As many entries as a snapshot is taken after stay behind it.
        snapshot.unwrap_or(0) > last + 2 * SNAPSHOT_EVERY
    };
    stage.until(STEP_MS_MAX, "plot: the others do not leave it behind", left)
}
