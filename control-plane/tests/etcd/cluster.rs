//! `Cluster`, `Maintenance` and `Auth`.

use tonic::Code;
use weft_control_plane::api::etcd::API_VERSION;
use weft_xds_proto::etcdserverpb as pb;

use super::server::{ID, Launch, Server, refusal};

#[tokio::test]
async fn members_are_listed_with_the_urls_that_clients_use() {
    let server = Server::start().await;
    let request = pb::MemberListRequest { linearizable: true };
    let members = server.cluster().member_list(request).await.unwrap().into_inner().members;
    assert_eq!(members.len(), 1);
    assert_eq!((members[0].id, members[0].name.as_str(), members[0].is_learner), (ID.0, "one", false));
    assert_eq!(members[0].client_ur_ls, [format!("http://{}", server.addr)]);
    assert!(members[0].peer_ur_ls[0].starts_with("http://127.0.0.1:"));
    server.stop().await;
}

#[tokio::test]
async fn status_tells_who_leads_and_how_far_the_log_is() {
    let server = Server::start().await;
    server.put("a", "1").await;
    let status = server.maintenance().status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.leader, status.version.as_str(), status.is_learner), (ID.0, API_VERSION, false));
    assert!(status.raft_index >= status.raft_applied_index && status.raft_applied_index > 0);
    assert!(status.raft_term > 0 && status.db_size > 0);
    assert!(status.errors.is_empty());
    server.stop().await;
}

/// A09, as far as one server can show it: the hash is of the content, and follows it.
#[tokio::test]
async fn hashes_change_with_the_content_and_old_revisions_keep_theirs() {
    let server = Server::start().await;
    server.put("a", "1").await;
    let hash = |revision| {
        let mut maintenance = server.maintenance();
        async move { maintenance.hash_kv(pb::HashKvRequest { revision }).await }
    };
    let first = hash(0).await.unwrap().into_inner();
    assert_eq!((first.hash_revision, first.compact_revision), (2, 0));
    let whole = server.maintenance().hash(pb::HashRequest {}).await.unwrap().into_inner();
    server.put("a", "2").await;
    assert_ne!(hash(0).await.unwrap().into_inner().hash, first.hash);
    assert_ne!(server.maintenance().hash(pb::HashRequest {}).await.unwrap().into_inner().hash, whole.hash);
    assert_eq!(hash(2).await.unwrap().into_inner().hash, first.hash);
    server.compact(3).await;
    assert_eq!(hash(0).await.unwrap().into_inner().compact_revision, 3);
    assert_eq!(refusal(hash(2).await).0, Code::OutOfRange);
    assert_eq!(refusal(hash(99).await).0, Code::OutOfRange);
    server.stop().await;
}

#[tokio::test]
async fn what_is_not_offered_says_so_and_what_to_do_instead() {
    let server = Server::start().await;
    let refusals = [
        refusal(server.cluster().member_add(pb::MemberAddRequest::default()).await),
        refusal(server.cluster().member_update(pb::MemberUpdateRequest::default()).await),
    ];
    for (code, text) in refusals {
        assert_eq!(code, Code::Unimplemented);
        assert!(text.starts_with("etcdserver: ") && text.contains("is not offered by weft: "), "{text}");
    }
    server.stop().await;
}

#[tokio::test]
async fn changes_of_members_that_are_not_there_are_refused_as_etcd_refuses_them() {
    let server = Server::start().await;
    let refusals = [
        refusal(server.cluster().member_remove(pb::MemberRemoveRequest { id: 99 }).await),
        refusal(server.cluster().member_promote(pb::MemberPromoteRequest { id: 99 }).await),
        refusal(server.maintenance().move_leader(pb::MoveLeaderRequest { target_id: 99 }).await),
    ];
    for (code, text) in refusals {
        assert_eq!((code, text.as_str()), (Code::NotFound, "etcdserver: member not found"));
    }
    let mut forced = tonic::Request::new(pb::MemberRemoveRequest { id: 99 });
    forced.metadata_mut().insert("weft-force", "yes".parse().unwrap());
    let (code, text) = refusal(server.cluster().member_remove(forced).await);
    assert!(code == Code::InvalidArgument && text.contains("weft-force"), "{text}");
    server.stop().await;
}

