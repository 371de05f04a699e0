//! R04: a snapshot is on its way to a follower, slowly and in pieces, while entries go on being written and applied; then
//! with another leader, and with a follower that loses power in the middle of it. What it has afterwards follows from what
//! the others have, without a gap and without anything twice.

use super::{STEP_MS_MAX, leader, leave_behind, without};
use crate::net::Link;
use crate::stage::Stage;
use crate::world::World;

/// Followers that are left behind, one after another. The first only has a bad network.
const ROUNDS: usize = 3;

pub(super) fn play(stage: &mut Stage) -> Result<(), String> {
    let all = stage.world.servers();
    for round in 0..ROUNDS {
        let leads = leader(stage)?;
        let behind = *stage.rng.pick(&without(&all, &[leads]));
        let others = without(&all, &[behind]);
        stage.part(&[&others]);
        leave_behind(stage, &[behind])?;
        let (restored, due) = (stage.world.ledger.restored(behind), stage.world.ledger.applied());
        stage.say(format!("server {behind} is back, over a bad network"));
        let link = Link { delay: (1, stage.rng.between(20, 120)), loss_permille: 50, ..Link::GOOD };
        stage.world.set_links(|_, _| link);
        if round > 0 {
            let soon = stage.rng.between(50, 600);
            stage.for_ms(soon)?;
            let next = without(&others, &[leads]);
            stage.say(format!("server {} is to lead, server {behind} loses power", next[0]));
            stage.operator.transfer(&stage.world, next[0]);
            stage.world.crash(behind, false);
            let off = stage.rng.between(50, 500);
            stage.for_ms(off)?;
            stage.world.boot(behind);
        }
        let caught_up = |world: &World| {
            let applied = world.inside(behind, |inside| inside.status().applied).unwrap_or(0);
            world.ledger.restored(behind) > restored && applied >= due
        };
        stage.until(STEP_MS_MAX, "plot: no snapshot brings it back", caught_up)?;
    }
    Ok(())
}
