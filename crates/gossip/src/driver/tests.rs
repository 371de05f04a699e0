//! Real sockets on loopback. What can be shown without them is in `pool/tests.rs`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::*;
use crate::instance::InstanceHealth;
use crate::member::MemberState;

const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn config(n: u64, seeds: Vec<String>) -> GossipConfig {
    GossipConfig {
        id: NodeId(n),
        name: format!("n{n}"),
        incarnation: 1,
        role: Role::Proxy,
        bind: LOOPBACK,
        advertise: None,
        seeds,
        peers_file: None,
        timing: GossipTiming::default(),
    }
}

async fn start(n: u64, seeds: Vec<String>) -> GossipHandle {
    start_with(config(n, seeds)).await
}

async fn start_with(config: GossipConfig) -> GossipHandle {
    BoundGossip::bind(config.bind).await.unwrap().start(config).unwrap()
}

fn instance(service: &str, id: &str, payload: usize) -> InstanceRecord {
    InstanceRecord {
        service: service.into(),
        instance_id: id.into(),
        address: "127.0.0.1:80".parse().unwrap(),
        health: InstanceHealth::Passing,
        metadata: BTreeMap::from([("pad".into(), "x".repeat(payload))]),
    }
}

fn up(handle: &GossipHandle) -> usize {
    handle.members().iter().filter(|m| m.state != MemberState::Down).count()
}

/// Waits for a state, woken by changes; the time is only a guard against waiting for ever.
async fn until(what: &str, handles: &[GossipHandle], reached: impl Fn(&GossipHandle) -> bool) {
    let all = async {
        for handle in handles {
            let mut changes = handle.changes();
            while !reached(handle) {
                changes.changed().await.unwrap();
            }
        }
    };
    if tokio::time::timeout(Duration::from_secs(30), all).await.is_err() {
        for handle in handles {
            eprintln!("{}: {:?} {:?}", handle.local().name, handle.members(), handle.stats());
        }
        panic!("not reached: {what}");
    }
}

fn names(handle: &GossipHandle) -> Vec<String> {
    handle.catalog().all().map(|i| format!("{}/{}", i.record.service, i.record.instance_id)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_processes_find_each_other_and_follow_what_each_advertises() {
    let first = start(1, vec![]).await;
    let seed = vec![first.local().gossip_addr.to_string()];
    let mut all = vec![first];
    for n in 2..=5 {
        all.push(start(n, seed.clone()).await);
    }
    until("all see all", &all, |h| up(h) == 5).await;

    all[1].advertise(vec![instance("web", "small", 0)]);
    // Far larger than a datagram: it travels by notice and stream.
    all[2].advertise((0..20).map(|i| instance("big", &format!("{i:02}"), 5_000)).collect());
    until("all instances everywhere", &all, |h| names(h).len() == 21).await;

    all[2].advertise(vec![]);
    until("withdrawn everywhere", &all, |h| names(h) == ["web/small"]).await;

    let gone = all.remove(1);
    gone.leave().await;
    until("left everywhere", &all, |h| up(h) == 4 && names(h).is_empty()).await;

    // Dropped without a word, as a killed process.
    let killed = all.pop().unwrap();
    killed.advertise(vec![instance("web", "doomed", 0)]);
    until("last instance", &all, |h| names(h) == ["web/doomed"]).await;
    killed.owner.task.abort();
    until("down everywhere", &all, |h| up(h) == 3 && names(h).is_empty()).await;
}

/// G05: a restarted process finds the pool by the peers it has kept, without its seed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_process_finds_the_pool_by_the_peers_it_kept() {
    let dir = tempfile::tempdir().unwrap();
    let peers_file = Some(dir.path().join("peers"));
    let one = start(1, vec![]).await;
    let seed = vec![one.local().gossip_addr.to_string()];
    let two = start_with(GossipConfig { peers_file: peers_file.clone(), ..config(2, seed) }).await;
    until("pair", &[one.clone(), two.clone()], |h| up(h) == 2).await;
    two.leave().await;
    until("left", std::slice::from_ref(&one), |h| up(h) == 1).await;
    assert!(std::fs::read_to_string(dir.path().join("peers")).unwrap().contains("n1"));
    let again = GossipConfig { peers_file, incarnation: 2, ..config(2, vec![]) };
    let two = start_with(again).await;
    until("pair again", &[one, two], |h| up(h) == 2).await;
}

#[tokio::test]
async fn a_seed_by_name_is_resolved() {
    let one = start(1, vec![]).await;
    let seed = format!("localhost:{}", one.local().gossip_addr.port());
    let two = start(2, vec![seed]).await;
    until("pair", &[one, two], |h| up(h) == 2).await;
}

#[tokio::test]
async fn a_seed_added_later_is_used() {
    let one = start(1, vec![]).await;
    let two = start(2, vec![]).await;
    two.add_seed(one.local().gossip_addr);
    until("pair", &[one, two], |h| up(h) == 2).await;
}

/// G10: what is not of this pool changes nothing, and is counted.
#[tokio::test]
async fn foreign_datagrams_and_streams_are_dropped() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let one = start(1, vec![]).await;
    let addr = one.local().gossip_addr;
    let socket = tokio::net::UdpSocket::bind(LOOPBACK).await.unwrap();
    for bytes in [&b""[..], b"GET / HTTP/1.1\r\n", b"wg\x01\x00\x00rubbish", b"wg\x01\x07\x00", &[0; 4_000]] {
        socket.send_to(bytes, addr).await.unwrap();
    }
    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    // It is closed by them: the first four bytes are no length within the limit.
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    let two = start(2, vec![addr.to_string()]).await;
    until("pair", &[one.clone(), two], |h| up(h) == 2).await;
    let stats = one.stats();
    assert_eq!(stats.datagrams_foreign.get(), 3);
    assert_eq!(stats.datagrams_malformed.get(), 2);
    assert!(stats.syncs_failed.get() >= 1);
}

