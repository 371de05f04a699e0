//! Holders of one lock, that write under its protection, also after they have slept for too long.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{sleep, timeout};
use weft_xds_proto::etcdserverpb as pb;
use weft_xds_proto::etcdserverpb::{kv_client::KvClient, lease_client::LeaseClient};
use weft_xds_proto::weft::semaphore_client::SemaphoreClient;
use weft_xds_proto::weft::{AcquireRequest, Grant, ReleaseRequest};

use super::{ANSWER_MAX, Client};
use crate::rng::Rng;
use weft_tests::checker::kv::{Answer, Call};
use weft_tests::history::{Moment, Recorder};

/// What holders write: the value is the fence that they wrote it with.
pub(crate) const PROTECTED: &str = "protected";

const LOCK: &str = "lock:simulated";

/// A grant that was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) fence: i64,
    pub(crate) asked: Moment,
    pub(crate) told: Moment,
}

/// All grants that were told.
pub(crate) type Grants = Arc<Mutex<Vec<Held>>>;

/// One holder, until it is stopped.
pub(crate) async fn run(client: Client, mut rng: Rng, recorder: Recorder<Call, Answer>, grants: Grants) {
    let mut request_id = 0;
    while !client.stopped() {
        request_id += 1;
        let turn = turn(&client, &mut rng, &recorder, &grants, request_id);
        let _ = timeout(4 * ANSWER_MAX, turn).await;
        sleep(Duration::from_millis(rng.between(50, 500))).await;
    }
}

async fn turn(
    client: &Client,
    rng: &mut Rng,
    recorder: &Recorder<Call, Answer>,
    grants: &Grants,
    request_id: u64,
) -> Option<()> {
    let mut leases = LeaseClient::new(client.any(rng));
    let ttl = rng.between(3, 8) as i64;
    let lease =
        leases.lease_grant(pb::LeaseGrantRequest { ttl, ..Default::default() }).await.ok()?.into_inner().id;
    let asked = recorder.lock().moment(client.at());
    let mut locks = SemaphoreClient::new(client.any(rng));
    let acquire = AcquireRequest {
        name: LOCK.to_owned(),
        lease,
        permits: 1,
        limit: 1,
        request_id,
        timeout_ms: rng.between(500, 5_000),
        r#try: false,
    };
    let grant = locks.acquire(acquire).await.ok()?.into_inner().grant?;
    let told = recorder.lock().moment(client.at());
    grants.lock().push(Held { fence: grant.fence, asked, told });
    for _ in 0..rng.between(1, 4) {
        write(client, rng, &grant).await;
        // Sometimes longer than the session lives: it then writes as a holder that does not know.
        sleep(Duration::from_millis(rng.between(10, 4_000))).await;
    }
    let mut locks = SemaphoreClient::new(client.any(rng));
    locks.release(ReleaseRequest { name: LOCK.to_owned(), lease, request_id }).await.ok()?;
    leases.lease_revoke(pb::LeaseRevokeRequest { id: lease }).await.ok()?;
    Some(())
}

/// Writes if the grant is still the present one.
async fn write(client: &Client, rng: &mut Rng, grant: &Grant) {
    use pb::compare::{CompareResult, CompareTarget, TargetUnion};
    let compare = pb::Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key: grant.key.clone().into(),
        target_union: Some(TargetUnion::CreateRevision(grant.fence)),
        ..Default::default()
    };
    let put =
        pb::PutRequest { key: PROTECTED.into(), value: grant.fence.to_string().into(), ..Default::default() };
    let put = pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) };
    let txn = pb::TxnRequest { compare: vec![compare], success: vec![put], failure: Vec::new() };
    let _ = timeout(ANSWER_MAX, KvClient::new(client.any(rng)).txn(txn)).await;
}
