//! Fences grow strictly with every grant (L11), and no former holder's write follows a later holder's (L01).

use super::Finished;

pub(crate) fn check(run: &Finished) -> Result<(), String> {
    for (number, grant) in run.grants.iter().enumerate() {
        for earlier in &run.grants[..number] {
            if earlier.fence == grant.fence {
                return Err(format!(
                    "L11: fence {} was granted twice: {earlier:?} and {grant:?}",
                    grant.fence
                ));
            }
            let (first, second) =
                if earlier.told.seq < grant.asked.seq { (earlier, grant) } else { (grant, earlier) };
            if first.told.seq < second.asked.seq && first.fence >= second.fence {
                return Err(format!(
                    "L11: a later grant has the smaller fence: {first:?} and then {second:?}"
                ));
            }
        }
    }
    match run.protected.windows(2).find(|two| two[0] > two[1]) {
        Some(two) => {
            Err(format!("L01: the holder with fence {} wrote after the one with fence {}", two[1], two[0]))
        }
        None => Ok(()),
    }
}
