//! What a caller sees when servers go away, over real sockets with servers that follow a script.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use futures::stream;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use weft_client::proto::etcd::lease_server::{Lease, LeaseServer};
use weft_client::proto::etcd::watch_server::{Watch, WatchServer};
use weft_client::proto::etcd::{self, watch_request::RequestUnion};
use weft_client::proto::mvccpb;
use weft_client::proto::weft::semaphore_server::{Semaphore, SemaphoreServer};
use weft_client::proto::weft::{self as pb};
use weft_client::semaphore::AcquireOptions;
use weft_client::watch::WatchOptions;
use weft_client::{Client, Error, Lost};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A server that answers by its script and remembers what it was asked.
#[derive(Clone, Default)]
struct Scripted {
    /// Watches: revisions whose events are sent before the stream ends; an empty script never ends.
    revisions: Vec<i64>,
    /// Acquires: refuse as a server that stops, else grant.
    stops: bool,
    /// Leases: this TTL is granted; renewals are answered with `renewal`.
    ttl: i64,
    renewal: Option<i64>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    watched_from: Vec<i64>,
    request_ids: Vec<u64>,
    released: Vec<u64>,
    revoked: Vec<i64>,
}

impl Scripted {
    async fn start(self) -> (String, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = Server::builder()
            .add_service(WatchServer::new(self.clone()))
            .add_service(LeaseServer::new(self.clone()))
            .add_service(SemaphoreServer::new(self))
            .serve_with_incoming(TcpListenerStream::new(listener));
        (address, tokio::spawn(async move { server.await.unwrap() }))
    }
}

fn header(revision: i64) -> Option<etcd::ResponseHeader> {
    Some(etcd::ResponseHeader { revision, ..Default::default() })
}

#[tonic::async_trait]
impl Watch for Scripted {
    type WatchStream = Answers<etcd::WatchResponse>;

    async fn watch(
        &self,
        request: Request<Streaming<etcd::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let first = request.into_inner().message().await?.and_then(|first| first.request_union);
        let Some(RequestUnion::CreateRequest(create)) = first else {
            return Err(Status::invalid_argument("the first message creates a watch"));
        };
        self.seen.lock().watched_from.push(create.start_revision);
        if create.start_revision == 1 {
            let canceled = etcd::WatchResponse { canceled: true, compact_revision: 5, ..Default::default() };
            return Ok(Response::new(Box::pin(stream::iter([Ok(canceled)]))));
        }
        let created = etcd::WatchResponse { created: true, header: header(9), ..Default::default() };
        let event = |revision| {
            let kv = mvccpb::KeyValue { key: "k".into(), mod_revision: revision, ..Default::default() };
            let event = mvccpb::Event { kv: Some(kv), ..Default::default() };
            etcd::WatchResponse { events: vec![event], header: header(revision), ..Default::default() }
        };
        let events: Vec<_> = self.revisions.iter().map(|revision| Ok(event(*revision))).collect();
        let script = stream::iter([Ok(created)].into_iter().chain(events));
        if self.revisions.is_empty() {
            return Ok(Response::new(Box::pin(futures::StreamExt::chain(script, stream::pending()))));
        }
        Ok(Response::new(Box::pin(script)))
    }
}

#[tonic::async_trait]
impl Lease for Scripted {
    type LeaseKeepAliveStream = Answers<etcd::LeaseKeepAliveResponse>;

    async fn lease_grant(
        &self,
        request: Request<etcd::LeaseGrantRequest>,
    ) -> Result<Response<etcd::LeaseGrantResponse>, Status> {
        let id = request.into_inner().id;
        Ok(Response::new(etcd::LeaseGrantResponse { id, ttl: self.ttl, ..Default::default() }))
    }

    async fn lease_revoke(
        &self,
        request: Request<etcd::LeaseRevokeRequest>,
    ) -> Result<Response<etcd::LeaseRevokeResponse>, Status> {
        self.seen.lock().revoked.push(request.into_inner().id);
        Ok(Response::new(etcd::LeaseRevokeResponse::default()))
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<etcd::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let first = request.into_inner().message().await?.unwrap_or_default();
        match self.renewal {
            Some(ttl) => {
                let answer = etcd::LeaseKeepAliveResponse { id: first.id, ttl, ..Default::default() };
                Ok(Response::new(Box::pin(stream::iter([Ok(answer)]))))
            }
            None => Err(Status::unavailable("etcdserver: no leader")),
        }
    }

    async fn lease_time_to_live(
        &self,
        _: Request<etcd::LeaseTimeToLiveRequest>,
    ) -> Result<Response<etcd::LeaseTimeToLiveResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn lease_leases(
        &self,
        _: Request<etcd::LeaseLeasesRequest>,
    ) -> Result<Response<etcd::LeaseLeasesResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }
}

#[tonic::async_trait]
impl Semaphore for Scripted {
    async fn acquire(
        &self,
        request: Request<pb::AcquireRequest>,
    ) -> Result<Response<pb::AcquireResponse>, Status> {
        let request = request.into_inner();
        self.seen.lock().request_ids.push(request.request_id);
        if self.stops {
            return Err(Status::unavailable("this server is stopping"));
        }
        if request.name == "taken" {
            return std::future::pending().await;
        }
        let grant = pb::Grant { fence: 7, revision: 7, lease: request.lease, key: "k".to_owned() };
        Ok(Response::new(pb::AcquireResponse { acquired: true, grant: Some(grant) }))
    }

