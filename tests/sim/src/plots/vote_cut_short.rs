//! A voter loses power right after it gave its vote, with all that its disk had not synced; back again, it is asked for its
//! vote by another candidate in the same term. Two leaders in one term if it forgot (Raft §5.2: a vote is stored before it
//! is given).

use std::time::Duration;

use super::{STEP_MS_MAX, leader, without};
use crate::server::Number;
use crate::stage::Stage;
use crate::world::World;

/// How long the voter's next sync takes: longer than an election.
const STALL: Duration = Duration::from_secs(2);

/// Long enough that nobody believes in the former leader any more, in milliseconds.
const SILENCE_MS: u64 = 2_500;

pub(super) fn play(stage: &mut Stage) -> Result<(), String> {
    let all = stage.world.servers();
    // All logs are equal, so that everybody may vote for everybody.
    stage.part_clients();
    stage.until(STEP_MS_MAX, "plot: the logs do not become equal", is_quiet)?;
    let former = leader(stage)?;
    let [one, other] = without(&all, &[former])[..] else {
        return Err("plot: it takes three servers".to_owned());
    };
    stage.say(format!("server {former} loses power and nobody reaches anybody"));
    stage.part(&[]);
    stage.world.crash(former, false);
    stage.for_ms(SILENCE_MS)?;
    stage.world.boot(former);
    stage.until(STEP_MS_MAX, "plot: the former leader does not start", |world| is_up(world, former))?;

    stage.part(&[&[former, one]]);
    stage.world.disk(former).stall(STALL);
    stage.world.disk(one).stall(STALL);
    let leads = |world: &World, server| world.inside(server, |inside| inside.is_leader()).unwrap_or_default();
    stage.until_just(STEP_MS_MAX, "plot: neither of two is elected", |world| {
        leads(world, former) || leads(world, one)
    })?;
    let (elected, voter) = if leads(&stage.world, one) { (one, former) } else { (former, one) };
    stage.say(format!("server {elected} is elected; server {voter} loses power and what it had not synced"));
    stage.world.disk(voter).forget();
    stage.world.crash(voter, false);
    stage.part(&[&[voter, other]]);
    stage.world.boot(voter);
    stage.until(STEP_MS_MAX, "plot: there is no second election", |world| {
        leads(world, voter) || leads(world, other)
    })
}

fn is_up(world: &World, server: Number) -> bool {
    world.inside(server, |_| ()).is_some()
}

/// Somebody leads, and everybody has the same entries.
fn is_quiet(world: &World) -> bool {
    let mut logs = Vec::new();
    world.each(|_, inside| {
        let status = inside.status();
        logs.push((status.term, status.last_log, status.committed));
    });
    logs.len() == world.servers().len()
        && logs.windows(2).all(|two| two[0] == two[1])
        && world.leader().is_some()
}
