//! A member's life that goes on in another process: see [`Continuation`].

use std::time::Instant;

use super::{Pool, PoolConfig};
use crate::catalog::Merge;
use crate::continuation::Continuation;

impl Pool {
    /// All that another process needs to go on in our place. From then on this pool is not to be driven, unless the other
    /// one never began.
    pub fn continuation(&self) -> Continuation {
        Continuation {
            identity: self.swim.identity().clone(),
            seq: self.seq,
            members: self.swim.iter_membership_state().cloned().collect(),
            records: self.records.iter().cloned().collect(),
            peers: self.peers.to_text(),
        }
    }

    /// Goes on where another process has stopped, with its members, records and advertisement. `config.member` says how
    /// this process is called and reached; its incarnation is the one that is continued.
    pub fn go_on(mut config: PoolConfig, from: Continuation, now: Instant) -> Self {
        config.member.incarnation = from.incarnation();
        config.peers = Some(from.peers.clone());
        let identity = from.identity_of(&config.member);
        let renewed = identity != from.identity;
        let own = from.instances().to_vec();
        let mut pool = Self::alone(config, identity, now);
        pool.seq = from.seq;
        // The others know all of it.
        let others = from.members.into_iter().filter(|m| m.id().id != from.identity.id);
        let result = pool.swim.apply_many(others, false, pool.effects.at(now));
        pool.effects.notes.clear();
        for record in from.records {
            if pool.records.merge(record) == Merge::Full {
                pool.stats.records_refused.inc();
            }
        }
        if renewed {
            // Under the name that it has now.
            pool.put_own(own);
        }
        pool.settle(now, result);
        pool.records_changed = true;
        pool.refresh(now);
        pool
    }
}
