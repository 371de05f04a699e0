//! What linearizable reads rely on.

use super::*;

/// Reads by a lease of five seconds: long enough that everything here happens within it, but for its end.
fn patient(reads: ReadMode) -> RaftTiming {
    let election = Duration::from_secs(20);
    RaftTiming { election_timeout_max: election, deadline: election, reads, ..timing() }
}

/// The leader of three servers, the others of which have just died.
async fn left_alone(reads: ReadMode) -> (Server, Instant) {
    let mut servers = Vec::new();
    for id in 1..=3 {
        let folder = tempfile::tempdir().expect("a folder");
        let history = HistoryLimits::default();
        let setup = Setup { folder, bootstrap: id == 1, snapshot_every: SNAPSHOT_EVERY, history };
        let server = start_timed(id, setup, false, patient(reads)).await.expect("starts");
        if id > 1 {
            join(&server, &servers).await;
        }
        servers.push(server);
    }
    let leader = servers.remove(0);
    assert_eq!(leader.coordinator.status().leader, Some(leader.id));
    put_until_done(&leader, "k", "v").await;
    for server in servers {
        server.crash().await;
    }
    (leader, Instant::now())
}

async fn is_not_answered(server: &Server) {
    let read = tokio::time::timeout(Duration::from_secs(1), server.coordinator.read_barrier()).await;
    assert!(!matches!(read, Ok(Ok(()))), "{read:?}");
}

/// A01 by agreement: within its lease a leader asks nobody, and beyond it nobody answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_reads_by_its_lease_asks_nobody_until_the_lease_is_over() {
    let (leader, alone_since) = left_alone(ReadMode::Lease).await;
    leader.coordinator.read_barrier().await.expect("the lease still runs");
    assert!(alone_since.elapsed() < Duration::from_secs(2), "it waited for somebody");
    let lease = patient(ReadMode::Lease).read_lease();
    sleep(lease.saturating_sub(alone_since.elapsed()) + Duration::from_millis(100)).await;
    is_not_answered(&leader).await;
    leader.crash().await;
}

/// A01.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_reads_by_index_answers_nothing_without_a_majority() {
    let (leader, _) = left_alone(ReadMode::Index).await;
    is_not_answered(&leader).await;
    leader.crash().await;
}

/// A11: the machine of a server that lost its disk knows less, as a new server, than its clients were told before. It says so
/// until it has at least that; a group of one and one that was restarted need nobody for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_new_to_its_group_shows_no_state_before_it_has_what_the_others_showed() {
    let first = first(1).await;
    put_until_done(&first, "shown", "v").await;
    assert_eq!(first.coordinator.check_taken_in(), Ok(()));
    let folder = tempfile::tempdir().expect("a folder");
    let history = HistoryLimits::default();
    let setup = Setup { folder, bootstrap: false, snapshot_every: SNAPSHOT_EVERY, history };
    let second = start(2, setup).await;
    assert_eq!(second.coordinator.check_taken_in(), Err(ProposeError::NotTakenIn));
    let servers = [first];
    join(&second, &servers).await;
    until("it is taken in", || second.coordinator.check_taken_in().is_ok()).await;
    assert!(second.get("shown").is_some());

    let folder = second.crash().await;
    let [first] = servers;
    first.crash().await;
    let restarted = Server::restart(NodeId(2), folder, SNAPSHOT_EVERY).await;
    until("it has its own state again", || restarted.coordinator.check_taken_in().is_ok()).await;
    assert!(restarted.get("shown").is_some(), "without anybody else");
    restarted.crash().await;
}
