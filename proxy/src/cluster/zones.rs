//! How much of a proxy's requests stays in its zone where callers are spread otherwise than endpoints. Pure.
//!
//! A zone with 3 of 4 callers and 1 of 2 endpoints would overload it if all stayed at home. Envoy's rule for one proxy
//! ("zone aware routing"), which gives every endpoint as much as every other if callers ask alike, with the proxy's
//! region in front of others: what is beyond the zone's share of endpoints goes to zones with more endpoints than
//! callers, in proportion to what they have more, first within the region, as far as that is to spare there.
//!
//! ```text
//!  zone   callers   endpoints      of a caller's requests: stay   to a   to b   to c
//!   a     3 of 4     1 of 2                                 2/3            1/3     –
//!   b     1 of 4     1 of 2                                  1       –             –
//! ```
//! Who calls is known from the mesh: the instances of the services beside this proxy.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use weft_xds_proto::resource::labels::Place;

/// Instances of the services beside this proxy, by where they stand. Empty: nobody has said.
pub type Callers = BTreeMap<Place, u64>;

/// Where this proxy stands, and those that call as it does. The control runtime writes, when sets of endpoints are made it is
/// read.
#[derive(Debug, Default)]
pub struct Surroundings {
    /// Where this proxy stands.
    pub here: Place,
    callers: ArcSwap<Callers>,
}

impl Surroundings {
    /// Without callers.
    pub fn at(here: Place) -> Self {
        Self { here, callers: ArcSwap::default() }
    }

    /// Those that call.
    pub fn callers(&self) -> Arc<Callers> {
        self.callers.load_full()
    }

    /// Takes over who calls. Answers whether that is new.
    pub fn set_callers(&self, callers: Callers) -> bool {
        let changed = **self.callers.load() != callers;
        if changed {
            self.callers.store(Arc::new(callers));
        }
        changed
    }
}

/// A zone as the rule sees it.
#[derive(Debug, Clone, Copy)]
pub struct Zone<'a> {
    /// Zones of one region share its name.
    pub region: &'a str,
    /// Endpoints that a request may go to.
    pub usable: u64,
    /// Who calls from there.
    pub callers: u64,
}

impl Zone<'_> {
    /// Its share of the endpoints less its share of the callers, over a common denominator.
    fn surplus(&self, endpoints: u64, callers: u64) -> i128 {
        i128::from(self.usable) * i128::from(callers) - i128::from(self.callers) * i128::from(endpoints)
    }
}

