//! R01 (openraft #1808): a former leader has a change of the group in its log that was never committed. The others change
//! the group in another way, and a snapshot that covers that entry replaces the former leader's log. If it went on with its
//! own change it could be elected by servers that were removed and do not know it, while the others go on: two majorities
//! that have nobody in common.
//!
//! ```text
//! log of B   … │ joint {A,B,C,D,E} {A,B,D,E}, not committed          A, C: remove D; remove E; write; snapshot
//! real group   {A,B,C,D,E} ─▶ {A,B,C,E} ─▶ {A,B,C}                   its majority: A, C
//! B's, if it kept its own                                            its majority: B, D, E
//! ```

use weft_control_plane::raft::GroupChange;

use super::{STEP_MS_MAX, leader, leave_behind, without};
use crate::server::Number;
use crate::stage::Stage;
use crate::world::World;

/// How long both sides have for an election that must not be, in milliseconds.
const APART_MS: u64 = 5_000;

/// How long a change may take before it is asked for again, in milliseconds.
const CHANGE_MS: u64 = 2_000;

pub(super) fn play(stage: &mut Stage) -> Result<(), String> {
    let all = stage.world.servers();
    let former = leader(stage)?;
    let others = without(&all, &[former]);
    let kept = *stage.rng.pick(&others);
    stage.part(&[&others]);
    stage.say(format!("server {former}, alone, removes server {kept}"));
    let remove = GroupChange::Remove { id: stage.world.id(kept).0, force: true };
    stage.world.change_group(former, remove);
    stage.until_just(STEP_MS_MAX, "plot: the former leader's change is not in its log", |world| {
        world.inside(former, |inside| inside.status().joint) == Some(true)
    })?;
    stage.until(STEP_MS_MAX, "plot: the others elect nobody", |world| {
        world.leader().is_some_and(|leader| leader != former)
    })?;
    let leads = leader(stage)?;
    let unaware = &without(&others, &[leads, kept])[..2];
    let (first, second) = (unaware[0], unaware[1]);

    stage.part(&[&without(&others, &[first])]);
    removed(stage, leads, first)?;
    let remove = GroupChange::Remove { id: stage.world.id(second).0, force: true };
    stage.world.change_group(leads, remove);
    // It has the joint configuration, which needs its vote, and never hears of the second entry.
    stage.until_just(STEP_MS_MAX, "plot: the second removal does not come about", |world| {
        let gone = world.id(second);
        let status = world.inside(leads, |inside| inside.status());
        status.is_some_and(|status| status.peers.iter().all(|peer| peer.id != gone))
    })?;
    let real = without(&others, unaware);
    stage.part(&[&real]);
    leave_behind(stage, &[former])?;

    let restored = stage.world.ledger.restored(former);
    let group = [&real[..], &[former]].concat();
    stage.part(&[&group]);
    stage.until(STEP_MS_MAX, "plot: no snapshot replaces the former leader's log", |world| {
        world.ledger.restored(former) > restored
    })?;
    let phantom = [former, first, second];
    stage.part(&[&real, &phantom]);
    stage.for_ms(APART_MS)?;
    if stage.world.leader().is_some_and(|leader| phantom.contains(&leader)) {
        return Err("R01: servers elect a leader by a configuration that never was".to_owned());
    }

    stage.part(&[&all]);
    for server in [first, second] {
        stage.until(STEP_MS_MAX, "R02: a removed server does not notice it", |world| {
            world.has_ended(server)
        })?;
        stage.say(format!("a new server takes the place of server {server}"));
        stage.step()?;
        stage.world.replace(server, false);
    }
    Ok(())
}

/// Has the leader remove a server, and waits until it is so.
fn removed(stage: &mut Stage, leads: Number, server: Number) -> Result<(), String> {
    let (id, started) = (stage.world.id(server), stage.world.now);
    let is_removed = |world: &World| {
        world.inside(leads, |inside| {
            let members = inside.members();
            !members.voters.contains(&id) && !members.joint
        }) == Some(true)
    };
    while !is_removed(&stage.world) {
        if stage.world.now > started + STEP_MS_MAX {
            return Err(format!("plot: server {server} is not removed within {STEP_MS_MAX} ms"));
        }
        stage.world.change_group(leads, GroupChange::Remove { id: id.0, force: true });
        let again = stage.world.now + CHANGE_MS;
        while stage.world.now < again && !is_removed(&stage.world) {
            stage.step()?;
        }
    }
    Ok(())
}