#[tokio::test]
async fn dropping_the_last_handle_ends_the_task_and_tells_the_pool() {
    let one = start(1, vec![]).await;
    let two = start(2, vec![one.local().gossip_addr.to_string()]).await;
    until("pair", &[one.clone(), two.clone()], |h| up(h) == 2).await;
    drop(two);
    until("alone", &[one], |h| up(h) == 1).await;
}

#[tokio::test]
async fn a_port_in_use_is_refused_with_the_address() {
    let one = BoundGossip::bind(LOOPBACK).await.unwrap();
    let error = BoundGossip::bind(one.local_addr()).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot bind gossip to {}", one.local_addr())), "{error}");
}

#[tokio::test]
async fn configuration_out_of_range_is_refused() {
    async fn error(config: GossipConfig) -> String {
        BoundGossip::bind(LOOPBACK).await.unwrap().start(config).unwrap_err().to_string()
    }
    assert!(error(GossipConfig { id: NodeId(0), ..config(1, vec![]) }).await.contains("node id is 0"));
    let name = "n".repeat(MEMBER_NAME_BYTES_MAX + 1);
    assert!(error(GossipConfig { name, ..config(1, vec![]) }).await.contains("allowed are 1 to 63"));
    for seed in ["host", "host:", ":1", "host:0", "host:70000"] {
        assert!(error(config(1, vec![seed.to_owned()])).await.contains("HOST:PORT"), "{seed}");
    }
    let many = (0..=SEEDS_MAX).map(|i| format!("h{i}:1")).collect();
    assert!(error(config(1, many)).await.contains("the limit is 64"));
    let timing = GossipTiming { probe_rtt: Duration::from_secs(9), ..GossipTiming::default() };
    assert!(
        error(GossipConfig { timing, ..config(1, vec![]) }).await.starts_with("gossip timing: probe_rtt")
    );
}

#[tokio::test]
async fn the_advertised_address_replaces_the_bound_one() {
    let advertise: IpAddr = "10.1.2.3".parse().unwrap();
    let one = start_with(GossipConfig { advertise: Some(advertise), ..config(1, vec![]) }).await;
    assert_eq!(one.local().gossip_addr.ip(), advertise);
    let any = start_with(GossipConfig { bind: "0.0.0.0:0".parse().unwrap(), ..config(2, vec![]) }).await;
    assert!(!any.local().gossip_addr.ip().is_unspecified());
}