/// The share of each zone in the requests of a proxy in the first one, of `whole`. None if there is nothing to go by.
pub fn shares(whole: u32, zones: &[Zone<'_>]) -> Option<Vec<u32>> {
    let own = zones.first()?;
    let endpoints: u64 = zones.iter().map(|zone| zone.usable).sum();
    let callers: u64 = zones.iter().map(|zone| zone.callers).sum();
    if own.callers == 0 || endpoints == 0 {
        return None;
    }
    let surpluses: Vec<i128> = zones.iter().map(|zone| zone.surplus(endpoints, callers)).collect();
    let lacks = -surpluses[0];
    if lacks <= 0 {
        let mut all = vec![0; zones.len()];
        all[0] = whole;
        return Some(all);
    }
    // What regions have over or lack: within one, those that lack take from those that have.
    let mut regions: BTreeMap<&str, (i128, i128)> = BTreeMap::new();
    for (zone, surplus) in zones.iter().zip(&surpluses) {
        let (over, short) = regions.entry(zone.region).or_default();
        *over += surplus.max(&0);
        *short -= surplus.min(&0);
    }
    let abroad: i128 = regions.values().map(|(over, short)| (over - short).max(0)).sum();
    let (spare, short) = regions[own.region];
    // At least what this zone lacks, so not zero.
    let near = spare.min(short);
    #[allow(clippy::cast_precision_loss)]
    let part = |of: i128, all: i128| of as f64 / all as f64;
    let away = part(lacks, i128::from(own.callers) * i128::from(endpoints));
    let mut exact: Vec<f64> = Vec::with_capacity(zones.len());
    for (zone, surplus) in zones.iter().zip(&surpluses) {
        let (over, short_there) = regions[zone.region];
        exact.push(if *surplus <= 0 {
            0.0
        } else if zone.region == own.region {
            away * part(near, short) * part(*surplus, over)
        } else if over > short_there {
            away * part(short - near, short) * part(over - short_there, abroad) * part(*surplus, over)
        } else {
            0.0
        });
    }
    exact[0] = 1.0 - away;
    Some(rounded(whole, &exact))
}

/// Parts of one as parts of `whole`: rounded where sums meet, so that they sum up to it and no error piles up.
fn rounded(whole: u32, exact: &[f64]) -> Vec<u32> {
    let all: f64 = exact.iter().sum();
    let (mut sum, mut given) = (0.0, 0);
    let share = |part: &f64| {
        sum += part;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let upto = (f64::from(whole) * (sum / all)).round() as u32;
        let share = upto - given;
        given = upto;
        share
    };
    exact.iter().map(share).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// (region, callers, endpoints)
    type Map = Vec<(&'static str, u64, u64)>;

    /// Shares of a proxy in zone `from`, in the order of the map.
    fn of(map: &Map, from: usize) -> Option<Vec<u32>> {
        let order = || (from..from + 1).chain((0..map.len()).filter(|at| *at != from));
        let zone = |at: usize| Zone { region: map[at].0, callers: map[at].1, usable: map[at].2 };
        let shares = shares(1000, &order().map(zone).collect::<Vec<_>>())?;
        let mut all = vec![0; map.len()];
        order().zip(shares).for_each(|(at, share)| all[at] = share);
        Some(all)
    }

    #[test]
    fn a_zone_keeps_what_its_endpoints_bear_of_its_callers() {
        let even = vec![("eu", 2, 2), ("eu", 2, 2)];
        assert_eq!(of(&even, 0), Some(vec![1000, 0]));
        let uneven = vec![("eu", 3, 1), ("eu", 1, 1)];
        assert_eq!((of(&uneven, 0), of(&uneven, 1)), (Some(vec![667, 333]), Some(vec![0, 1000])));
        let none_here = vec![("eu", 1, 0), ("eu", 0, 1), ("eu", 0, 3)];
        assert_eq!(of(&none_here, 0), Some(vec![0, 250, 750]));
        assert_eq!(of(&vec![("eu", 0, 1), ("eu", 1, 1)], 0), None, "it does not know itself");
        assert_eq!(of(&vec![("eu", 1, 0)], 0), None, "there is no endpoint");
    }

    /// Envoy's documentation of the rule: the local zone has a third of the callers and a fifth of the hosts.
    #[test]
    fn what_is_beyond_goes_where_there_is_more_than_is_needed() {
        let map = vec![("", 10, 6), ("", 10, 12), ("", 10, 12)];
        assert_eq!(of(&map, 0), Some(vec![600, 200, 200]));
    }

    #[test]
    fn the_region_comes_first_as_far_as_it_has_something_to_spare() {
        let enough = vec![("eu", 4, 2), ("eu", 2, 4), ("us", 2, 2)];
        assert_eq!(of(&enough, 0), Some(vec![500, 500, 0]));
        let short = vec![("eu", 6, 2), ("eu", 0, 2), ("us", 2, 4)];

        assert_eq!(of(&short, 0), Some(vec![333, 334, 333]));
    }

    fn maps() -> impl Strategy<Value = Map> {
        let zone = (prop::sample::select(vec!["eu", "us", "ap"]), 0u64..40, 0u64..40);
        prop::collection::vec(zone, 1..8)
    }

    proptest! {
        /// The model: every caller sends one request, every endpoint should get as much as every other.
        #[test]
        fn all_callers_together_load_every_endpoint_alike(map in maps()) {
            let (callers, endpoints) =
                map.iter().fold((0, 0), |(callers, endpoints), zone| (callers + zone.1, endpoints + zone.2));
            prop_assume!(callers > 0 && endpoints > 0);
            let mut arrives = vec![0.0; map.len()];
            for (from, zone) in map.iter().enumerate().filter(|(_, zone)| zone.1 > 0) {
                let shares = of(&map, from).unwrap();
                prop_assert_eq!(shares.iter().sum::<u32>(), 1000);
                for (to, share) in shares.iter().enumerate() {
                    arrives[to] += zone.1 as f64 * f64::from(*share) / 1000.0;
                }
            }
            for (zone, arrives) in map.iter().zip(arrives) {
                let fair = callers as f64 * zone.2 as f64 / endpoints as f64;
                // Shares are whole thousandths.
                let slack = callers as f64 / 1000.0;
                prop_assert!((arrives - fair).abs() <= slack + 1e-9, "{} instead of {} in {:?}", arrives, fair, map);
            }
        }
    }
}
