//! Who changes the group: takes a server out, starts another one in its place, promotes it, hands leadership over.
//!
//! ```text
//! Remove ── somebody has applied it ──▶ End ── the server has ended ──▶ Join ── the group is whole ──▶ done
//! ```
//! Any server is asked, whether it can do it or not, and again until it is done. What somebody has applied is committed:
//! only that counts, as what one server has in its log may be taken back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use weft_control_plane::raft::GroupChange;
use weft_core::id::NodeId;

use super::rng::Rng;
use super::server::Number;
use super::world::World;

/// How long one server may take to answer, in milliseconds: above its own patience.
const ATTEMPT_MS_MAX: u64 = 7_000;

/// How often a removal is asked for that may leave too few servers that answer, in a thousand.
const FORCED_PERMILLE: u64 = 200;

/// One change at a time.
pub(crate) struct Operator {
    rng: Rng,
    job: Option<Job>,
}

/// One server is replaced by another.
struct Job {
    server: Number,
    former: NodeId,
    /// Entry of the last change that anybody had applied before this began. A server that restarts has an older
    /// membership until it has applied its log again.
    before: u64,
    /// The new one joins without a vote, and is promoted.
    learner: bool,
    stage: Stage,
    attempt: Option<Attempt>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Remove,
    End,
    Join,
}

/// Somebody was asked for a change.
struct Attempt {
    over: Arc<AtomicBool>,
    until: u64,
}

impl Operator {
    pub(crate) fn new(rng: Rng) -> Self {
        Self { rng, job: None }
    }

    /// Whether nothing is being changed.
    pub(crate) fn is_idle(&self) -> bool {
        self.job.is_none()
    }

    /// Begins to put another server into the place of this one.
    pub(crate) fn replace(&mut self, world: &World, server: Number, learner: bool) {
        assert!(self.is_idle(), "one at a time");
        let (former, mut before) = (world.id(server), 0);
        world.each(|_, inside| before = before.max(inside.members().entry));
        self.job = Some(Job { server, former, before, learner, stage: Stage::Remove, attempt: None });
    }

    /// Asks once that this server leads.
    pub(crate) fn transfer(&mut self, world: &World, to: Number) {
        let at = *self.rng.pick(&world.servers());
        let _ = world.change_group(at, GroupChange::Transfer { to: world.id(to).0 });
    }

    /// Goes on with what was begun.
    pub(crate) fn step(&mut self, world: &mut World) {
        let Some(mut job) = self.job.take() else { return };
        let change = match job.stage {
            Stage::Remove if is_removed(world, &job) => {
                (job.stage, job.attempt) = (Stage::End, None);
                None
            }
            Stage::Remove => {
                Some(GroupChange::Remove { id: job.former.0, force: self.rng.chance(FORCED_PERMILLE) })
            }
            Stage::End => {
                if world.has_ended(job.server) {
                    world.replace(job.server, job.learner);
                    job.stage = Stage::Join;
                }
                None
            }
            Stage::Join if world.is_whole() => return,
            Stage::Join => job.learner.then(|| GroupChange::Promote { id: world.id(job.server).0 }),
        };
        if let Some(change) = change
            && job.attempt.as_ref().is_none_or(|a| a.over.load(Relaxed) || a.until < world.now)
        {
            // Not of the one that goes: it would end with the question.
            let others: Vec<Number> = world.on().into_iter().filter(|n| *n != job.server).collect();
            let at = (!others.is_empty()).then(|| *self.rng.pick(&others));
            let over = at.and_then(|at| world.change_group(at, change));
            job.attempt = over.map(|over| Attempt { over, until: world.now + ATTEMPT_MS_MAX });
        }
        self.job = Some(job);
    }
}

/// Whether one of the others has applied that it is none of them any more.
fn is_removed(world: &World, job: &Job) -> bool {
    let mut removed = false;
    world.each(|server, inside| {
        let members = inside.members();
        let known = members.voters.contains(&job.former) || members.learners.contains(&job.former);
        removed |= server != job.server && members.entry > job.before && !known;
    });
    removed
}
