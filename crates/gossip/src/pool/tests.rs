//! What the pool promises, shown in simulation.

use std::time::Duration;

use weft_core::id::NodeId;

use super::sim::{Sim, addr};
use crate::catalog::tests::record;
use crate::instance::{InstanceHealth, InstanceRecord};
use crate::member::MemberState;
use crate::peers::PEERS_MAX;

const SEC: Duration = Duration::from_secs(1);

/// The instance that node `n` advertises.
pub(super) fn web(n: u64) -> InstanceRecord {
    record("web", &n.to_string())
}

fn large(n: u64) -> Vec<InstanceRecord> {
    (0..200).map(|i| record("large", &format!("{n}-{i:03}"))).collect()
}

#[test]
fn a_pool_forms_by_one_seed() {
    for seed in 0..5 {
        let mut sim = Sim::cluster(seed, 20);
        // It took part of the ten seconds; now it stays so.
        for _ in 0..30 {
            sim.run(SEC);
            assert!(sim.all_agree(), "{}", sim.describe());
        }
    }
}

#[test]
fn a_new_member_and_its_instances_are_known_everywhere_within_two_seconds() {
    for seed in 0..10 {
        let mut sim = Sim::cluster(seed, 8);
        sim.start_node(9, 1, &[3]);
        sim.advertise(9, vec![web(9)]);
        let took = sim.run_until(SEC * 2, Sim::all_agree);
        assert!(took.is_some(), "{}", sim.describe());
    }
}

/// G02: dead within a bound, and its instances withdrawn with it.
#[test]
fn a_killed_member_is_down_everywhere_within_six_seconds_and_not_at_once() {
    let mut sum = Duration::ZERO;
    for seed in 0..20 {
        let mut sim = Sim::cluster(seed, 5);
        sim.run(Duration::from_millis(137 * seed));
        sim.kill(4);
        let first = sim.run_until(SEC * 10, |sim| sim.alive().iter().any(|n| sim.up(*n).len() == 4));
        assert!(first.unwrap() > SEC * 2, "declared without giving it time to refute: {first:?}");
        let rest = sim.run_until(SEC * 10, Sim::all_agree).unwrap();
        let took = first.unwrap() + rest;
        assert!(took < SEC * 6, "took {took:?}");
        sum += took;
    }
    assert!(sum / 20 < Duration::from_millis(4_500), "mean {:?}", sum / 20);
}

#[test]
fn endpoints_of_a_suspect_are_suspect_before_they_are_withdrawn() {
    let mut sim = Sim::cluster(1, 5);
    sim.kill(4);
    let suspected = sim.run_until(SEC * 5, |sim| sim.state(1, 4) == Some(MemberState::Suspect));
    assert!(suspected.is_some());
    let catalog = sim.pool(1).catalog();
    let of_suspect = catalog.instances("web").iter().find(|i| i.owner == NodeId(4)).unwrap();
    assert_eq!(of_suspect.record.health, InstanceHealth::Suspect);
}

/// G03, G07: the next life of a member is up at once, with its own instances and none of the former life.
#[test]
fn a_member_that_comes_back_is_up_again_with_its_new_instances_only() {
    for (seed, wait) in [(1, SEC / 2), (2, SEC * 10), (3, SEC * 1_000)] {
        let mut sim = Sim::cluster(seed, 5);
        sim.run(SEC * 3);
        sim.kill(4);
        sim.run(wait);
        sim.restart(4);
        sim.advertise(4, vec![record("web", "new")]);
        let took = sim.run_until(SEC * 3, Sim::all_agree);
        assert!(took.is_some(), "after {wait:?}: {}", sim.describe());
        assert!(!sim.names(1).contains(&"web/4".to_owned()));
    }
}

#[test]
fn a_member_that_leaves_is_down_and_withdrawn_within_a_second() {
    for seed in 0..10 {
        let mut sim = Sim::cluster(seed, 8);
        sim.leave(4);
        let took = sim.run_until(SEC, Sim::all_agree);
        assert!(took.is_some(), "{}", sim.describe());
    }
}

/// G01: no live member stays down because of lost datagrams, and hardly any is ever declared down.
#[test]
fn a_fifth_of_all_datagrams_lost_declares_hardly_anyone_down_and_nobody_for_long() {
    let mut rejoins = 0;
    for seed in 0..5 {
        let mut sim = Sim::cluster(seed, 8);
        sim.loss = 0.2;
        for _ in 0..10 {
            sim.run(SEC * 20);
            let took = sim.run_until(SEC * 20, |sim| sim.alive().iter().all(|n| sim.up(*n).len() == 8));
            assert!(took.is_some(), "{}", sim.describe());
        }
        rejoins += (1..=8).map(|n| sim.pool(n).stats().rejoins.get()).sum::<u64>();
        sim.loss = 0.0;
        let took = sim.run_until(SEC * 20, Sim::all_agree);
        assert!(took.is_some(), "{}", sim.describe());
    }
    // Five runs of more than three minutes with eight members: about 16,000 probes.
    assert!(rejoins <= 2, "{rejoins} false declarations");
}

