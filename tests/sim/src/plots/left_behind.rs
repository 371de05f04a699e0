//! A follower is cut off until only a snapshot brings it back, while watchers stand on it: they are told what the snapshot
//! brought, or that history is gone, and never nothing (W01, W09).

use super::{STEP_MS_MAX, leader, leave_behind, without};
use crate::stage::Stage;

/// Followers that are left behind, one after another.
const ROUNDS: usize = 2;

pub(super) fn play(stage: &mut Stage) -> Result<(), String> {
    let all = stage.world.servers();
    for _ in 0..ROUNDS {
        let leads = leader(stage)?;
        let behind = *stage.rng.pick(&without(&all, &[leads]));
        stage.part(&[&without(&all, &[behind])]);
        leave_behind(stage, &[behind])?;
        let restored = stage.world.ledger.restored(behind);
        stage.part(&[&all]);
        stage.until(STEP_MS_MAX, "plot: no snapshot brings it back", |world| {
            world.ledger.restored(behind) > restored
        })?;
        let pause = stage.rng.between(200, 1_500);
        stage.for_ms(pause)?;
    }
    Ok(())
}
