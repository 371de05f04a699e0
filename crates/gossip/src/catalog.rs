//! The catalogue: what all owners say about their instances, merged. Pure.
//!
//! Worked example, owner `a` in its life 10:
//! ```text
//! a advertises [web/1]          10.1 stored, shown
//! a advertises []               10.2 stored as a tombstone; 10.1 coming back by anti-entropy is stale (G09)
//! a advertises [web/1]          10.3 stored, shown
//! a is declared down            10.3 kept, not shown: nobody else may withdraw or change it
//! a was only cut off, is up     10.3 shown again
//! a restarts in its life 11     10.3 kept, not shown: that process is gone
//! a advertises [web/1]          11.1 stored, shown
//! ```

use std::collections::BTreeMap;
use std::time::Instant;

use weft_core::id::NodeId;

use crate::instance::{Advertisement, InstanceHealth, InstanceRecord, RecordVersion};
use crate::member::MemberState;
use crate::wire;

/// One instance as this process sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogInstance {
    /// As its owner said, but with the effective health: `Passing` becomes `Suspect` while its owner is suspected.
    pub record: InstanceRecord,
    /// The member that advertises it.
    pub owner: NodeId,
    /// The owner's label, for people.
    pub owner_name: String,
    /// Version of the owner's advertisement.
    pub version: RecordVersion,
    /// When it appeared here or last changed.
    pub since: Instant,
}

/// All instances of all owners that are up, at one moment. Immutable: hold it as long as needed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CatalogView {
    services: BTreeMap<String, Vec<CatalogInstance>>,
}

impl CatalogView {
    /// Names of services with at least one instance, sorted.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.services.keys().map(String::as_str)
    }

    /// Instances of a service, sorted by instance id and owner; empty if it is unknown.
    pub fn instances(&self, service: &str) -> &[CatalogInstance] {
        self.services.get(service).map_or(&[], Vec::as_slice)
    }

    /// All instances, sorted by service, instance id and owner.
    pub fn all(&self) -> impl Iterator<Item = &CatalogInstance> {
        self.services.values().flatten()
    }

    fn find(&self, record: &InstanceRecord, owner: NodeId) -> Option<&CatalogInstance> {
        let instances = self.services.get(&record.service)?;
        let key = (record.instance_id.as_str(), owner);
        let at = instances.binary_search_by(|i| (i.record.instance_id.as_str(), i.owner).cmp(&key)).ok()?;
        instances.get(at)
    }
}

impl FromIterator<CatalogInstance> for CatalogView {
    fn from_iter<I: IntoIterator<Item = CatalogInstance>>(instances: I) -> Self {
        let mut services: BTreeMap<String, Vec<CatalogInstance>> = BTreeMap::new();
        for instance in instances {
            services.entry(instance.record.service.clone()).or_default().push(instance);
        }
        for instances in services.values_mut() {
            instances.sort_by(|a, b| (&a.record.instance_id, a.owner).cmp(&(&b.record.instance_id, b.owner)));
        }
        Self { services }
    }
}

/// What became of an advertisement that was merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Merge {
    /// It replaced what was known of the owner.
    News,
    /// The same or a newer one is known.
    Stale,
    /// There is no room for its instances.
    Full,
}

/// The newest advertisement of each owner. The result of merging does not depend on the order.
#[derive(Debug)]
pub(crate) struct Records {
    by_owner: BTreeMap<NodeId, Advertisement>,
    instances: usize,
    instances_max: usize,
}

impl Records {
    pub(crate) fn new(instances_max: usize) -> Self {
        Self { by_owner: BTreeMap::new(), instances: 0, instances_max }
    }

    pub(crate) fn merge(&mut self, new: Advertisement) -> Merge {
        let known = self.by_owner.get(&new.owner);
        if known.is_some_and(|known| !replaces(&new, known)) {
            return Merge::Stale;
        }
        let left = self.instances - known.map_or(0, |known| known.instances.len());
        if left + new.instances.len() > self.instances_max {
            return Merge::Full;
        }
        self.instances = left + new.instances.len();
        self.by_owner.insert(new.owner, new);
        Merge::News
    }

