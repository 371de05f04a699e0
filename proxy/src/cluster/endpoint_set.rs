//! Endpoints and their health at one moment, with the picker over the usable ones. Immutable.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use weft_xds_proto::resource::cluster::{LbPolicy, PanicPolicy, SlowStart, ZoneAware};
use weft_xds_proto::resource::endpoint::{Endpoint, EndpointHealth};
use weft_xds_proto::resource::labels::{self, Nearness, Place};
use weft_xds_proto::resource::subset::Subset;

use super::check::CheckStatus;
use super::endpoint::EndpointState;
use super::levels::{self, Levels, Rank, Standing};
use super::picker::Picker;
use super::rotation::Rotations;
use super::zones::Surroundings;

/// A healthy endpoint gets so many times the share of a degraded one of equal weight.
const DEGRADED_SHARE: u32 = 10;

/// See the module.
#[derive(Debug)]
pub struct EndpointSet {
    endpoints: Box<[EndpointView]>,
    /// Of each endpoint in that order; 0: no request may go there.
    weights: Box<[u32]>,
    picker: Levels,
    /// Those that requests asked for so far.
    subsets: ArcSwap<Vec<(Arc<Subset>, Arc<Levels>)>>,
    counts: Counts,
    warming: bool,
}

/// How endpoints are chosen.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// Among the usable ones.
    pub policy: &'a LbPolicy,
    /// If those are few.
    pub panic: PanicPolicy,
    /// For those that have come in a while before this time.
    pub slow_start: Option<(SlowStart, Instant)>,
    /// Endpoints near this proxy come first.
    pub zone_aware: Option<(ZoneAware, &'a Surroundings)>,
}

impl<'a> From<&'a LbPolicy> for Rules<'a> {
    /// Without panic.
    fn from(policy: &'a LbPolicy) -> Self {
        Self { policy, panic: PanicPolicy::Degraded, slow_start: None, zone_aware: None }
    }
}

/// One endpoint of the set.
#[derive(Debug, Clone)]
pub struct EndpointView {
    /// What the mesh says of it.
    pub endpoint: Endpoint,
    /// What this proxy remembers of it.
    pub state: Arc<EndpointState>,
    /// Both together.
    pub status: Status,
}

/// Whether an endpoint gets requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// Yes.
    Ready,
    /// Few: its owner is suspected to be down, or it says so itself.
    Degraded,
    /// No: it failed requests.
    Ejected,
    /// No: it fails this proxy's active checks.
    FailingChecks,
    /// No: the mesh says that it is unhealthy.
    Unhealthy,
}

impl Status {
    /// Lower-case words, as shown on the admin port.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::Ejected => "ejected",
            Self::FailingChecks => "failing-checks",
            Self::Unhealthy => "unhealthy",
        }
    }

    fn of(endpoint: &Endpoint, state: &EndpointState) -> Self {
        let health = state.health.lock();
        match (endpoint.health, health.check.status()) {
            (EndpointHealth::Unhealthy, _) => Self::Unhealthy,
            (_, CheckStatus::Failing) => Self::FailingChecks,
            _ if health.ejection.current().is_some() => Self::Ejected,
            (EndpointHealth::Degraded, _) => Self::Degraded,
            (EndpointHealth::Healthy, _) => Self::Ready,
        }
    }

    fn is_usable(self) -> bool {
        matches!(self, Self::Ready | Self::Degraded)
    }
}

/// How many endpoints are in which status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// All.
    pub total: usize,
    /// [`Status::Ready`] and [`Status::Degraded`].
    pub usable: usize,
    /// [`Status::Ejected`].
    pub ejected: usize,
    /// [`Status::FailingChecks`].
    pub failing_checks: usize,
    /// [`Status::Unhealthy`].
    pub unhealthy: usize,
    /// The panic policy, if it is time for it.
    pub panic: Option<PanicPolicy>,
}

impl Counts {
    /// Those that a request may go to.
    pub fn pickable(&self) -> usize {
        match self.panic {
            Some(PanicPolicy::Spread { .. }) => self.total,
            Some(PanicPolicy::Fail { .. }) => 0,
            Some(PanicPolicy::Degraded) | None => self.usable,
        }
    }
}

