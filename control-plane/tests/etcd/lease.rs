use tokio_stream::StreamExt;
use tonic::Code;
use weft_xds_proto::etcdserverpb as pb;

use super::server::{DEADLINE, Server, one, put, refusal};

async fn grant(server: &Server, id: i64, ttl: i64) -> pb::LeaseGrantResponse {
    server.lease().lease_grant(pb::LeaseGrantRequest { ttl, id }).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_grant_chooses_an_id_and_raises_a_short_time_to_live() {
    let server = Server::start().await;
    let granted = grant(&server, 0, 1).await;
    assert!(granted.id > 0);
    assert_eq!(granted.ttl, 2, "1.5 election timeouts of 1 s, rounded up");
    assert_eq!(grant(&server, 7, 60).await.id, 7);
    let header = granted.header.unwrap();
    assert!(header.raft_term > 0 && header.revision == 1);
    let listed = server.lease().lease_leases(pb::LeaseLeasesRequest {}).await.unwrap().into_inner();
    let mut ids: Vec<_> = listed.leases.iter().map(|lease| lease.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, [7, granted.id]);
    server.stop().await;
}

#[tokio::test]
async fn refusals_have_etcds_codes_and_texts() {
    let server = Server::start().await;
    grant(&server, 7, 60).await;
    let mut lease = server.lease();
    assert_eq!(
        refusal(lease.lease_grant(pb::LeaseGrantRequest { ttl: 60, id: 7 }).await),
        (Code::FailedPrecondition, "etcdserver: lease already exists".into())
    );
    assert_eq!(
        refusal(lease.lease_grant(pb::LeaseGrantRequest { ttl: 9_000_000_001, id: 0 }).await),
        (Code::OutOfRange, "etcdserver: too large lease TTL".into())
    );
    assert_eq!(
        refusal(lease.lease_revoke(pb::LeaseRevokeRequest { id: 8 }).await),
        (Code::NotFound, "etcdserver: requested lease not found".into())
    );
    server.stop().await;
}

/// S04: a lease takes all its keys with it, in one revision.
#[tokio::test]
async fn revoking_deletes_the_keys_in_one_revision() {
    let server = Server::start().await;
    grant(&server, 7, 60).await;
    for key in ["a", "b"] {
        let attached = pb::PutRequest { lease: 7, ..put(key, "1") };
        server.kv().put(attached).await.unwrap();
    }
    server.put("c", "free").await;
    let revoked = server.lease().lease_revoke(pb::LeaseRevokeRequest { id: 7 }).await.unwrap().into_inner();
    assert_eq!(revoked.header.unwrap().revision, 5);
    let left = server.kv().range(super::server::range("\0", "\0")).await.unwrap().into_inner();
    assert_eq!(left.kvs.iter().map(|kv| kv.key.clone()).collect::<Vec<_>>(), ["c"]);
    server.stop().await;
}

#[tokio::test]
async fn time_to_live_tells_what_is_left_and_the_keys_when_asked() {
    let server = Server::start().await;
    grant(&server, 7, 60).await;
    server.kv().put(pb::PutRequest { lease: 7, ..put("b", "1") }).await.unwrap();
    server.kv().put(pb::PutRequest { lease: 7, ..put("a", "1") }).await.unwrap();
    let ask = |id, keys| {
        let mut lease = server.lease();
        async move {
            lease.lease_time_to_live(pb::LeaseTimeToLiveRequest { id, keys }).await.unwrap().into_inner()
        }
    };
    let told = ask(7, false).await;
    assert!((50..=60).contains(&told.ttl), "{}", told.ttl);
    assert_eq!((told.granted_ttl, told.keys.len()), (60, 0));
    assert_eq!(ask(7, true).await.keys, ["a", "b"]);
    let unknown = ask(8, true).await;
    assert_eq!((unknown.id, unknown.ttl, unknown.granted_ttl), (8, -1, 0));
    server.stop().await;
}

#[tokio::test]
async fn keep_alive_answers_each_request_and_0_for_an_unknown_lease() {
    let server = Server::start().await;
    grant(&server, 7, 60).await;
    let requests = [7, 8, 7].map(|id| pb::LeaseKeepAliveRequest { id });
    let answers = server.lease().lease_keep_alive(tokio_stream::iter(requests)).await.unwrap().into_inner();
    let answers: Vec<_> = tokio::time::timeout(DEADLINE, answers.collect::<Vec<_>>()).await.unwrap();
    let answers: Vec<_> = answers.into_iter().map(|answer| answer.unwrap()).collect();
    assert_eq!(answers.iter().map(|a| (a.id, a.ttl)).collect::<Vec<_>>(), [(7, 60), (8, 0), (7, 60)]);
    assert!(answers.iter().all(|a| a.header.unwrap().raft_term > 0));
    server.stop().await;
}

/// S01, S04: kept alive it lives; left alone it ends, and its keys with it.
#[tokio::test]
async fn a_lease_lives_while_it_is_kept_alive_and_ends_when_it_is_not() {
    let server = Server::start().await;
    grant(&server, 7, 2).await;
    server.kv().put(pb::PutRequest { lease: 7, ..put("a", "1") }).await.unwrap();
    let mut changes = server.coordinator.changes();
    let renewing = tokio::time::Instant::now();
    while renewing.elapsed() < std::time::Duration::from_secs(4) {
        let request = tokio_stream::iter([pb::LeaseKeepAliveRequest { id: 7 }]);
        let mut answers = server.lease().lease_keep_alive(request).await.unwrap().into_inner();
        assert_eq!(answers.message().await.unwrap().unwrap().ttl, 2, "renewed, so not ended");
        assert_eq!(server.kv().range(one("a")).await.unwrap().into_inner().count, 1);
        // Paces the loop; returns at once if anything is applied.
        let _ = tokio::time::timeout(std::time::Duration::from_millis(200), changes.changed()).await;
    }
    let ended = async {
        while server.kv().range(one("a")).await.unwrap().into_inner().count > 0 {
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(DEADLINE, ended).await.expect("it ends");
    let request = tokio_stream::iter([pb::LeaseKeepAliveRequest { id: 7 }]);
    let mut answers = server.lease().lease_keep_alive(request).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().ttl, 0);
    server.stop().await;
}