/// G01: one direction of one link is dead; others answer for it.
#[test]
fn an_asymmetric_link_declares_nobody_down() {
    let mut sim = Sim::cluster(3, 5);
    sim.cut_one_way(1, 2);
    for _ in 0..120 {
        sim.run(SEC);
        assert!(sim.alive().iter().all(|n| sim.up(*n).len() == 5), "{}", sim.describe());
    }
}

/// P25: a process that was not run for a while blames itself, not the pool, and comes back.
#[test]
fn a_paused_process_accuses_nobody_and_comes_back() {
    for seed in 0..10 {
        let mut sim = Sim::cluster(seed, 8);
        sim.pause(3, SEC * 20);
        sim.run(SEC * 10);
        assert!((1..=8).filter(|n| *n != 3).all(|n| sim.state(n, 3) == Some(MemberState::Down)));
        let mut worst = 8;
        for _ in 0..300 {
            sim.run(SEC / 10);
            let others = (1..=8).filter(|n| *n != 3);
            worst =
                worst.min(others.clone().filter(|n| sim.state(3, *n) != Some(MemberState::Down)).count() + 1);
            assert!(
                others
                    .clone()
                    .all(|n| others.clone().all(|m| n == m || sim.state(n, m) != Some(MemberState::Down)))
            );
        }
        assert_eq!(worst, 8, "it declared others down");
        assert!(sim.all_agree(), "{}", sim.describe());
        assert!(sim.pool(3).stats().timers_late.get() > 0);
    }
}

/// G04, G08: each side of a partition serves its own; after it, everyone has everything again.
#[test]
fn both_sides_of_a_partition_serve_their_own_and_heal() {
    for (seed, time) in [(1, SEC * 3), (2, SEC * 20), (3, SEC * 120), (4, SEC * 2_000)] {
        let mut sim = Sim::cluster(seed, 6);
        sim.cut_between(&[1, 2, 3], &[4, 5, 6]);
        sim.run(time);
        if time > SEC * 10 {
            assert_eq!(sim.names(1), ["web/1", "web/2", "web/3"]);
            assert_eq!(sim.names(6), ["web/4", "web/5", "web/6"]);
        }
        sim.advertise(5, vec![record("web", "5-changed")]);
        sim.heal();
        let took = sim.run_until(SEC * 40, Sim::all_agree);
        assert!(took.is_some(), "after {time:?}: {}", sim.describe());
    }
}

/// G05: a member that has lost sight of everyone for longer than anyone is remembered finds the pool again, with no
/// seed of its own.
#[test]
fn an_isolated_member_without_seeds_returns() {
    let mut sim = Sim::cluster(5, 5);
    sim.cut_between(&[1], &[2, 3, 4, 5]);
    sim.run(SEC * 1_500);
    assert_eq!(sim.up(1), [1]);
    assert_eq!(sim.pool(2).members().len(), 4, "it was forgotten");
    sim.heal();
    let took = sim.run_until(SEC * 15, Sim::all_agree);
    assert!(took.is_some(), "{}", sim.describe());
}

/// G03: whatever a former life has sent, once it is down nothing of it comes back.
#[test]
fn replayed_datagrams_of_a_former_life_resurrect_nothing() {
    let mut sim = Sim::cluster(6, 5);
    sim.recorded = Some(Vec::new());
    sim.advertise(4, vec![record("web", "old")]);
    sim.run(SEC * 5);
    let recorded = sim.recorded.take().unwrap();
    let old: Vec<_> = recorded.into_iter().filter(|(from, _, _)| *from == 4).collect();
    assert!(old.len() > 20);
    sim.kill(4);
    assert!(sim.run_until(SEC * 10, Sim::all_agree).is_some());
    for (from, to, bytes) in &old {
        sim.inject(*from, *to, bytes.clone());
    }
    for _ in 0..100 {
        sim.run(SEC / 10);
        assert!(sim.all_agree(), "{}", sim.describe());
    }
    sim.restart(4);
    sim.advertise(4, vec![record("web", "new")]);
    assert!(sim.run_until(SEC * 5, Sim::all_agree).is_some());
    for (from, to, bytes) in &old {
        sim.inject(*from, *to, bytes.clone());
    }
    for _ in 0..100 {
        sim.run(SEC / 10);
        assert!(sim.all_agree(), "{}", sim.describe());
    }
}