/// P11: a piece at a time, with its SHA-256 behind it; of the moment at which it began.
#[tokio::test]
async fn a_snapshot_is_the_state_of_one_moment_and_ends_with_its_sha256() {
    let server = Server::start().await;
    for i in 0..200 {
        server.put(&format!("k{i:03}"), &"v".repeat(4000)).await;
    }
    let mut stream =
        server.maintenance().snapshot(pb::SnapshotRequest::default()).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().expect("a first piece");
    let revision = first.header.expect("has a header").revision;
    server.put("later", "x").await;
    let (mut pieces, mut bytes) = (1, first.blob.to_vec());
    while let Some(piece) = stream.message().await.unwrap() {
        pieces += 1;
        bytes.extend_from_slice(&piece.blob);
    }
    assert!(pieces > 3, "{pieces} pieces");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("snapshot");
    std::fs::write(&file, &bytes).unwrap();
    assert_eq!(bytes.len() % 512, 32, "by which etcd's clients know that there is a SHA-256");
    let backup = weft_control_plane::backup::Backup::read(&file).unwrap();
    assert!(backup.has_sha256);
    assert_eq!((backup.machine.revision(), backup.machine.key_count()), (revision, 200));
    server.stop().await;
}

#[tokio::test]
async fn what_needs_nothing_done_succeeds() {
    let server = Server::start().await;
    let alarms = server.maintenance().alarm(pb::AlarmRequest::default()).await.unwrap().into_inner();
    assert!(alarms.alarms.is_empty());
    server.maintenance().defragment(pb::DefragmentRequest {}).await.unwrap();
    let status = server.maintenance().status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert!(status.errors.is_empty() && !status.is_learner, "{status:?}");
    assert_eq!(
        (status.storage_version.as_str(), status.downgrade_info),
        (API_VERSION, Some(pb::DowngradeInfo::default()))
    );
    let auth = server.auth().auth_status(pb::AuthStatusRequest {}).await.unwrap().into_inner();
    assert!(!auth.enabled);
    assert_eq!(
        refusal(server.auth().authenticate(pb::AuthenticateRequest::default()).await),
        (Code::FailedPrecondition, "etcdserver: authentication is not enabled".into())
    );
    server.stop().await;
}

#[tokio::test]
async fn alarms_and_downgrades_that_are_not_are_refused_in_etcds_words() {
    use pb::{alarm_request::AlarmAction, downgrade_request::DowngradeAction};
    let server = Server::start().await;
    let alarm = async |action| {
        let request = pb::AlarmRequest { action, alarm: pb::AlarmType::Nospace.into(), member_id: 0 };
        server.maintenance().alarm(request).await
    };
    let disarmed = alarm(AlarmAction::Deactivate.into()).await.unwrap().into_inner();
    assert!(disarmed.alarms.is_empty());
    let (code, text) = refusal(alarm(AlarmAction::Activate.into()).await);
    assert!(code == Code::Unimplemented && text.contains("is not offered by weft"), "{text}");
    let (code, text) = refusal(alarm(7).await);
    assert!(code == Code::InvalidArgument && text.contains("alarm action 7 is unknown"), "{text}");

    let downgrade = async |action| {
        let request = pb::DowngradeRequest { action, version: "3.5".to_owned() };
        refusal(server.maintenance().downgrade(request).await)
    };
    let target = (Code::InvalidArgument, "etcdserver: invalid downgrade target version".to_owned());
    assert_eq!(downgrade(DowngradeAction::Validate.into()).await, target);
    assert_eq!(downgrade(DowngradeAction::Enable.into()).await, target);
    let none = (Code::FailedPrecondition, "etcdserver: no inflight downgrade job".to_owned());
    assert_eq!(downgrade(DowngradeAction::Cancel.into()).await, none);
    let (code, text) = downgrade(9).await;
    assert!(code == Code::InvalidArgument && text.contains("downgrade action 9 is unknown"), "{text}");
    server.stop().await;
}

/// `clientv3.WithRequireLeader`, and a server that is in no group: administrators' calls are no exception.
#[tokio::test]
async fn a_server_without_a_group_refuses_administrators_calls_too() {
    let server = Server::launch(Launch { bootstrap: false, ..Launch::default() }).await;
    let no_leader = (Code::Unavailable, "etcdserver: no leader".to_owned());
    assert_eq!(refusal(server.maintenance().status(pb::StatusRequest {}).await), no_leader);
    assert_eq!(refusal(server.maintenance().defragment(pb::DefragmentRequest {}).await), no_leader);
    assert_eq!(refusal(server.cluster().member_list(pb::MemberListRequest::default()).await), no_leader);
    server.stop().await;
}
