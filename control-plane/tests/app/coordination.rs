//! Semaphores and elections over real gRPC.

use std::time::Duration;

use tokio::time::timeout;
use tonic::Code;
use weft_state::command::Range;
use weft_state::machine::Machine;
use weft_xds_proto::weft as pb;

use crate::harness::{PATIENCE, TestServer, until};

fn acquire(name: &str, lease: i64, request_id: u64) -> pb::AcquireRequest {
    pb::AcquireRequest { name: name.into(), lease, request_id, permits: 1, ..Default::default() }
}

async fn describe(server: &TestServer, name: &str) -> (Vec<i64>, Vec<i64>) {
    let request = pb::DescribeSemaphoreRequest { name: name.into() };
    match server.semaphores().await.describe(request).await {
        Ok(d) => {
            let d = d.into_inner();
            let holder = |h: &pb::SemaphoreHolder| h.grant.as_ref().expect("a grant").lease;
            (d.holders.iter().map(holder).collect(), d.waiters)
        }
        Err(status) => {
            assert_eq!(status.code(), Code::NotFound, "{status}");
            (Vec::new(), Vec::new())
        }
    }
}

/// Starts an acquire on a connection of its own and waits until it is in the queue.
async fn waiting(
    server: &TestServer,
    request: pb::AcquireRequest,
) -> tokio::task::JoinHandle<Result<pb::AcquireResponse, tonic::Status>> {
    let mut client = server.semaphores().await;
    let (name, lease) = (request.name.clone(), request.lease);
    let call = tokio::spawn(async move { client.acquire(request).await.map(tonic::Response::into_inner) });
    until("it waits", async || {
        let queue = describe(server, &name).await;
        if queue.1.contains(&lease) { Ok(()) } else { Err(format!("{queue:?}")) }
    })
    .await;
    call
}

/// L07, L11: first come, first served, with growing tokens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_are_served_in_order_with_growing_tokens() {
    let server = TestServer::start().await;
    let (a, b, c) = (server.session().await, server.session().await, server.session().await);
    let mut client = server.semaphores().await;
    let first = client.acquire(acquire("db", a, 1)).await.unwrap().into_inner();
    assert!(first.acquired);
    let second = waiting(&server, acquire("db", b, 1)).await;
    let third = waiting(&server, acquire("db", c, 1)).await;
    assert_eq!(describe(&server, "db").await, (vec![a], vec![b, c]));

    let release = |lease| pb::ReleaseRequest { name: "db".into(), lease, request_id: 1 };
    assert!(client.release(release(a)).await.unwrap().into_inner().released);
    let second = timeout(PATIENCE, second).await.unwrap().unwrap().unwrap();
    assert_eq!(describe(&server, "db").await, (vec![b], vec![c]));
    client.release(release(b)).await.unwrap();
    let third = timeout(PATIENCE, third).await.unwrap().unwrap().unwrap();

    let tokens: Vec<i64> = [first, second, third].into_iter().map(|r| r.grant.unwrap().fence).collect();
    assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
    assert!(!client.release(release(a)).await.unwrap().into_inner().released, "given back already");
}

/// L06: a timeout leaves nothing behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timed_out_waiter_leaves_the_queue() {
    let server = TestServer::start().await;
    let (a, b) = (server.session().await, server.session().await);
    let mut client = server.semaphores().await;
    client.acquire(acquire("db", a, 1)).await.unwrap();
    let late = pb::AcquireRequest { timeout_ms: 100, ..acquire("db", b, 1) };
    assert!(!client.acquire(late).await.unwrap().into_inner().acquired);
    assert_eq!(describe(&server, "db").await, (vec![a], vec![]));
    let at_once = pb::AcquireRequest { r#try: true, ..acquire("db", b, 2) };
    assert!(!client.acquire(at_once).await.unwrap().into_inner().acquired);
    assert_eq!(describe(&server, "db").await, (vec![a], vec![]));
}