    pub(crate) fn get(&self, owner: NodeId) -> Option<&Advertisement> {
        self.by_owner.get(&owner)
    }

    pub(crate) fn version(&self, owner: NodeId) -> Option<RecordVersion> {
        self.by_owner.get(&owner).map(|a| a.version)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Advertisement> {
        self.by_owner.values()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_owner.len()
    }

    /// Forgets owners that are no members any more.
    pub(crate) fn retain(&mut self, keep: impl Fn(NodeId) -> bool) {
        self.by_owner.retain(|owner, _| keep(*owner));
        self.instances = self.by_owner.values().map(|a| a.instances.len()).sum();
    }

    /// What is shown. `member` tells the state and the present life of an owner; owners that it does not know, that
    /// are down, or that were advertised in another life than their present one, are left out.
    pub(crate) fn view(
        &self,
        member: impl Fn(NodeId) -> Option<(MemberState, u64)>,
        previous: &CatalogView,
        now: Instant,
    ) -> CatalogView {
        let shown = self.by_owner.values().filter_map(|a| match member(a.owner) {
            Some((MemberState::Down, _)) | None => None,
            Some((_, life)) if life != a.version.incarnation => None,
            Some((state, _)) => Some((a, state)),
        });
        let instances = shown.flat_map(|(a, state)| {
            a.instances.iter().map(move |record| {
                let mut record = record.clone();
                if state == MemberState::Suspect && record.health == InstanceHealth::Passing {
                    record.health = InstanceHealth::Suspect;
                }
                let since =
                    previous.find(&record, a.owner).filter(|p| p.record == record).map_or(now, |p| p.since);
                CatalogInstance {
                    record,
                    owner: a.owner,
                    owner_name: a.owner_name.clone(),
                    version: a.version,
                    since,
                }
            })
        });
        instances.collect()
    }
}

fn replaces(new: &Advertisement, known: &Advertisement) -> bool {
    match new.version.cmp(&known.version) {
        std::cmp::Ordering::Greater => true,
        std::cmp::Ordering::Less => false,
        // Two contents of one version take two processes with one data folder; all members must still agree.
        std::cmp::Ordering::Equal => new != known && wire::encode(new) > wire::encode(known),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    pub(crate) fn record(service: &str, instance_id: &str) -> InstanceRecord {
        InstanceRecord {
            service: service.into(),
            instance_id: instance_id.into(),
            address: "127.0.0.1:80".parse().unwrap(),
            health: InstanceHealth::Passing,
            metadata: BTreeMap::new(),
        }
    }

    pub(crate) fn advertisement(
        owner: u64,
        incarnation: u64,
        seq: u64,
        instances: Vec<InstanceRecord>,
    ) -> Advertisement {
        let version = RecordVersion { incarnation, seq };
        Advertisement { owner: NodeId(owner), owner_name: format!("n{owner}"), version, instances }
    }

    fn names(view: &CatalogView) -> Vec<String> {
        view.all().map(|i| format!("{}/{}@{}", i.record.service, i.record.instance_id, i.owner.0)).collect()
    }

    fn up(incarnation: u64) -> impl Fn(NodeId) -> Option<(MemberState, u64)> {
        move |_| Some((MemberState::Alive, incarnation))
    }

    /// G09: what its owner withdrew stays withdrawn when an older copy comes back.
    #[test]
    fn a_withdrawn_instance_does_not_come_back_with_an_older_copy() {
        let mut records = Records::new(10);
        let old = advertisement(1, 10, 1, vec![record("web", "1")]);
        assert_eq!(records.merge(old.clone()), Merge::News);
        assert_eq!(records.merge(advertisement(1, 10, 2, vec![])), Merge::News);
        assert_eq!(records.merge(old), Merge::Stale);
        assert_eq!(records.view(up(10), &CatalogView::default(), Instant::now()), CatalogView::default());
    }

    /// G03: a process that is gone is not shown because its successor is up.
    #[test]
    fn instances_of_a_former_life_are_not_shown() {
        let mut records = Records::new(10);
        records.merge(advertisement(1, 10, 9, vec![record("web", "old")]));
        assert!(names(&records.view(up(11), &CatalogView::default(), Instant::now())).is_empty());
        records.merge(advertisement(1, 11, 1, vec![record("web", "new")]));
        let view = records.view(up(11), &CatalogView::default(), Instant::now());
        assert_eq!(names(&view), ["web/new@1"]);
        assert_eq!(records.merge(advertisement(1, 10, 10, vec![record("web", "old")])), Merge::Stale);
    }

    #[test]
    fn a_down_owner_is_hidden_and_shown_again_when_up() {
        let mut records = Records::new(10);
        records.merge(advertisement(1, 1, 1, vec![record("web", "1")]));
        let start = Instant::now();
        let with = |state| move |_| Some((state, 1));
        assert!(names(&records.view(with(MemberState::Down), &CatalogView::default(), start)).is_empty());
        assert!(names(&records.view(|_| None, &CatalogView::default(), start)).is_empty());
        let view = records.view(with(MemberState::Alive), &CatalogView::default(), start);
        assert_eq!(names(&view), ["web/1@1"]);
    }

    #[test]
    fn a_suspected_owner_lowers_passing_and_nothing_else() {
        let mut records = Records::new(10);
        let critical = InstanceRecord { health: InstanceHealth::Critical, ..record("web", "2") };
        records.merge(advertisement(1, 1, 1, vec![record("web", "1"), critical]));
        let view = records.view(|_| Some((MemberState::Suspect, 1)), &CatalogView::default(), Instant::now());
        let health: Vec<_> = view.all().map(|i| i.record.health).collect();
        assert_eq!(health, [InstanceHealth::Suspect, InstanceHealth::Critical]);
    }

    #[test]
    fn since_moves_only_when_the_instance_changes() {
        let mut records = Records::new(10);
        let start = Instant::now();
        let later = start + Duration::from_secs(5);
        records.merge(advertisement(1, 1, 1, vec![record("web", "1"), record("web", "2")]));
        let first = records.view(up(1), &CatalogView::default(), start);
        let changed = InstanceRecord { health: InstanceHealth::Critical, ..record("web", "2") };
        records.merge(advertisement(1, 1, 2, vec![record("web", "1"), changed]));
        let second = records.view(up(1), &first, later);
        let since: Vec<_> = second.instances("web").iter().map(|i| i.since).collect();
        assert_eq!(since, [start, later]);
    }

    #[test]
    fn instances_beyond_the_limit_are_refused_and_change_nothing() {
        let mut records = Records::new(2);
        records.merge(advertisement(1, 1, 1, vec![record("a", "1"), record("a", "2")]));
        assert_eq!(records.merge(advertisement(2, 1, 1, vec![record("b", "1")])), Merge::Full);
        assert_eq!(records.merge(advertisement(1, 1, 2, vec![record("a", "1")])), Merge::News);
        assert_eq!(records.merge(advertisement(2, 1, 1, vec![record("b", "1")])), Merge::News);
        records.retain(|owner| owner == NodeId(2));
        assert_eq!((records.len(), records.instances), (1, 1));
    }

    fn any_advertisement() -> impl Strategy<Value = Advertisement> {
        (1..4u64, 1..3u64, 1..4u64, proptest::collection::vec(0..3u8, 0..3)).prop_map(
            |(owner, incarnation, seq, ids)| {
                let instances = ids.iter().map(|id| record("web", &id.to_string())).collect();
                advertisement(owner, incarnation, seq, instances)
            },
        )
    }

    proptest! {
        /// G04: members that heard the same, in whatever order and however often, show the same.
        #[test]
        fn merging_is_independent_of_order_and_repetition(
            heard in proptest::collection::vec(any_advertisement(), 0..30),
            seed in any::<u64>(),
        ) {
            let mut one = Records::new(1_000);
            for a in &heard {
                one.merge(a.clone());
            }
            let mut shuffled = heard.clone();
            shuffled.extend(heard);
            fastrand::Rng::with_seed(seed).shuffle(&mut shuffled);
            let mut other = Records::new(1_000);
            for a in shuffled {
                other.merge(a);
            }
            prop_assert_eq!(one.by_owner, other.by_owner);
            prop_assert_eq!(one.instances, other.instances);
        }
    }
}