#[tokio::test]
async fn instances_out_of_range_are_refused_and_change_nothing() {
    let one = start(1, vec![]).await;
    one.advertise(vec![instance("web", "1", 0)]);
    until("advertised", std::slice::from_ref(&one), |h| names(h) == ["web/1"]).await;
    let twice = vec![instance("web", "2", 0), instance("web", "2", 0)];
    assert!(matches!(one.try_advertise(twice), Err(AdvertiseError::Duplicate { .. })));
    one.advertise(vec![instance("web", "1", 0), instance("", "2", 0)]);
    one.advertise(vec![instance("web", "3", 0)]);
    until("advertised again", &[one], |h| names(h) == ["web/3"]).await;
}

/// Another process goes on in the place of `one`, on its sockets.
async fn goes_on(handles: (std::os::fd::OwnedFd, std::os::fd::OwnedFd), from: Continuation) -> GossipHandle {
    let bound = BoundGossip::inherit(handles.0.into(), handles.1.into()).unwrap();
    bound.go_on(config(1, vec![]), from).unwrap()
}

async fn pair_with_web() -> (GossipHandle, (std::os::fd::OwnedFd, std::os::fd::OwnedFd), GossipHandle) {
    let bound = BoundGossip::bind(LOOPBACK).await.unwrap();
    let handles = bound.handles().unwrap();
    let one = bound.start(config(1, vec![])).unwrap();
    one.advertise(vec![instance("web", "1", 0)]);
    let two = start(2, vec![one.local().gossip_addr.to_string()]).await;
    two.advertise(vec![instance("db", "1", 0)]);
    until("pair", &[one.clone(), two.clone()], |h| names(h) == ["db/1", "web/1"]).await;
    (one, handles, two)
}

/// P47: the pool sees one life, although it goes on in another process.
#[tokio::test]
async fn a_member_that_goes_on_in_another_process_is_never_missed() {
    let (one, handles, two) = pair_with_web().await;
    let before = two.members();
    let held = one.hold().await.unwrap();
    let held = Continuation::decode(&held.encode()).unwrap();
    let next = goes_on(handles, held).await;
    assert_eq!((up(&next), names(&next)), (2, vec!["db/1".to_owned(), "web/1".to_owned()]), "known at once");
    one.let_go().await;
    next.resume();
    next.advertise(vec![instance("web", "1", 0), instance("web", "2", 0)]);
    until("what it says is heard", std::slice::from_ref(&two), |h| names(h) == ["db/1", "web/1", "web/2"])
        .await;
    two.advertise(vec![]);
    until("what others say is heard", &[next], |h| names(h) == ["web/1", "web/2"]).await;
    assert_eq!(two.members(), before, "the same member, up since the same moment");
}

#[tokio::test]
async fn a_member_whose_successor_never_began_goes_on_itself() {
    let (one, handles, two) = pair_with_web().await;
    let held = one.hold().await.unwrap();
    drop(goes_on(handles, held).await);
    one.advertise(vec![instance("web", "9", 0)]);
    one.resume();
    until("it is heard again", &[two], |h| names(h) == ["db/1", "web/9"]).await;
}

#[tokio::test]
async fn a_member_that_goes_on_under_another_name_is_taken_over_with_what_it_advertises() {
    let (one, handles, two) = pair_with_web().await;
    let held = one.hold().await.unwrap();
    let bound = BoundGossip::inherit(handles.0.into(), handles.1.into()).unwrap();
    let next = bound.go_on(GossipConfig { name: "other".into(), ..config(1, vec![]) }, held).unwrap();
    one.let_go().await;
    next.resume();
    until("its new name is known", std::slice::from_ref(&two), |h| {
        h.members().iter().any(|m| m.member.name == "other")
    })
    .await;
    assert_eq!(names(&two), ["db/1", "web/1"]);
    assert_eq!(up(&two), 2);
}

#[tokio::test]
async fn what_is_no_continuation_is_refused() {
    let one = start(1, vec![]).await;
    let bytes = one.hold().await.unwrap().encode();
    for bad in [&bytes[..bytes.len() - 1], &[bytes.clone(), vec![0]].concat(), &[]] {
        assert!(Continuation::decode(bad).is_err());
    }
}
