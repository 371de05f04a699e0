//! Leases as replicated state.

use weft_state::{
    command::{Command, Register, RegisteredInstance, Response},
    error::StoreError,
    machine::Machine,
};

use crate::support::{Replica, short};

/// S04
#[test]
fn keys_of_a_lease_end_with_it_in_one_revision() {
    let mut r = Replica::new();
    r.lease(1);
    r.lease(2);
    for key in ["b", "a", "c"] {
        r.put_leased(key, "x", 1).unwrap();
    }
    r.put_leased("c", "x", 2).unwrap();
    r.put("b", "no longer leased");
    assert_eq!(r.machine.lease(1).unwrap().keys, ["a"]);
    r.put_leased("d", "x", 1).unwrap();
    r.revoke(1);
    let last: Vec<_> = r.events.iter().rev().take(2).rev().map(short).collect();
    assert_eq!(last, ["del a@8", "del d@8"], "in key order, one revision");
    assert_eq!(r.machine.lease(1), None);
    assert_eq!(r.machine.leases(), [2]);
    assert_eq!(r.run(Command::LeaseRevoke { id: 1 }), Err(StoreError::LeaseNotFound { id: 1 }));
    r.delete("c", "");
    let revision = r.machine.revision();
    r.revoke(2);
    assert_eq!(r.machine.revision(), revision, "a lease without keys ends without a revision");
}

#[test]
fn lease_grants_out_of_range_are_refused() {
    let mut r = Replica::new();
    r.lease(1);
    let mut grant = |id, ttl_secs| r.run(Command::LeaseGrant { id, ttl_secs });
    assert_eq!(grant(1, 10), Err(StoreError::LeaseExists { id: 1 }));
    assert_eq!(grant(0, 10), Err(StoreError::LeaseNotFound { id: 0 }));
    for ttl in [i64::MIN, 0, 9_000_000_001] {
        assert_eq!(grant(2, ttl), Err(StoreError::LeaseTtlOutOfRange { seen: ttl, limit: 9_000_000_000 }));
    }
    assert_eq!(grant(2, 9_000_000_000), Ok(Response::LeaseGrant { id: 2, ttl_secs: 9_000_000_000 }));
    let terms = r.machine.all_lease_terms().map(|lease| (lease.id, lease.ttl_secs));
    assert_eq!(terms.collect::<Vec<_>>(), [(1, 10), (2, 9_000_000_000)]);
}

/// S01, S07: what a deposed leader saw expire may have been renewed by its successor.
#[test]
fn expiry_seen_in_an_earlier_term_ends_nothing() {
    let mut r = Replica::new();
    r.lease(1);
    r.put_leased("a", "x", 1).unwrap();
    r.term = 2;
    let stale = Command::LeaseExpire { term: 1, leases: vec![(1, r.grant_of(1))] };
    assert_eq!(r.run(stale), Ok(Response::LeaseExpire { expired: 0 }));
    assert_eq!(r.value("a").as_deref(), Some("x"));
    assert_eq!(r.expire(&[1, 5]), 1, "unknown ones are passed over");
    assert_eq!(r.value("a"), None);
}

/// S06
#[test]
fn id_that_is_granted_again_has_none_of_the_former_keys() {
    let mut r = Replica::new();
    r.lease(1);
    r.put_leased("a", "x", 1).unwrap();
    r.revoke(1);
    r.put("a", "mine");
    r.lease(1);
    assert_eq!(r.machine.lease(1).unwrap().keys.len(), 0);
    r.revoke(1);
    assert_eq!(r.value("a").as_deref(), Some("mine"));
}

/// S06: the leader saw one grant of the id expire; what has the id by now is another one.
#[test]
fn expiry_of_an_earlier_grant_does_not_end_the_present_one() {
    let mut r = Replica::new();
    r.lease(1);
    r.lease(2);
    let seen = vec![(1, r.grant_of(1)), (2, r.grant_of(2))];
    r.revoke(1);
    r.lease(1);
    r.put_leased("a", "mine", 1).unwrap();
    let late = Command::LeaseExpire { term: 1, leases: seen.clone() };
    assert_eq!(
        r.run(late.clone()),
        Ok(Response::LeaseExpire { expired: 1 }),
        "the other one is the same still"
    );
    assert_eq!(r.machine.leases(), [1]);
    assert_eq!(r.value("a").as_deref(), Some("mine"));

    // Numbers are not given twice by a replica that was restored while the ids were free.
    r.revoke(1);
    r.machine = Machine::from_image(&r.machine.image()).unwrap();
    r.lease(1);
    r.lease(2);
    assert_eq!(r.run(late), Ok(Response::LeaseExpire { expired: 0 }));
    assert_eq!(r.expire(&[1, 2]), 2, "what is seen now ends");
}

/// S06, S01: who was told that an instance is registered is not removed by the end of the time before.
#[test]
fn expiry_of_a_registration_that_was_renewed_ends_nothing() {
    let mut r = Replica::new();
    let instance = RegisteredInstance {
        service: "orders".into(),
        instance_id: "a".into(),
        host: "10.0.0.1".into(),
        port: 80,
        metadata: Default::default(),
        health_path: None,
        ttl_secs: 10,
    };
    let register = Command::Register(Register { instance, lease: 7, ttl_secs: 10 });
    r.run(register.clone()).unwrap();
    let seen = r.grant_of(7);
    r.run(register).unwrap();
    let late = Command::LeaseExpire { term: 1, leases: vec![(7, seen)] };
    assert_eq!(r.run(late), Ok(Response::LeaseExpire { expired: 0 }));
    assert_eq!(r.machine.registered(Some("orders")).len(), 1);
}