impl std::fmt::Display for Counts {
    /// `1 ejected, 2 failing checks of 3`; `it has no endpoints`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.total == 0 {
            return f.write_str("it has no endpoints");
        }
        let parts = [
            (self.usable, "ready"),
            (self.ejected, "ejected"),
            (self.failing_checks, "failing checks"),
            (self.unhealthy, "reported unhealthy"),
        ];
        let mut first = true;
        for (count, what) in parts.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, "{}{count} {what}", if first { "" } else { ", " })?;
            first = false;
        }
        write!(f, " of {}", self.total)?;
        self.panic.map_or(Ok(()), |panic| write!(f, "; panic: {panic}"))
    }
}

impl EndpointSet {
    /// Reads the states once; later changes of them need a new set.
    pub fn new(
        endpoints: impl IntoIterator<Item = (Endpoint, Arc<EndpointState>)>,
        rules: Rules<'_>,
        rotations: &Rotations,
    ) -> Self {
        let endpoints: Box<[EndpointView]> = endpoints
            .into_iter()
            .map(|(endpoint, state)| EndpointView { status: Status::of(&endpoint, &state), endpoint, state })
            .collect();
        let mut counts = Counts { total: endpoints.len(), ..Counts::default() };
        for view in &endpoints {
            match view.status {
                Status::Ready | Status::Degraded => counts.usable += 1,
                Status::Ejected => counts.ejected += 1,
                Status::FailingChecks => counts.failing_checks += 1,
                Status::Unhealthy => counts.unhealthy += 1,
            }
        }
        counts.panic = Some(rules.panic).filter(|p| p.applies(counts.usable, counts.total));
        let spread = matches!(counts.panic, Some(PanicPolicy::Spread { .. }));
        let fail = matches!(counts.panic, Some(PanicPolicy::Fail { .. }));
        let usable = || endpoints.iter().filter(|v| spread || (v.status.is_usable() && !fail));
        // As long as all are equal the weights stay as they are, and round robin an exact cycle.
        let mixed =
            usable().any(|v| v.status == Status::Ready) && usable().any(|v| v.status == Status::Degraded);
        let share = |state: &EndpointState| match rules.slow_start {
            Some((slow, now)) => slow.permille(now.saturating_duration_since(state.in_since())),
            None => 1000,
        };
        let warming = rules.slow_start.is_some() && usable().any(|v| share(&v.state) < 1000);
        let weight = |v: &EndpointView| {
            if !(spread || (v.status.is_usable() && !fail)) {
                return 0;
            }
            let factor = if mixed && v.status == Status::Ready { DEGRADED_SHARE } else { 1 };
            let share = if warming { share(&v.state) } else { 1 };
            v.endpoint.weight.max(1).saturating_mul(factor).saturating_mul(share)
        };
        let weights: Box<[u32]> = endpoints.iter().map(weight).collect();
        if *rules.policy == LbPolicy::LowestLoad {
            for view in &endpoints {
                view.state.labelled(labels::reported_load(&view.endpoint.metadata));
            }
        }
        let all = endpoints.iter().zip(&weights).map(|(view, weight)| (view, *weight));
        let picker = choice(all, rules, spread, rotations, "");
        Self { endpoints, weights, picker, subsets: ArcSwap::default(), counts, warming }
    }

    /// All, in order of their addresses.
    pub fn endpoints(&self) -> &[EndpointView] {
        &self.endpoints
    }

    /// Chooses among the usable ones.
    pub fn picker(&self) -> &Levels {
        &self.picker
    }

    /// Chooses among the usable ones of a subset. The first request for a subset makes its choice, which all others share.
    pub fn subset(&self, subset: &Arc<Subset>, rules: Rules<'_>, rotations: &Rotations) -> Arc<Levels> {
        let known = self.subsets.load();
        if let Some((_, levels)) = known.iter().find(|(s, _)| Arc::ptr_eq(s, subset) || **s == **subset) {
            return levels.clone();
        }
        let of = |view: &&EndpointView| subset.contains(&view.endpoint.metadata);
        let members = self.endpoints.iter().zip(&self.weights).filter(|(view, _)| of(view));
        let spread = matches!(self.counts.panic, Some(PanicPolicy::Spread { .. }));
        let members = members.map(|(view, weight)| (view, *weight));
        let made = Arc::new(choice(members, rules, spread, rotations, &subset.to_string()));
        self.subsets.rcu(|known| {
            let kept: &[_] = if known.len() < SUBSETS_MAX { known } else { &[] };
            kept.iter().cloned().chain([(subset.clone(), made.clone())]).collect::<Vec<_>>()
        });
        made
    }

