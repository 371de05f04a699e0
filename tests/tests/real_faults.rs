//! Three real servers, each in a network namespace of its own, under faults that real machines and networks have; what
//! clients saw meanwhile is judged by the checkers.
//!
//! `WEFT_FAULTS_SECS` says for how long (default 30), `WEFT_FAULTS_SEED` with which faults; `tests/netns/run` sets both.
//! Processes and clocks are real, so a seed repeats the faults, not the run.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use weft_tests::checker::kv::Call;
use weft_tests::netns::cluster::Cluster;
use weft_tests::netns::{inside, nemesis};
use weft_tests::workload::report::{Records, judge};
use weft_tests::workload::{Run, hashes, keys, leases, locks, stale, streaming, watching};

/// How long faults go on, unless told otherwise.
const SECS: u64 = 30;
/// Clients that read and write keys. Half of them use one server only.
const WORKERS: usize = 8;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text:?}: expected a whole number")))
}

/// A01 to A11, W01 to W05, W09 to W12, S01, S02, S04, R06, L01, L02, L11: none of them is seen while servers are killed,
/// stopped (for which all clocks jump when they go on), replaced with an empty disk and cut off, leadership is handed over, and packets are lost, late, doubled and out of order.
#[test]
fn what_clients_see_of_three_servers_under_faults_is_linearizable() {
    inside("what_clients_see_of_three_servers_under_faults_is_linearizable", || async {
        let secs = number("WEFT_FAULTS_SECS").unwrap_or(SECS);
        let seed = number("WEFT_FAULTS_SEED").unwrap_or_else(|| fastrand::u64(0..1_000_000));
        eprintln!("REPRODUCE: tests/netns/run --seed {seed} --seconds {secs}");
        let mut cluster = Cluster::start(3, seed).await;
        let run = Run::new(cluster.endpoints(), seed);

        let mut tasks = tokio::task::JoinSet::new();
        for i in 0..WORKERS {
            tasks.spawn(keys::Worker::new(&run, run.client(i, i % 2 == 0)).work());
        }
        for i in 0..3 {
            tasks.spawn(streaming::write(run.clone(), i));
            tasks.spawn(leases::own(run.clone(), run.client(i, false)));
            tasks.spawn(locks::contend(run.clone(), run.client(i, false)));
        }
        let (done, until_done) = watch::channel(None);
        let progress = watching::Progress::new(3);
        let watch = |i| watching::watch(run.clone(), i, progress.clone(), until_done.clone());
        let watchers: Vec<_> = (0..3).map(|i| tokio::spawn(watch(i))).collect();
        tasks.spawn(watching::compact(run.clone(), progress.clone()));
        let readers: Vec<_> = (0..3).map(|i| tokio::spawn(stale::read(run.clone(), i))).collect();

        let deadline = Instant::now() + Duration::from_secs(secs);
        let faults = nemesis::torment(&mut cluster, seed, deadline).await;

        // Everything is repaired: the group must serve again, and everybody must hear of everything.
        cluster.wait_for_voters(3).await;
        run.stop();
        while let Some(ended) = tasks.join_next().await {
            ended.expect("a client does not panic");
        }
        // The last compaction was below what some watcher was yet to be told.
        let not_compacted = progress.lowest();
        let revision = settle(&run).await;
        done.send_replace(Some(revision));
        let watchers = join(watchers).await;
        let retold = (0..3).map(|i| tokio::spawn(watching::retell(run.clone(), i, not_compacted, revision)));
        let mut stores = Vec::new();
        for i in 0..3 {
            stores.push(hashes::hash(&run, i, revision).await);
        }
        let records = Records {
            revision,
            hashes: stores,
            retold: join(retold.collect()).await,
            watchers,
            snapshots: join(readers).await,
            outage_max: nemesis::OUTAGE_MAX,
        };
        let report = judge(&run, &records);
        eprintln!("{} faults; {report}", faults.len());
        assert!(report.answered > 100, "too little was answered for the run to say anything");
    });
}

/// Writes once more, so that there is a last event for every watcher; answers its revision.
async fn settle(run: &Run) -> i64 {
    let mut worker = keys::Worker::new(run, run.client(0, false));
    let started = Instant::now();
    loop {
        let last = Call::put(format!("{}last", keys::RANGE.0), worker.value());
        if let Some(revision) = worker.execute(last).await.and_then(|answer| answer.revision) {
            return revision;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "no write is answered after all faults");
    }
}

async fn join<T>(tasks: Vec<tokio::task::JoinHandle<T>>) -> Vec<T> {
    let ended = tokio::time::timeout(Duration::from_secs(30), futures::future::join_all(tasks)).await;
    let ended = ended.expect("every watcher is told the last event soon after the last fault");
    ended.into_iter().map(|one| one.expect("it does not panic")).collect()
}
