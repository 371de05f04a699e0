//! Locks, semaphores, elections and the registry, scene by scene.

use std::collections::BTreeMap;

use bytes::Bytes;
use weft_state::{
    command::{
        Acquire, Acquired, Command, MeshConfigChange, Proclaim, Register, RegisteredInstance, Response,
        Revision, SetMeshConfig,
    },
    error::StoreError,
    machine::Machine,
    recipes::election,
};

use crate::support::{Replica, acquire, b, short, text};

/// The revision of the last put of a key: for a grant, its fencing token.
fn put_at(r: &Replica, key: &[u8]) -> Option<Revision> {
    r.kv(&text(key)).map(|kv| kv.create_revision)
}

#[test]
fn lock_goes_from_hand_to_hand_in_order_of_arrival() {
    let mut r = Replica::new();
    for lease in [1, 2, 3] {
        r.lease(lease);
    }
    let first = r.lock("jobs", 1);
    assert_eq!(put_at(&r, &first.key), Some(first.fence));
    let Acquired::Queued { key, waiter_key, position: 0 } = r.acquire(acquire("jobs", 2)).unwrap() else {
        panic!()
    };
    let third = r.acquire(acquire("jobs", 3)).unwrap();
    assert!(matches!(third, Acquired::Queued { position: 1, .. }));
    assert_eq!(r.lineup("jobs"), (vec![1], vec![2, 3]));
    let seen = r.events.len();
    assert!(r.release("jobs", 1));
    // L08: one release, one grant; the place in the queue and the grant change hands in one revision.
    let events: Vec<_> = r.events[seen..].iter().map(short).collect();
    let at = r.machine.revision();
    assert_eq!(
        events,
        [
            format!("del {}@{}", text(&first.key), at - 1),
            format!("del {}@{at}", text(&waiter_key)),
            format!("put {}@{at}", text(&key)),
        ]
    );
    assert!(put_at(&r, &key).unwrap() > first.fence);
    assert!(!r.release("jobs", 1), "released once");
    assert!(r.release("jobs", 2));
    assert!(r.release("jobs", 3));
    assert_eq!(r.machine.semaphore("jobs"), None, "nothing is left of an unused lock");
    assert_eq!(r.range("weft/", "weft0").count, 0);
}

/// A06, L06: a client that repeats a request after a lost answer neither deadlocks nor holds twice.
#[test]
fn repeated_request_answers_where_the_first_one_stands() {
    let mut r = Replica::new();
    r.lease(1);
    r.lease(2);
    let granted = r.acquire(acquire("jobs", 1)).unwrap();
    let queued = r.acquire(acquire("jobs", 2)).unwrap();
    let revision = r.machine.revision();
    assert_eq!(r.acquire(acquire("jobs", 1)).unwrap(), granted);
    assert_eq!(r.acquire(acquire("jobs", 2)).unwrap(), queued);
    assert_eq!(r.machine.revision(), revision);
    let other = Acquire { request_id: 1, ..acquire("jobs", 1) };
    assert!(matches!(r.acquire(other).unwrap(), Acquired::Queued { position: 1, .. }), "another request");
}

/// L01, L06: a server learns late that its client went away, when the client holds through another one.
#[test]
fn late_undo_of_an_earlier_call_takes_nothing_from_the_call_that_took_over() {
    let mut r = Replica::new();
    for lease in [1, 2, 3] {
        r.lease(lease);
        r.acquire(acquire("jobs", lease)).unwrap();
    }
    let again = |lease| Acquire { attempt: 2, ..acquire("jobs", lease) };
    let seen = r.events.len();
    let Acquired::Granted(held) = r.acquire(again(1)).unwrap() else { panic!() };
    assert!(matches!(r.acquire(again(2)).unwrap(), Acquired::Queued { position: 0, .. }));
    for lease in [1, 2] {
        assert!(!r.undo_acquire("jobs", lease, Some(1)), "the earlier call's undo");
    }
    assert_eq!(r.lineup("jobs"), (vec![1], vec![2, 3]), "holder and place stay");
    // L11: taking over is no grant: the key and its fencing token are the same.
    assert_eq!(put_at(&r, &held.key), Some(held.fence));
    assert!(r.events[seen..].iter().all(|event| event.kv.version == 2), "{:?}", &r.events[seen..]);

    // What was taken over in the queue is held by the newest call, too, and in a replica that was restored.
    assert!(r.undo_acquire("jobs", 1, Some(2)), "the newest call's undo");
    r.machine = Machine::from_image(&r.machine.image()).unwrap();
    assert!(!r.undo_acquire("jobs", 2, Some(1)));
    assert_eq!(r.lineup("jobs"), (vec![2], vec![3]));
    assert!(r.undo_acquire("jobs", 2, Some(2)));
    assert!(r.release("jobs", 3), "what the client itself gives back is given back whichever call has it");
    assert_eq!(r.machine.semaphore("jobs"), None);
}