    /// Whether shares are still growing, so that a new set is due before long.
    pub fn is_warming(&self) -> bool {
        self.warming
    }

    /// In which status how many are.
    pub fn counts(&self) -> Counts {
        self.counts
    }
}

/// Subsets of one set whose choice is kept. Beyond it they are made anew as they are asked for.
const SUBSETS_MAX: usize = 256;

/// Endpoints with their weights in levels; one level where there is nothing to tell them apart by, or in panic, where
/// everybody is to help. `group` names these endpoints among those of the cluster.
fn choice<'a>(
    endpoints: impl Iterator<Item = (&'a EndpointView, u32)> + Clone,
    rules: Rules<'_>,
    spread: bool,
    rotations: &Rotations,
    group: &str,
) -> Levels {
    let first = Rank { priority: 0, nearness: Nearness::Zone, place: None };
    let callers = rules.zone_aware.map(|(_, around)| around.callers()).unwrap_or_default();
    let rank = |view: &EndpointView| {
        let priority = labels::priority(&view.endpoint.metadata);
        let Some((_, around)) = rules.zone_aware else { return Rank { priority, ..first.clone() } };
        let place = Place::of(&view.endpoint.metadata);
        let nearness = around.here.nearness(&place);
        // Zones are told apart only where it is known from where they are called.
        let apart = !callers.is_empty() && nearness != Nearness::Zone;
        Rank { priority, nearness, place: apart.then_some(place) }
    };
    let mut levels: Vec<Group> = Vec::new();
    for (view, weight) in endpoints {
        let rank = if spread { first.clone() } else { rank(view) };
        let at = levels.binary_search_by(|(standing, _)| standing.rank.cmp(&rank)).unwrap_or_else(|at| {
            levels.insert(at, (Standing { rank, usable: 0, total: 0 }, Vec::new()));
            at
        });
        let (standing, members) = &mut levels[at];
        standing.total += 1;
        if weight > 0 {
            standing.usable += 1;
            members.push((view.state.clone(), weight));
        }
    }
    let (min, spill_above) =
        rules.zone_aware.map_or((1, 0), |(rule, _)| (rule.min_endpoints as usize, rule.spill_above));
    join_small(&mut levels, min);
    let standings: Vec<_> = levels.iter().map(|(standing, _)| standing.clone()).collect();
    let shares = levels::shares(&standings, rules.zone_aware.map(|(_, around)| (&around.here, &*callers)));
    let alone = levels.len() <= 1;
    let levels = levels.into_iter().zip(shares).filter(|((standing, _), _)| standing.usable > 0);
    let levels = levels.map(|((standing, members), share)| {
        let Rank { priority, nearness, place } = &standing.rank;
        let name = match place {
            _ if alone => group.to_owned(),
            None => format!("{group}/{priority}/{nearness:?}"),
            Some(Place { region, zone }) => format!("{group}/{priority}/{region}/{zone}"),
        };
        (standing.rank, share, Picker::new(rules.policy, &members, &rotations.of(&name)))
    });
    Levels::new(levels, spill_above)
}

/// A level before its picker is made, with its usable endpoints.
type Group = (Standing, Vec<(Arc<EndpointState>, u32)>);

/// Few usable endpoints nearby are not preferred: they go with the next ones of their priority.
fn join_small(levels: &mut Vec<Group>, min: usize) {
    let mut at = 0;
    while at + 1 < levels.len() {
        let same = levels[at].0.rank.priority == levels[at + 1].0.rank.priority;
        // One without any stays: it bears nothing, and must not take from what the next one bears.
        if same && (1..min).contains(&levels[at].0.usable) {
            let (standing, members) = levels.remove(at);
            let (next, others) = &mut levels[at];
            next.usable += standing.usable;
            next.total += standing.total;
            others.extend(members);
        } else {
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests;
