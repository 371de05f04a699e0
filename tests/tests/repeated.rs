//! Writes through the SDK while leaders are killed: none is lost and none is done twice (P14, A06, A07).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use weft_client::kv::{Compare, CompareOp, CompareTarget, GetOptions, KeyRange, PutOptions, Txn, TxnOp};
use weft_client::{Client, Options};
use weft_tests::mesh::Mesh;
use weft_tests::wait::until;

const WRITERS: u64 = 8;

/// How often a leader is killed.
const KILLS: usize = 3;

/// Writes made in between.
const WRITES_BETWEEN: u64 = 200;

/// What one writer was told.
#[derive(Default)]
struct Told {
    puts: u64,
    increments: u64,
}

/// Puts keys of its own, each once, and counts up a number of its own, without pause. Every write must succeed: the client
/// sends it again until somebody answers.
async fn write(client: Client, writer: u64, stop: Arc<AtomicBool>, done: Arc<AtomicU64>) -> Told {
    let kv = client.kv();
    let counter = format!("count/{writer}");
    let mut told = Told::default();
    while !stop.load(Ordering::Relaxed) {
        let key = format!("once/{writer}/{:06}", told.puts);
        kv.put(key.clone(), "v").await.unwrap_or_else(|error| panic!("put {key}: {error}"));
        told.puts += 1;
        // Done twice, the second time would fail, and the writer would be told so.
        let (before, after) = (told.increments.to_string(), (told.increments + 1).to_string());
        let target = match told.increments {
            0 => CompareTarget::CreateRevision(0),
            _ => CompareTarget::Value(before.into()),
        };
        let compare = Compare { range: KeyRange::key(counter.clone()), op: CompareOp::Equal, target };
        let put = TxnOp::Put(counter.clone().into(), after.into(), PutOptions::default());
        let txn = Txn { compares: vec![compare], success: vec![put], failure: vec![] };
        let answer = kv.txn(txn).await.unwrap_or_else(|error| panic!("count {counter}: {error}"));
        assert!(answer.succeeded, "the increment of {counter} from {} was done twice", told.increments);
        told.increments += 1;
        done.fetch_add(2, Ordering::Relaxed);
    }
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_is_lost_or_done_twice_while_leaders_are_killed() {
    let mut mesh = Mesh::with_servers(3).await;
    let endpoints: Vec<String> = mesh.servers.iter().map(|server| server.grpc().to_string()).collect();
    let options = Options { retry_for: Duration::from_secs(60), ..Options::default() };
    let client = Client::connect_with(&endpoints, options).expect("usable endpoints");
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| tokio::spawn(write(client.clone(), writer, stop.clone(), done.clone())))
        .collect();
    let more_writes = async |count: u64| {
        let goal = done.load(Ordering::Relaxed) + count;
        until("more writes", Duration::from_secs(60), || async {
            let seen = done.load(Ordering::Relaxed);
            if seen >= goal { Ok(()) } else { Err(seen.to_string()) }
        })
        .await;
    };
    for _ in 0..KILLS {
        more_writes(WRITES_BETWEEN).await;
        let leader = mesh.leader().await;
        mesh.servers[leader].kill().await;
        more_writes(WRITES_BETWEEN).await;
        mesh.servers[leader].start().await;
        mesh.wait_for_voters(3).await;
    }
    stop.store(true, Ordering::Relaxed);
    for (writer, task) in writers.into_iter().enumerate() {
        let told = task.await.expect("every write succeeds");
        let puts =
            client.kv().range(KeyRange::prefix(format!("once/{writer}/")), GetOptions::default()).await;
        let puts = puts.expect("reads").kvs;
        assert_eq!(puts.len() as u64, told.puts, "acknowledged writes are there");
        let twice: Vec<_> = puts.iter().filter(|kv| kv.version != 1).collect();
        assert!(twice.is_empty(), "done twice: {twice:?}");
        let counter = client.kv().get(format!("count/{writer}")).await.expect("reads").expect("exists");
        assert_eq!(
            (counter.value, counter.version as u64),
            (told.increments.to_string().into(), told.increments)
        );
    }
}