/// L06: a client that goes away leaves nothing behind, and the next one gets its turn (L03).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_waiter_leaves_the_queue_and_blocks_nobody() {
    let server = TestServer::start().await;
    let (a, b, c) = (server.session().await, server.session().await, server.session().await);
    let mut client = server.semaphores().await;
    client.acquire(acquire("db", a, 1)).await.unwrap();
    let cancelled = waiting(&server, acquire("db", b, 1)).await;
    let next = waiting(&server, acquire("db", c, 1)).await;
    cancelled.abort();
    until("the cancelled one is gone", async || {
        let queue = describe(&server, "db").await;
        if queue == (vec![a], vec![c]) { Ok(()) } else { Err(format!("{queue:?}")) }
    })
    .await;
    client.release(pb::ReleaseRequest { name: "db".into(), lease: a, request_id: 1 }).await.unwrap();
    assert!(timeout(PATIENCE, next).await.unwrap().unwrap().unwrap().acquired);
}

/// L06: clients that give up at any moment of their wait leave no place behind, without a word of their own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_place_leaks_at_whatever_moment_a_waiter_goes_away() {
    let server = TestServer::start().await;
    let (holder, session) = (server.session().await, server.session().await);
    server.semaphores().await.acquire(acquire("db", holder, 0)).await.unwrap();
    for round in 0..40u64 {
        let mut client = server.semaphores().await;
        // From before the request is written to long after it waits; half of them break the connection.
        let call = client.acquire(acquire("db", session, round));
        assert!(timeout(Duration::from_micros(round * 150), call).await.is_err());
        if round % 2 == 0 {
            drop(client);
        }
    }
    until("nobody waits", async || {
        let queue = describe(&server, "db").await;
        if queue == (vec![holder], vec![]) { Ok(()) } else { Err(format!("{queue:?}")) }
    })
    .await;
}

/// L06: a client that gives up when its answer may be on its way releases, and the release wins also when it
/// overtakes the acquire.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_after_giving_up_leaves_nothing_held() {
    let server = TestServer::start().await;
    let session = server.session().await;
    let mut other = server.semaphores().await;
    for round in 0..40u64 {
        let mut client = server.semaphores().await;
        let call = client.acquire(pb::AcquireRequest { limit: 2, ..acquire("db", session, round) });
        let _ = timeout(Duration::from_micros(round * 100), call).await;
        let release = pb::ReleaseRequest { name: "db".into(), lease: session, request_id: round };
        other.release(release).await.unwrap();
    }
    until("nobody holds or waits", async || {
        let queue = describe(&server, "db").await;
        if queue == (vec![], vec![]) { Ok(()) } else { Err(format!("{queue:?}")) }
    })
    .await;
}

/// L01, L06: a server that learns late that its client went away takes nothing from the same request at
/// another server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_undo_leaves_the_place_of_the_call_at_another_server() {
    let first = TestServer::start().await;
    let second = TestServer::named("s2", &[&first]).await;
    let (a, b, c) = (first.session().await, first.session().await, first.session().await);
    let mut client = first.semaphores().await;
    client.acquire(acquire("db", a, 1)).await.unwrap();
    let early = waiting(&first, acquire("db", b, 1)).await;
    let next = waiting(&first, acquire("db", c, 1)).await;
    let later = waiting(&second, acquire("db", b, 1)).await;
    until("the later call took over", async || {
        let place = |m: &Machine| {
            let key = m.semaphore("db")?.waiters.first()?.waiter_key.clone();
            m.range(&Range { key, ..Range::default() }).ok()?.kvs.pop()
        };
        let place = first.server().coordinator().read(place).ok_or("no place")?;
        if place.version == 2 { Ok(()) } else { Err(format!("{place:?}")) }
    })
    .await;

    let applied = || first.server().coordinator().status().applied;
    let before = applied();
    early.abort();
    until("the undo of the early call is applied", async || {
        if applied() > before { Ok(()) } else { Err(format!("{before:?}")) }
    })
    .await;
    assert_eq!(describe(&first, "db").await, (vec![a], vec![b, c]), "it keeps its place");

    let release = |lease| pb::ReleaseRequest { name: "db".into(), lease, request_id: 1 };
    client.release(release(a)).await.unwrap();
    assert!(timeout(PATIENCE, later).await.unwrap().unwrap().unwrap().acquired);
    assert_eq!(describe(&first, "db").await, (vec![b], vec![c]));
    // The client's own release needs no attempt, and may go to either server.
    assert!(client.release(release(b)).await.unwrap().into_inner().released);
    assert!(timeout(PATIENCE, next).await.unwrap().unwrap().unwrap().acquired);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_ends_the_wait_of_the_same_request() {
    let server = TestServer::start().await;
    let (a, b) = (server.session().await, server.session().await);
    let mut client = server.semaphores().await;
    client.acquire(acquire("db", a, 1)).await.unwrap();
    let waiter = waiting(&server, acquire("db", b, 1)).await;
    let release = pb::ReleaseRequest { name: "db".into(), lease: b, request_id: 1 };
    client.release(release).await.unwrap();
    let ended = timeout(PATIENCE, waiter).await.unwrap().unwrap().unwrap_err();
    assert_eq!(ended.code(), Code::Aborted, "{ended}");
    assert_eq!(describe(&server, "db").await, (vec![a], vec![]));
}