/// G06: restarts of one member leave nothing behind.
#[test]
fn two_hundred_restarts_of_one_member_leave_every_table_bounded() {
    let mut sim = Sim::cluster(7, 4);
    for life in 0..200 {
        match life % 3 {
            0 => sim.leave(4),
            _ => sim.kill(4),
        }
        sim.run(SEC * (life % 7) as u32);
        sim.restart(4);
        sim.advertise(4, vec![record("web", &format!("life-{life}"))]);
        sim.run(SEC / 2);
    }
    assert!(sim.run_until(SEC * 10, Sim::all_agree).is_some(), "{}", sim.describe());
    for n in 1..=4 {
        let pool = sim.pool(n);
        assert_eq!(pool.members().len(), 4);
        assert!(pool.swim.iter_membership_state().len() <= 4);
        assert_eq!(pool.records.len(), 4);
        assert!(pool.effects.timers.len() < 40, "{} timers", pool.effects.timers.len());
        assert!(pool.swim.updates_backlog() <= 4);
        assert!(pool.swim.custom_broadcast_backlog() <= 4);
        assert!(pool.peers.known_len() <= 4);
        assert!(pool.sessions.len() <= 20 && pool.pulls.len() <= 4);
    }
}

/// G09: a copy that somebody still has does not bring back what its owner withdrew.
#[test]
fn a_deregistered_instance_is_not_re_added_by_anti_entropy() {
    let mut sim = Sim::cluster(8, 5);
    sim.cut_between(&[5], &[1, 2, 3, 4]);
    sim.advertise(2, vec![]);
    sim.run(SEC);
    assert!(sim.names(5).contains(&"web/2".to_owned()), "it still has the copy");
    sim.heal();
    let took = sim.run_until(SEC * 30, Sim::all_agree);
    assert!(took.is_some(), "{}", sim.describe());
    for _ in 0..300 {
        sim.run(SEC / 10);
        assert!((1..=4).all(|n| !sim.names(n).contains(&"web/2".to_owned())));
    }
}

/// G04: what no datagram can carry, and what datagrams lost, still arrives everywhere.
#[test]
fn large_advertisements_and_lost_broadcasts_converge() {
    for seed in 0..5 {
        let mut sim = Sim::cluster(seed, 10);
        sim.loss = 0.5;
        sim.advertise(1, large(1));
        sim.advertise(2, large(2));
        sim.advertise(3, vec![record("small", "3")]);
        sim.run(SEC * 5);
        sim.advertise(2, vec![]);
        let seen = |sim: &Sim| {
            (1..=10).all(|n| {
                let names = sim.names(n);
                let of = |prefix: &str| names.iter().filter(|name| name.starts_with(prefix)).count();
                (of("large/1-"), of("large/2-"), of("small/3")) == (200, 0, 1)
            })
        };
        let took = sim.run_until(SEC * 60, seen);
        assert!(took.is_some(), "{}", sim.describe());
        sim.loss = 0.0;
        assert!(sim.run_until(SEC * 30, Sim::all_agree).is_some(), "{}", sim.describe());
    }
}

/// G07: two processes with one id cannot both be members, but their quarrel must not flood the network.
#[test]
fn two_processes_with_one_id_do_not_flood_the_pool() {
    let mut sim = Sim::cluster(9, 4);
    sim.run(SEC * 10);
    let before = sim.datagrams;
    sim.run(SEC * 20);
    let quiet = sim.datagrams - before;
    // Node 5 claims the id of node 4, from another address.
    sim.start_twin(5, 4, &[1]);
    sim.run(SEC);
    let before = sim.datagrams;
    sim.run(SEC * 20);
    let quarrel = sim.datagrams - before;
    assert!(quarrel < quiet * 8, "{quarrel} datagrams, without the twin {quiet}");
    let conflicts: u64 = [4, 5].iter().map(|n| sim.pool(*n).stats().identity_conflicts.get()).sum();
    assert!(conflicts > 0 || sim.pool(4).stats().rejoins.get() > 0);
    // The other members are not harmed.
    for n in 1..=3 {
        for m in 1..=3 {
            assert_eq!(sim.state(n, m), Some(MemberState::Alive));
        }
    }
}

/// The same seed gives the same run, or no failure could be reproduced.
#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let mut sim = Sim::cluster(42, 6);
        sim.loss = 0.3;
        sim.run(SEC * 20);
        (sim.datagrams, sim.describe())
    };
    assert_eq!(run(), run());
}