/// L01, L06, L10
#[test]
fn late_undo_of_an_earlier_campaign_neither_deposes_nor_withdraws() {
    let mut r = Replica::new();
    r.lease(1);
    r.lease(2);
    let Acquired::Granted(led) = r.campaign("primary", 1, "one") else { panic!() };
    r.campaign("primary", 2, "two");
    let seen = r.events.len();
    assert_eq!(r.campaign_again("primary", 1, "one", 2), Acquired::Granted(led.clone()));
    assert!(matches!(r.campaign_again("primary", 2, "two", 2), Acquired::Queued { position: 0, .. }));
    assert!(!election::is_news(&r.events[seen]), "observers hear of no leader twice");
    assert!(!r.resign("primary", 1, Some(1)) && !r.resign("primary", 2, Some(1)));
    let proclaim = Proclaim { name: "primary".into(), lease: 1, fence: led.fence, value: b("one") };
    let told = r.apply(&Command::Proclaim(proclaim)).events;
    assert!(election::is_news(&told[0]), "a proclamation is told, also of the same value");
    r.machine = Machine::from_image(&r.machine.image()).unwrap();
    assert!(!r.resign("primary", 1, Some(1)));
    let view = r.machine.election("primary").unwrap();
    assert_eq!(view.leader.unwrap(), (led, b("one")));
    assert_eq!(view.candidates.len(), 1);
    let moved = r.events.len();
    assert!(r.resign("primary", 1, Some(2)));
    assert!(r.events[moved..].iter().all(election::is_news));
    assert!(!r.resign("primary", 2, Some(1)));
    assert!(r.resign("primary", 2, None));
    assert_eq!(r.machine.election("primary"), None);
}

/// L02, L03, L04
#[test]
fn dead_sessions_neither_get_nor_block_a_grant() {
    let mut r = Replica::new();
    for lease in 1..=5 {
        r.lease(lease);
        r.acquire(acquire("jobs", lease)).unwrap();
    }
    r.revoke(3);
    assert_eq!(r.lineup("jobs"), (vec![1], vec![2, 4, 5]), "a waiter leaves the queue");
    let seen = r.events.len();
    assert_eq!(r.expire(&[1, 2]), 2);
    assert_eq!(r.lineup("jobs"), (vec![4], vec![5]), "holder and head die together: the next one holds");
    let puts = r.events[seen..].iter().filter(|event| short(event).starts_with("put")).count();
    assert_eq!(puts, 1, "nothing was granted to the dead head in between");
}

/// L05, L07
#[test]
fn head_of_the_queue_blocks_those_who_ask_for_less() {
    let mut r = Replica::new();
    for lease in 1..=4 {
        r.lease(lease);
    }
    let ask = |lease, permits| Acquire { permits, limit: 3, ..acquire("db", lease) };
    r.acquire(ask(1, 2)).unwrap();
    r.acquire(ask(2, 2)).unwrap();
    r.acquire(ask(3, 1)).unwrap();
    assert_eq!(r.lineup("db"), (vec![1], vec![2, 3]), "one permit is free, but it is not 3's turn");
    let hasty = Acquire { try_only: true, ..ask(4, 1) };
    assert_eq!(r.acquire(hasty).unwrap(), Acquired::Refused);
    r.release("db", 1);
    assert_eq!(r.lineup("db"), (vec![2, 3], vec![]));
    assert!(r.release("db", 2));
    let last = r.acquire(ask(4, 3)).unwrap();
    assert!(matches!(last, Acquired::Queued { .. }));
    assert!(r.release("db", 4), "a waiter leaves the queue");
    assert_eq!(r.lineup("db"), (vec![3], vec![]));
}

