//! Time passes, and all the while what must hold is looked at.

use crate::invariants::leaders::Leaders;
use crate::invariants::replicas;
use crate::net::Link;
use crate::operator::Operator;
use crate::rng::Rng;
use crate::server::{Number, ip};
use crate::workload::CLIENT_IP;
use crate::world::World;

/// How often what must hold at every step is looked at, in milliseconds.
const LOOK_EVERY_MS: u64 = 10;

/// The world with those who look at it.
pub(crate) struct Stage {
    pub(crate) world: World,
    pub(crate) leaders: Leaders,
    pub(crate) operator: Operator,
    /// For what a plot leaves to chance.
    pub(crate) rng: Rng,
    /// What was done by a script, and when.
    pub(crate) log: Vec<(u64, String)>,
}

impl Stage {
    pub(crate) fn new(seed: u64, world: World) -> Self {
        Self {
            world,
            leaders: Leaders::default(),
            operator: Operator::new(Rng::new(seed, "operator")),
            rng: Rng::new(seed, "plot"),
            log: Vec::new(),
        }
    }

    /// A millisecond passes.
    pub(crate) fn step(&mut self) -> Result<(), String> {
        self.world.step();
        if self.world.now.is_multiple_of(LOOK_EVERY_MS) {
            self.operator.step(&mut self.world);
            replicas::step(&self.world)?;
            self.leaders.step(&self.world)?;
            self.world.failed().map_or(Ok(()), Err)?;
        }
        Ok(())
    }

    pub(crate) fn for_ms(&mut self, ms: u64) -> Result<(), String> {
        let end = self.world.now + ms;
        while self.world.now < end {
            self.step()?;
        }
        Ok(())
    }

    /// Until this is so, looked at now and then.
    pub(crate) fn until(
        &mut self,
        ms_max: u64,
        otherwise: &str,
        done: impl Fn(&World) -> bool,
    ) -> Result<(), String> {
        self.until_every(LOOK_EVERY_MS, ms_max, otherwise, done)
    }

    /// Until the very millisecond in which this is so.
    pub(crate) fn until_just(
        &mut self,
        ms_max: u64,
        otherwise: &str,
        done: impl Fn(&World) -> bool,
    ) -> Result<(), String> {
        self.until_every(1, ms_max, otherwise, done)
    }

    fn until_every(
        &mut self,
        every_ms: u64,
        ms_max: u64,
        otherwise: &str,
        done: impl Fn(&World) -> bool,
    ) -> Result<(), String> {
        let end = self.world.now + ms_max;
        while !(self.world.now.is_multiple_of(every_ms) && done(&self.world)) {
            if self.world.now > end {
                return Err(format!("{otherwise} within {ms_max} ms"));
            }
            self.step()?;
        }
        Ok(())
    }

    /// A line for whoever reads what happened.
    pub(crate) fn say(&mut self, what: String) {
        self.log.push((self.world.now, what));
    }

    /// Servers reach only those of their own group; clients reach all.
    pub(crate) fn part(&mut self, groups: &[&[Number]]) {
        self.say(format!("servers reach each other in {groups:?}"));
        let group = |at| groups.iter().position(|group| group.iter().any(|server| ip(*server) == at));
        self.world.set_links(|from, to| {
            let is_client = from == CLIENT_IP || to == CLIENT_IP;
            let cut = !is_client && (group(from).is_none() || group(from) != group(to));
            Link { cut, ..Link::GOOD }
        });
    }

    /// Clients reach nobody, and servers all.
    pub(crate) fn part_clients(&mut self) {
        self.say("clients reach no server".to_owned());
        self.world.set_links(|from, to| Link { cut: from == CLIENT_IP || to == CLIENT_IP, ..Link::GOOD });
    }
}