    async fn release(
        &self,
        request: Request<pb::ReleaseRequest>,
    ) -> Result<Response<pb::ReleaseResponse>, Status> {
        self.seen.lock().released.push(request.into_inner().request_id);
        Ok(Response::new(pb::ReleaseResponse { released: true, revision: 8 }))
    }

    async fn describe(
        &self,
        _: Request<pb::DescribeSemaphoreRequest>,
    ) -> Result<Response<pb::DescribeSemaphoreResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }
}

/// W03: a watch that loses its server goes on at another one, right after what it has handed out.
#[tokio::test]
async fn a_watch_resumes_at_another_server_without_gap_or_repetition() {
    let first = Scripted { revisions: vec![10, 11], ..Scripted::default() };
    let second = Scripted { revisions: vec![12], ..Scripted::default() };
    let (seen, seen_by_second) = (first.seen.clone(), second.seen.clone());
    let ((a, first), (b, _second)) = (first.start().await, second.start().await);
    let client = Client::connect([a, b]).unwrap();
    let mut watcher = client.watch(WatchOptions::new("k")).await.unwrap();
    let mut revisions = Vec::new();
    revisions.extend(watcher.next().await.unwrap().iter().map(|event| event.kv.mod_revision));
    // From here on nobody accepts connections there; the open one ends by its script.
    first.abort();
    while revisions.len() < 2 {
        revisions.extend(watcher.next().await.unwrap().iter().map(|event| event.kv.mod_revision));
    }
    assert_eq!(revisions, [10, 11]);
    // The scripted stream has ended, so whoever is asked next is asked from revision 12 on.
    let _ = tokio::time::timeout(Duration::from_secs(5), watcher.next()).await.unwrap();
    let resumed: Vec<i64> =
        seen.lock().watched_from.iter().chain(&seen_by_second.lock().watched_from).copied().collect();
    assert_eq!(resumed[0], 0);
    assert!(resumed.len() > 1 && resumed[1..].iter().all(|from| *from == 12), "{resumed:?}");
}

/// W02: history that is gone ends the watch with what is left, never with a gap.
#[tokio::test]
async fn a_compacted_start_is_told_with_the_oldest_revision() {
    let (address, _server) = Scripted::default().start().await;
    let client = Client::connect([address]).unwrap();
    let options = WatchOptions { start_revision: 1, ..WatchOptions::new("k") };
    let error = client.watch(options).await.unwrap_err();
    assert!(matches!(error, Error::Compacted { requested: 1, oldest: 5 }), "{error:?}");
}

/// P23: the same request goes to the next server, which finds its place in the queue again.
#[tokio::test]
async fn an_acquire_goes_on_at_another_server_under_the_same_request_id() {
    let stopping = Scripted { stops: true, ttl: 10, renewal: Some(10), ..Scripted::default() };
    let granting = Scripted { ttl: 10, renewal: Some(10), ..Scripted::default() };
    let (seen, seen_by_second) = (stopping.seen.clone(), granting.seen.clone());
    let ((a, _first), (b, _second)) = (stopping.start().await, granting.start().await);
    let client = Client::connect([a, b]).unwrap();
    let session = client.session(Duration::from_secs(10)).await.unwrap();
    let permit = client.semaphore("s").acquire(&session, AcquireOptions::default()).await.unwrap().unwrap();
    assert_eq!(permit.grant().fence, 7);
    assert_eq!(seen.lock().request_ids, seen_by_second.lock().request_ids);
    permit.release().await.unwrap();
    session.close().await.unwrap();
    assert_eq!(seen_by_second.lock().revoked, [session.lease()]);
    assert_eq!(session.lost().await, Lost::Closed { lease: session.lease() });
}

/// P23: an acquire that is abandoned leaves the queue.
#[tokio::test]
async fn an_abandoned_acquire_is_released() {
    let server = Scripted { ttl: 10, renewal: Some(10), ..Scripted::default() };
    let seen = server.seen.clone();
    let (address, _server) = server.start().await;
    let client = Client::connect([address]).unwrap();
    let session = client.session(Duration::from_secs(10)).await.unwrap();
    let semaphore = client.semaphore("taken");
    let acquire = semaphore.acquire(&session, AcquireOptions::default());
    assert!(tokio::time::timeout(Duration::from_millis(200), acquire).await.is_err());
    tokio::time::timeout(Duration::from_secs(5), async {
        while seen.lock().released.is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    let seen = seen.lock();
    assert_eq!(seen.released, seen.request_ids);
}

/// P20, P22: a session that nobody renews ends by the local clock, and takes a waiting acquire with it.
#[tokio::test]
async fn a_waiting_acquire_ends_with_its_session() {
    let server = Scripted { ttl: 1, renewal: None, ..Scripted::default() };
    let (address, _server) = server.start().await;
    let client = Client::connect([address]).unwrap();
    let session = client.session(Duration::from_secs(1)).await.unwrap();
    let error = client
        .semaphore("taken")
        .acquire(&session, AcquireOptions::default())
        .await
        .expect_err("it must not wait on");
    assert!(matches!(error, Error::SessionLost(Lost::Unrenewed { .. })), "{error:?}");
    assert!(!session.is_live());
    let late = client.semaphore("s").acquire(&session, AcquireOptions::default()).await;
    assert!(matches!(late, Err(Error::SessionLost(_))), "a lost session acquires nothing");
}