/// L09
#[test]
fn limit_changes_at_run_time_move_the_queue() {
    let mut r = Replica::new();
    for lease in 1..=6 {
        r.lease(lease);
    }
    let ask = |lease, permits, limit| Acquire { permits, limit, ..acquire("db", lease) };
    r.acquire(ask(1, 1, 0)).unwrap();
    r.acquire(ask(2, 1, 0)).unwrap();
    r.acquire(ask(3, 1, 0)).unwrap();
    assert_eq!(r.lineup("db"), (vec![1], vec![2, 3]));
    r.acquire(ask(4, 2, 3)).unwrap();
    assert_eq!(r.lineup("db"), (vec![1, 2, 3], vec![4]), "raised to 3");
    assert_eq!(r.value("weft/semaphore/db/limit").as_deref(), Some(r#"{"limit":3}"#));
    r.acquire(ask(5, 1, 1)).unwrap();
    assert_eq!(
        r.lineup("db"),
        (vec![1, 2, 3], vec![5]),
        "lowered: holders stay, who can never be served goes"
    );
    r.release("db", 1);
    r.release("db", 2);
    assert_eq!(r.lineup("db"), (vec![3], vec![5]), "still at the limit");
    r.release("db", 3);
    assert_eq!(r.lineup("db"), (vec![5], vec![]));
    assert_eq!(r.value("weft/semaphore/db/limit"), None);
    let hasty = Acquire { try_only: true, ..ask(6, 4, 9) };
    assert!(matches!(r.acquire(hasty).unwrap(), Acquired::Granted(_)));
    r.release("db", 5);
    r.release("db", 6);
    assert_eq!(r.machine.semaphore("db").unwrap().limit, 9, "a limit that was set is kept");
}

#[test]
fn acquires_that_make_no_sense_change_nothing() {
    let mut r = Replica::new();
    r.lease(1);
    r.acquire(Acquire { limit: 2, ..acquire("db", 1) }).unwrap();
    let before = r.machine.hash();
    let over = |seen, limit| StoreError::PermitsOverLimit { name: "db".into(), seen, limit };
    let other = Acquire { request_id: 1, ..acquire("db", 1) };
    assert_eq!(r.acquire(Acquire { permits: 3, ..other.clone() }), Err(over(3, 2)));
    assert_eq!(r.acquire(Acquire { permits: 2, limit: 1, ..other.clone() }), Err(over(2, 1)));
    assert_eq!(r.acquire(Acquire { permits: 0, ..other.clone() }), Err(over(0, 2)));
    assert_eq!(r.acquire(Acquire { lease: 9, ..other.clone() }), Err(StoreError::LeaseNotFound { id: 9 }));
    let nameless = Acquire { name: String::new(), ..other };
    assert_eq!(r.acquire(nameless), Err(StoreError::NameOutOfRange { seen: 0, limit: 256 }));
    assert_eq!(r.machine.hash(), before);
}

#[test]
fn queue_is_bounded() {
    let mut r = Replica::new();
    r.lease(1);
    r.lock("jobs", 1);
    let ask = |request_id| Acquire { request_id, ..acquire("jobs", 1) };
    for request_id in 1..=65_536 {
        r.machine.apply(r.index + request_id, 1, &Command::Acquire(ask(request_id)));
    }
    r.index += 65_536;
    let full = StoreError::Full { what: "queue of semaphore jobs".into(), limit: 65_536 };
    assert_eq!(r.acquire(ask(65_537)), Err(full));
    let hasty = Acquire { try_only: true, ..ask(65_537) };
    assert_eq!(r.acquire(hasty), Ok(Acquired::Refused));
    r.release("jobs", 1);
    assert!(matches!(r.acquire(ask(65_537)), Ok(Acquired::Queued { position: 65_535, .. })));
    r.revoke(1);
    assert_eq!(r.range("weft/", "weft0").count, 0);
}

/// L01, L10
#[test]
fn former_holder_cannot_proclaim_with_its_old_fencing_token() {
    let mut r = Replica::new();
    r.lease(1);
    r.lease(2);
    let Acquired::Granted(old) = r.campaign("primary", 1, "one") else { panic!() };
    let Acquired::Queued { key, .. } = r.campaign("primary", 2, "two") else { panic!() };
    assert_eq!(key, election::leader_key("primary"));
    let mut proclaim = |lease, fence, value: &str| {
        r.run(Command::Proclaim(Proclaim { name: "primary".into(), lease, fence, value: b(value) }))
    };
    assert_eq!(proclaim(1, old.fence, "one, busy"), Ok(Response::Proclaim));
    r.revoke(1);
    let view = r.machine.election("primary").unwrap();
    let (new, value) = view.leader.unwrap();
    assert_eq!((new.lease, &value[..]), (2, &b"two"[..]));
    assert!(new.fence > old.fence);
    let mut proclaim = |lease, fence, value: &str| {
        r.run(Command::Proclaim(Proclaim { name: "primary".into(), lease, fence, value: b(value) }))
    };
    let stale = StoreError::StaleToken { seen: old.fence, current: new.fence };
    assert_eq!(proclaim(1, old.fence, "late"), Err(stale.clone()));
    assert_eq!(proclaim(2, old.fence, "late"), Err(stale));
    assert_eq!(proclaim(2, new.fence, "two, busy"), Ok(Response::Proclaim));
    let kv = r.kv("weft/election/primary/leader").unwrap();
    assert_eq!(kv.create_revision, new.fence, "a proclamation keeps the token");
    assert_eq!(election::decode_leader(&kv.value).unwrap().value, "two, busy");
}

#[test]
fn leader_that_resigns_is_followed_by_the_first_candidate() {
    let mut r = Replica::new();
    for lease in 1..=4 {
        r.lease(lease);
        r.campaign("job/a", lease, &lease.to_string());
    }
    let again = r.campaign("job/a", 3, "other");
    assert!(matches!(again, Acquired::Queued { position: 1, .. }), "idempotent");
    let resign = |r: &mut Replica, lease| r.resign("job/a", lease, None);
    assert!(resign(&mut r, 3), "a candidate steps back");
    assert!(!resign(&mut r, 3));
    assert!(resign(&mut r, 1));
    let view = r.machine.election("job/a").unwrap();
    assert_eq!(view.leader.unwrap().0.lease, 2);
    assert_eq!(view.candidates.iter().map(|candidate| candidate.lease).collect::<Vec<_>>(), [4]);
    assert_eq!(r.range("weft/election/job%2Fa/", "weft/election/job%2Fa0").count, 2);
    assert_eq!(r.expire(&[2, 4]), 2);
    assert_eq!(r.machine.election("job/a"), None);
    assert_eq!(r.machine.elections(), [""; 0]);
}

fn instance(id: &str, port: u16) -> RegisteredInstance {
    RegisteredInstance {
        service: "orders".into(),
        instance_id: id.into(),
        host: "10.0.0.1".into(),
        port,
        metadata: BTreeMap::from([("version".into(), "2".into())]),
        health_path: Some("/health".into()),
        ttl_secs: 15,
    }
}

#[test]
fn registered_instance_lives_as_long_as_its_lease() {
    let mut r = Replica::new();
    let register = |r: &mut Replica, id: &str, port, lease, ttl_secs| {
        r.run(Command::Register(Register { instance: instance(id, port), lease, ttl_secs }))
    };
    assert_eq!(register(&mut r, "a", 1, 11, 15), Ok(Response::Register { lease: 11 }));
    assert_eq!(register(&mut r, "b", 2, 12, 15), Ok(Response::Register { lease: 12 }));
    assert_eq!(register(&mut r, "a", 3, 13, 30), Ok(Response::Register { lease: 11 }), "keeps its lease");
    assert_eq!(r.machine.lease_ttl_secs(11), Some(30));
    assert_eq!(r.machine.lease_ttl_secs(13), None);
    assert_eq!(register(&mut r, "c", 3, 12, 15), Err(StoreError::LeaseExists { id: 12 }));
    assert!(register(&mut r, "c", 3, 14, 0).is_err());
    let ports = |r: &Replica, service| -> Vec<_> {
        r.machine.registered(service).iter().map(|found| found.instance.port).collect()
    };
    assert_eq!(ports(&r, Some("orders")), [3, 2]);
    assert_eq!(ports(&r, Some("other")), [0; 0]);
    let stored: RegisteredInstance =
        serde_json::from_str(&r.value("weft/registry/orders/a").unwrap()).unwrap();
    assert_eq!(stored, instance("a", 3));
    r.expire(&[11]);
    assert_eq!(ports(&r, None), [2]);
    let gone =
        |r: &mut Replica| r.run(Command::Deregister { service: "orders".into(), instance_id: "b".into() });
    assert_eq!(gone(&mut r), Ok(Response::Deregister { lease: Some(12) }));
    assert_eq!(gone(&mut r), Ok(Response::Deregister { lease: None }));
    assert_eq!((r.machine.leases().len(), r.machine.key_count()), (0, 0));
}

#[test]
fn load_balancing_is_set_per_service() {
    let mut r = Replica::new();
    assert_eq!(r.machine.load_balancing("orders"), None);
    for policy in ["random", "least-connections"] {
        r.run(Command::SetLoadBalancing { service: "orders".into(), policy: policy.into() }).unwrap();
        assert_eq!(r.machine.load_balancing("orders").as_deref(), Some(policy));
    }
    assert_eq!(
        r.value("weft/mesh/load-balancing/orders").as_deref(),
        Some(r#"{"policy":"least-connections"}"#)
    );
}

fn mesh_document(kind: &str, name: &str, text: Option<&str>) -> MeshConfigChange {
    let document = text.map(|t| Bytes::copy_from_slice(t.as_bytes()));
    MeshConfigChange { kind: kind.into(), name: name.into(), document }
}

fn set_mesh_config(base: i64, changes: Vec<MeshConfigChange>) -> Command {
    Command::SetMeshConfig(SetMeshConfig { base, changes })
}

#[test]
fn mesh_documents_change_together_in_one_revision() {
    let mut r = Replica::new();
    assert_eq!(r.machine.mesh_config(), (0, vec![]));
    let two = vec![mesh_document("Route", "a/b", Some("1")), mesh_document("Route", "c", Some("2"))];
    r.run(set_mesh_config(0, two)).unwrap();
    let (generation, documents) = r.machine.mesh_config();
    assert_eq!(generation, r.machine.revision());
    let seen: Vec<_> = documents.iter().map(|d| (d.name.as_str(), &d.document[..], d.version)).collect();
    assert_eq!(seen, [("a/b", &b"1"[..], 1), ("c", b"2", 1)]);
    assert!(documents.iter().all(|d| d.mod_revision == generation));

    let change = vec![mesh_document("Route", "a/b", None), mesh_document("Route", "c", Some("3"))];
    r.run(set_mesh_config(generation, change)).unwrap();
    let (later, documents) = r.machine.mesh_config();
    assert!(later > generation);
    assert_eq!((documents.len(), documents[0].version, documents[0].create_revision), (1, 2, generation));
    assert_eq!(r.value("weft/mesh/config-generation/all").as_deref(), Some(r#"{"documents":1}"#));
    let restored = Machine::from_image(&r.machine.image()).unwrap();
    assert_eq!(restored.mesh_config(), r.machine.mesh_config());
}

/// D10: a change that was checked against another state than the present one changes nothing.
#[test]
fn a_mesh_change_checked_against_an_older_state_is_refused() {
    let mut r = Replica::new();
    r.run(set_mesh_config(0, vec![mesh_document("Route", "a", Some("1"))])).unwrap();
    let (generation, before) = r.machine.mesh_config();
    // A deletion counts as a change too.
    r.run(set_mesh_config(generation, vec![mesh_document("Route", "a", None)])).unwrap();
    let (current, _) = r.machine.mesh_config();
    let late = set_mesh_config(generation, vec![mesh_document("Route", "b", Some("1"))]);
    assert_eq!(r.run(late), Err(StoreError::MeshConfigChanged { base: generation, current }));
    assert_eq!(r.machine.mesh_config(), (current, vec![]));
    assert_eq!(before.len(), 1);
}
