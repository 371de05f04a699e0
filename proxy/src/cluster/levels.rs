//! Usable endpoints in the order in which they are wanted, and the share of the traffic that each group of them gets.
//!
//! ```text
//! priority 0: own zone → own region → elsewhere;   priority 1: own zone → …
//! ```
//! A level gets what it can bear and leaves the rest to the next one: with seven tenths of its endpoints usable it still
//! gets all, as in Envoy, since few services are sized without any reserve; below that its share falls with them. Where
//! not even all levels together can bear everything, each gets in proportion to what it has.
//!
//! Worked example: priority 0 has 1 of 2 usable, priority 1 has 2 of 2. The first can bear 140 % of a half: 700 of
//! 1000 requests go there, 300 to the second.

use std::sync::Arc;

use smallvec::SmallVec;
use weft_xds_proto::resource::labels::{Nearness, Place};

use super::endpoint::EndpointState;
use super::picker::{Ask, Picker};
use super::zones::{self, Callers, Zone};

/// Shares are parts of this.
const WHOLE: u32 = 1000;

/// A level with all its endpoints bears so many parts of what it usually gets, in thousandths: Envoy's overprovisioning
/// factor.
const RESERVE: u64 = 1400;

/// The first level that has room, and the others if it has none.
#[derive(Debug)]
pub struct Levels {
    /// Those with a usable endpoint, in order.
    levels: SmallVec<[Level; 1]>,
    /// See [`weft_xds_proto::resource::cluster::ZoneAware::spill_above`].
    spill_above: u32,
}

#[derive(Debug)]
struct Level {
    picker: Picker,
    rank: Rank,
    /// Sum of its share and those before it.
    upto: u32,
}

/// Which level an endpoint belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank {
    /// The smallest first.
    pub priority: u32,
    /// [`Nearness::Zone`] for all where nobody wants zones.
    pub nearness: Nearness,
    /// Where zones other than the own one are told apart: which of them.
    pub place: Option<Place>,
}

/// One level before its picker is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Which.
    pub rank: Rank,
    /// Endpoints that a request may go to.
    pub usable: usize,
    /// All.
    pub total: usize,
}

impl Levels {
    /// Of levels in order with their shares and pickers; those without an endpoint are left out.
    pub fn new(levels: impl IntoIterator<Item = (Rank, u32, Picker)>, spill_above: u32) -> Self {
        let mut upto = 0;
        let level = |(rank, share, picker)| {
            upto += share;
            Level { picker, rank, upto }
        };
        Self { levels: levels.into_iter().map(level).collect(), spill_above }
    }

    /// Any endpoint that is not among the tried ones; `None` if there is none left.
    pub fn pick(
        &self,
        tried: &[std::net::SocketAddr],
        rng: &mut fastrand::Rng,
    ) -> Option<&Arc<EndpointState>> {
        self.pick_for(Ask { tried, ..Ask::default() }, rng)
    }

    /// See [`Picker::pick_for`].
    pub fn pick_for(&self, ask: Ask<'_>, rng: &mut fastrand::Rng) -> Option<&Arc<EndpointState>> {
        match self.levels.as_slice() {
            [] => None,
            [only] => only.picker.pick_for(ask, rng),
            several => self.pick_of(several, ask, rng),
        }
    }

    fn pick_of<'a>(
        &self,
        levels: &'a [Level],
        ask: Ask<'_>,
        rng: &mut fastrand::Rng,
    ) -> Option<&'a Arc<EndpointState>> {
        // What has a key stays in its level as long as shares do.
        let drawn = match ask.key {
            // Below the whole, so it fits.
            Some(key) => ((key >> 20) % u64::from(WHOLE)) as u32,
            None => rng.u32(..WHOLE),
        };
        let first = levels.partition_point(|level| level.upto <= drawn).min(levels.len() - 1);
        let mut least: Option<&Arc<EndpointState>> = None;
        for at in (first..levels.len()).chain(0..first) {
            let Some(picked) = levels[at].picker.pick_for(ask, rng) else { continue };
            if self.spill_above == 0 || picked.active() < self.spill_above {
                return Some(picked);
            }
            if least.is_none_or(|least| picked.active() < least.active()) {
                least = Some(picked);
            }
        }
        least
    }

    /// Endpoints that a request may go to.
    pub fn len(&self) -> usize {
        self.levels.iter().map(|level| level.picker.len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.levels.is_empty()
    }

    /// See [`Picker::needs_time`].
    pub fn needs_time(&self) -> bool {
        self.levels.first().is_some_and(|level| level.picker.needs_time())
    }

    /// Levels with their shares in thousandths, for people; one alone has everything.
    pub fn shares(&self) -> Vec<(Rank, u32)> {
        let mut before = 0;
        let share = |level: &Level| {
            let share = level.upto - before;
            before = level.upto;
            (level.rank.clone(), share)
        };
        self.levels.iter().map(share).collect()
    }
}

