//! What is shown of the pool, and all that follows from a change of its members. At most one refresh in
//! [`REFRESH_MIN`], so that a storm of news costs readers little.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foca::State;
use weft_core::id::NodeId;

use super::{Output, Pool};
use crate::member::{MemberState, MemberView};

const REFRESH_MIN: Duration = Duration::from_millis(50);
/// From a change of the known members to writing them down; more changes are expected right after the first.
const SAVE_AFTER: Duration = Duration::from_secs(2);

impl Pool {
    /// Something may have changed: refresh now, or as soon as the shortest time has passed.
    pub(super) fn touch(&mut self, now: Instant) {
        let at = self.refreshed_at + REFRESH_MIN;
        if at <= now {
            self.refresh(now);
        } else if self.refresh_at.is_none() {
            self.refresh_at = Some(at);
        }
    }

    /// Brings what is shown, and all that depends on the members, up to date.
    pub(super) fn refresh(&mut self, now: Instant) {
        self.refresh_at = None;
        self.refreshed_at = now;
        let members = self.member_views(now);
        let members_changed = *self.members != members;
        if members_changed {
            self.members = Arc::new(members);
            self.members_changed(now);
        }
        if members_changed || self.records_changed {
            self.records_changed = false;
            self.schedule_pulls(now);
            let life: BTreeMap<NodeId, (MemberState, u64)> =
                self.members.iter().map(|m| (m.member.id, (m.state, m.member.incarnation))).collect();
            self.records.retain(|owner| life.contains_key(&owner));
            let view = self.records.view(|owner| life.get(&owner).copied(), &self.catalog, now);
            let catalog_changed = *self.catalog != view;
            if catalog_changed {
                self.stats.instances.set(view.all().count().try_into().unwrap_or(i64::MAX));
                self.catalog = Arc::new(view);
            }
            self.stats.records.set(self.records.len().try_into().unwrap_or(i64::MAX));
            if members_changed || catalog_changed {
                self.outputs.push_back(Output::Changed);
            }
        }
        self.answer_withdrawals();
    }

    fn member_views(&self, now: Instant) -> Vec<MemberView> {
        let own = MemberView { member: self.local.clone(), state: MemberState::Alive, since: self.started };
        // SWIM keeps our former identities as members that are down.
        let others = self.swim.iter_membership_state().filter(|m| m.id().id != self.local.id).map(|m| {
            let state = match m.state() {
                State::Alive => MemberState::Alive,
                State::Suspect => MemberState::Suspect,
                State::Down => MemberState::Down,
            };
            let former = self.members.binary_search_by_key(&m.id().id, |v| v.member.id).ok();
            let former = former.map(|at| &self.members[at]);
            let same = former.filter(|f| f.state == state && f.member.incarnation == m.id().incarnation);
            MemberView { member: m.id().to_member(), state, since: same.map_or(now, |f| f.since) }
        });
        let mut views: Vec<_> = others.chain([own]).collect();
        views.sort_by_key(|v| v.member.id);
        views
    }

    fn members_changed(&mut self, now: Instant) {
        let views = self.members.clone();
        let others = || views.iter().filter(|v| v.member.id != self.local.id);
        let count = |state| others().filter(|v| v.state == state).count();
        let (alive, suspect) = (count(MemberState::Alive), count(MemberState::Suspect));
        self.stats.members_up.set((alive + suspect).try_into().unwrap_or(i64::MAX));
        self.stats.members_suspect.set(suspect.try_into().unwrap_or(i64::MAX));
        self.stats.members_down.set(count(MemberState::Down).try_into().unwrap_or(i64::MAX));

        let before = self.active.len();
        self.active = others()
            .filter(|v| v.state != MemberState::Down)
            .map(|v| (v.member.id, v.member.gossip_addr))
            .collect();
        for view in views.iter().filter(|v| self.active.contains_key(&v.member.id)) {
            self.peers.seen(view.member.id, view.member.gossip_addr, &view.member.name);
        }
        if self.peers.take_dirty() && self.save_at.is_none() {
            self.save_at = Some(now + SAVE_AFTER);
        }
        if suspect > 0 && self.accuse_at.is_none() {
            self.accuse_at = Some(now);
        }
        if self.active.len() != before {
            if let Err(error) = self.swim.set_config(self.timing.swim(self.active.len())) {
                tracing::debug!("swim configuration not changed: {error}");
            }
            if before == 0 {
                // Just joined: compare everything at once.
                self.sync_at = now;
            }
        }
    }
}