#[test]
fn a_hundred_members_form_a_pool_and_notice_a_death() {
    let mut sim = Sim::cluster(10, 100);
    sim.run(SEC * 5);
    sim.kill(50);
    let took = sim.run_until(SEC * 12, |sim| sim.alive().iter().all(|n| sim.up(*n).len() == 99));
    assert!(took.is_some(), "{}", sim.describe());
    assert!(sim.pool(1).peers.known_len() <= PEERS_MAX);
}

#[test]
fn a_seed_that_is_ourselves_does_no_harm_and_is_not_called_again() {
    let mut sim = Sim::new(11);
    sim.start_node(1, 1, &[1, 2]);
    sim.start_node(2, 1, &[1, 2]);
    assert!(sim.run_until(SEC * 3, Sim::all_agree).is_some());
    sim.recorded = Some(Vec::new());
    sim.run(SEC * 30);
    assert!(sim.recorded.take().unwrap().iter().all(|(from, to, _)| from != to));
    assert_eq!(sim.pool(1).stats().identity_conflicts.get(), 0);
    assert_eq!(sim.pool(1).local().gossip_addr, addr(1));
}

/// P46: whoever withdraws knows when nobody uses it any more, however bad the network.
#[test]
fn a_withdrawal_is_over_exactly_when_every_member_that_is_up_shows_nothing_of_it() {
    for seed in 0..10 {
        let mut sim = Sim::cluster(seed, 12);
        sim.advertise(5, vec![web(5)]);
        sim.run_until(SEC * 5, Sim::all_agree).unwrap();
        sim.loss = 0.3;
        sim.withdraw(5);
        assert_eq!(sim.pool(5).unheard(), 11);
        let others: Vec<u64> = sim.alive().into_iter().filter(|n| *n != 5).collect();
        let shows = |sim: &Sim, n: u64| sim.names(n).contains(&"web/5".to_owned());
        let shown = |sim: &Sim| others.iter().filter(|n| shows(sim, **n)).count();
        let took = sim.run_until(SEC * 3, |sim| {
            let unheard = sim.pool(5).unheard();
            // One that is suspected is not waited for.
            let suspected = others.iter().filter(|n| sim.state(5, **n) != Some(MemberState::Alive)).count();
            assert!(shown(sim) <= unheard + suspected, "{}", sim.describe());
            unheard == 0
        });
        assert!(took.is_some(), "{}", sim.describe());
    }
}

#[test]
fn a_withdrawal_in_a_sound_network_takes_less_than_a_tenth_of_a_second() {
    let mut sim = Sim::cluster(3, 12);
    sim.advertise(5, vec![web(5)]);
    sim.run_until(SEC * 5, Sim::all_agree).unwrap();
    sim.withdraw(5);
    let took = sim.run_until(SEC, |sim| sim.pool(5).unheard() == 0).unwrap();
    assert!(took < Duration::from_millis(100), "{took:?}");
}

#[test]
fn a_withdrawal_does_not_wait_for_members_that_are_gone() {
    let mut sim = Sim::cluster(4, 5);
    sim.advertise(5, vec![web(5)]);
    sim.run_until(SEC * 5, Sim::all_agree).unwrap();
    sim.kill(2);
    sim.withdraw(5);
    assert!(sim.run_until(SEC, |sim| sim.pool(5).unheard() == 1).is_some());
    assert!(sim.run_until(SEC * 10, |sim| sim.pool(5).unheard() == 0).is_some(), "{}", sim.describe());
}

/// What somebody else says in our name, or about what is none of ours, ends no withdrawal.
#[test]
fn false_answers_to_a_withdrawal_change_nothing() {
    let mut sim = Sim::cluster(4, 3);
    sim.cut_between(&[1], &[2, 3]);
    sim.withdraw(1);
    let heard = |owner, seq| {
        let version = crate::instance::RecordVersion { incarnation: 1, seq };
        let heard = crate::wire::Heard { by: NodeId(2), owner: NodeId(owner), version };
        crate::wire::datagram(crate::wire::Kind::Heard, &heard)
    };
    for bytes in [heard(3, 99), heard(1, 0)] {
        sim.inject(2, 1, bytes);
    }
    sim.run(Duration::from_millis(50));
    assert_eq!(sim.pool(1).unheard(), 2);
    let record = crate::catalog::tests::advertisement(3, 1, 99, vec![web(3)]);
    let bytes = crate::wire::datagram(crate::wire::Kind::Withdrawal, &crate::wire::Withdrawal { record });
    let before = sim.pool(2).stats().datagrams_malformed.get();
    sim.inject(3, 2, bytes);
    sim.run(Duration::from_millis(50));
    assert_eq!(
        sim.pool(2).stats().datagrams_malformed.get(),
        before + 1,
        "a withdrawal says that there is nothing"
    );
}