/// The share of each level in thousandths. `levels` are in order. Where it is known who calls from where, beside this proxy in its
/// place, that decides within a priority ([`zones`]).
pub fn shares(levels: &[Standing], around: Option<(&Place, &Callers)>) -> Vec<u32> {
    let mut of_priority: Vec<(u32, usize, usize)> = Vec::new();
    for level in levels {
        match of_priority.last_mut() {
            Some((priority, usable, total)) if *priority == level.rank.priority => {
                *usable += level.usable;
                *total += level.total;
            }
            _ => of_priority.push((level.rank.priority, level.usable, level.total)),
        }
    }
    let counts: Vec<_> = of_priority.iter().map(|(_, usable, total)| (*usable, *total)).collect();
    let by_priority = poured(WHOLE, &counts);
    let mut all = Vec::with_capacity(levels.len());
    for ((priority, ..), share) in of_priority.iter().zip(by_priority) {
        let within = || levels.iter().filter(|level| level.rank.priority == *priority);
        all.extend(around.and_then(|around| by_callers(share, within(), around)).unwrap_or_else(|| {
            poured(share, &within().map(|level| (level.usable, level.total)).collect::<Vec<_>>())
        }));
    }
    all
}

/// Of the levels of one priority, of which the first is this proxy's own zone if it has endpoints.
fn by_callers<'a>(
    whole: u32,
    levels: impl Iterator<Item = &'a Standing> + Clone,
    (here, callers): (&'a Place, &'a Callers),
) -> Option<Vec<u32>> {
    let mut callers: Vec<_> = callers.iter().map(|(place, count)| (place, *count)).collect();
    let mut called_from = |is_it: &dyn Fn(&Place) -> bool| -> u64 {
        callers.extract_if(.., |(place, _)| is_it(place)).map(|(_, count)| count).sum()
    };
    let is_here = |place: &Place| here.nearness(place) == Nearness::Zone;
    let own = levels.clone().next().filter(|level| level.rank.nearness == Nearness::Zone);
    let usable = |level: &Standing| level.usable as u64;
    let mut all =
        vec![Zone { region: &here.region, usable: own.map_or(0, usable), callers: called_from(&is_here) }];
    for level in levels.skip(usize::from(own.is_some())) {
        // None where nobody is known to call.
        let place = level.rank.place.as_ref()?;
        all.push(Zone {
            region: &place.region,
            usable: usable(level),
            callers: called_from(&|p| p == place),
        });
    }
    let with_endpoints = all.len();
    all.extend(callers.into_iter().map(|(place, callers)| Zone {
        region: &place.region,
        usable: 0,
        callers,
    }));
    let mut shares = zones::shares(whole, &all)?;
    shares.truncate(with_endpoints);
    if own.is_none() {
        shares.remove(0);
    }
    Some(shares)
}

/// `whole` poured over groups, each of which takes what it bears of it.
fn poured(whole: u32, groups: &[(usize, usize)]) -> Vec<u32> {
    let bears: Vec<u64> = groups
        .iter()
        .map(|(usable, total)| match total {
            0 => 0,
            total => (*usable as u64 * RESERVE / *total as u64).min(1000),
        })
        .collect();
    let all: u64 = bears.iter().sum();
    let mut left = u64::from(whole);
    let mut shares: Vec<u64> = Vec::with_capacity(groups.len());
    for bears in &bears {
        let takes = if all >= 1000 { u64::from(whole) * bears / 1000 } else { 0 };
        let takes = if all < 1000 && all > 0 { u64::from(whole) * bears / all } else { takes };
        shares.push(takes.min(left));
        left -= takes.min(left);
    }
    // What rounding left over goes to the first that has something.
    if let Some(first) =
        shares.iter().position(|share| *share > 0).or_else(|| bears.iter().position(|b| *b > 0))
    {
        shares[first] += left;
    }
    // At most `whole`.
    shares.into_iter().map(|share| share as u32).collect()
}

#[cfg(test)]
mod tests;