/// L02, L03, P07: the end of a session ends its wait, with a clear answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_whose_session_ends_is_told() {
    let server = TestServer::start().await;
    let (a, b) = (server.session().await, server.session().await);
    let mut client = server.semaphores().await;
    client.acquire(acquire("db", a, 1)).await.unwrap();
    let waiter = waiting(&server, acquire("db", b, 1)).await;
    server.end_session(b).await;
    let ended = timeout(PATIENCE, waiter).await.unwrap().unwrap().unwrap_err();
    assert_eq!(ended.code(), Code::FailedPrecondition);
    assert!(ended.message().contains("ended"), "{ended}");
    // A session that never was hears the same at once.
    let never = client.acquire(acquire("db", 12345, 1)).await.unwrap_err();
    assert_eq!(never.code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_the_holders_session_grants_to_the_next() {
    let server = TestServer::start().await;
    let (a, b) = (server.session().await, server.session().await);
    server.semaphores().await.acquire(acquire("db", a, 1)).await.unwrap();
    let waiter = waiting(&server, acquire("db", b, 1)).await;
    server.end_session(a).await;
    assert!(timeout(PATIENCE, waiter).await.unwrap().unwrap().unwrap().acquired);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_request_answers_the_same_grant() {
    let server = TestServer::start().await;
    let session = server.session().await;
    let mut client = server.semaphores().await;
    let first = client.acquire(acquire("db", session, 7)).await.unwrap().into_inner().grant.unwrap();
    let second = client.acquire(acquire("db", session, 7)).await.unwrap().into_inner().grant.unwrap();
    assert_eq!((first.fence, first.key), (second.fence, second.key));
    assert_eq!(describe(&server, "db").await.0.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_out_of_range_are_refused_by_field() {
    let server = TestServer::start().await;
    let session = server.session().await;
    let mut client = server.semaphores().await;
    let refused = [
        (acquire("", session, 1), "name"),
        (acquire(&"x".repeat(257), session, 1), "name"),
        (acquire("db", 0, 1), "lease"),
        (pb::AcquireRequest { permits: 3, limit: 2, ..acquire("db", session, 1) }, "permits"),
        (pb::AcquireRequest { permits: u32::MAX, ..acquire("db", session, 1) }, "permits"),
    ];
    for (request, names) in refused {
        let status = client.acquire(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(names), "{status}");
    }
}

fn campaign(lease: i64, value: &str) -> pb::CampaignRequest {
    pb::CampaignRequest { name: "job".into(), lease, value: value.to_owned().into(), timeout_ms: 0 }
}

async fn next(stream: &mut tonic::Streaming<pb::ObserveResponse>) -> Option<String> {
    let change = timeout(PATIENCE, stream.message()).await.unwrap().unwrap().unwrap();
    change.has_leader.then(|| String::from_utf8(change.value.to_vec()).unwrap())
}

/// L10: an observer sees every leader, in order, and none that never was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_on_and_observers_see_every_step() {
    let server = TestServer::start().await;
    let (a, b) = (server.session().await, server.session().await);
    let mut client = server.elections().await;
    let observe = pb::ObserveRequest { name: "job".into() };
    let mut seen = server.elections().await.observe(observe.clone()).await.unwrap().into_inner();
    assert_eq!(next(&mut seen).await, None);

    let won = client.campaign(campaign(a, "A")).await.unwrap().into_inner();
    let grant = won.grant.unwrap();
    assert!(won.elected);
    assert_eq!(next(&mut seen).await.as_deref(), Some("A"));

    let mut other = server.elections().await;
    let waiter = tokio::spawn(async move { other.campaign(campaign(b, "B")).await });
    let proclaim = pb::ProclaimRequest {
        name: "job".into(),
        lease: a,
        fence: grant.fence,
        value: "A2".to_owned().into(),
    };
    client.proclaim(proclaim.clone()).await.unwrap();
    assert_eq!(next(&mut seen).await.as_deref(), Some("A2"));
    until("B is a candidate", async || {
        let candidates = server
            .server()
            .coordinator()
            .read(|m| m.election("job").map(|e| e.candidates.len()))
            .unwrap_or_default();
        if candidates == 1 { Ok(()) } else { Err(candidates.to_string()) }
    })
    .await;

    client.resign(pb::ResignRequest { name: "job".into(), lease: a }).await.unwrap();
    let won = timeout(PATIENCE, waiter).await.unwrap().unwrap().unwrap().into_inner();
    assert!(won.elected && won.grant.unwrap().fence > grant.fence);
    let mut after = next(&mut seen).await;
    if after.is_none() {
        after = next(&mut seen).await;
    }
    assert_eq!(after.as_deref(), Some("B"));

    // L01: the former leader's word no longer counts.
    let stale = client.proclaim(proclaim).await.unwrap_err();
    assert_eq!(stale.code(), Code::FailedPrecondition, "{stale}");
    // One who comes late sees the present at once.
    let mut late = server.elections().await.observe(observe).await.unwrap().into_inner();
    assert_eq!(next(&mut late).await.as_deref(), Some("B"));
    server.end_session(b).await;
    assert_eq!(next(&mut late).await, None);
}

/// L10: a leader that asks again still leads, and observers hear of it once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_campaign_answers_the_same_grant_and_is_no_news() {
    let server = TestServer::start().await;
    let session = server.session().await;
    let mut client = server.elections().await;
    let observe = pb::ObserveRequest { name: "job".into() };
    let mut seen = server.elections().await.observe(observe).await.unwrap().into_inner();
    assert_eq!(next(&mut seen).await, None);
    let first = client.campaign(campaign(session, "A")).await.unwrap().into_inner().grant.unwrap();
    let again = client.campaign(campaign(session, "A")).await.unwrap().into_inner().grant.unwrap();
    assert_eq!((first.fence, first.key), (again.fence, again.key));
    let value = "A2".to_owned().into();
    let proclaim = pb::ProclaimRequest { name: "job".into(), lease: session, fence: again.fence, value };
    client.proclaim(proclaim).await.unwrap();
    assert_eq!(next(&mut seen).await.as_deref(), Some("A"));
    assert_eq!(next(&mut seen).await.as_deref(), Some("A2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_candidate_withdraws() {
    let server = TestServer::start().await;
    let (a, b) = (server.session().await, server.session().await);
    server.elections().await.campaign(campaign(a, "A")).await.unwrap();
    let mut client = server.elections().await;
    assert!(timeout(Duration::from_millis(200), client.campaign(campaign(b, "B"))).await.is_err());
    until("B has withdrawn", async || {
        let view = server.server().coordinator().read(|m| m.election("job")).unwrap();
        if view.candidates.is_empty() { Ok(()) } else { Err(format!("{view:?}")) }
    })
    .await;
    let late = pb::CampaignRequest { timeout_ms: 50, ..campaign(b, "B") };
    assert!(!client.campaign(late).await.unwrap().into_inner().elected);
}
