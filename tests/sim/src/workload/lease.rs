//! Sessions: a lease with a key, renewed for a while, then left to run out, or revoked.

use std::sync::Arc;
use std::time::Duration;

use futures::stream;
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};
use weft_xds_proto::etcdserverpb as pb;
use weft_xds_proto::etcdserverpb::{kv_client::KvClient, lease_client::LeaseClient};

use super::call::Failure;
use super::{ANSWER_MAX, Client};
use crate::rng::Rng;
use weft_tests::checker::kv::{Answer, Call};
use weft_tests::checker::lease::{Fact, Note};
use weft_tests::history::{Moment, Process, Recorder};

/// What was asked about leases, and seen of them.
pub(crate) type Notes = Arc<Mutex<Vec<Note>>>;

/// Times to live, in seconds. Long ones are still running when all is well again, and then nothing but their own
/// time ends them: who gives them less is found.
const TTL_SECS: (u64, u64) = (3, 20);

/// One holder of sessions, until it is stopped.
pub(crate) async fn run(
    client: Client,
    process: Process,
    mut rng: Rng,
    recorder: Recorder<Call, Answer>,
    notes: Notes,
) {
    let holder = Holder { client, recorder, notes };
    let mut number = 0;
    while !holder.client.stopped() {
        number += 1;
        let key = format!("lease/{process}/{number}");
        if holder.session(&mut rng, &key).await.is_none() {
            sleep(Duration::from_millis(rng.between(50, 500))).await;
        }
    }
}

struct Holder {
    client: Client,
    recorder: Recorder<Call, Answer>,
    notes: Notes,
}

impl Holder {
    fn moment(&self) -> Moment {
        self.recorder.lock().moment(self.client.at())
    }

    fn note(&self, lease: i64, fact: Fact, sent: Moment, answered: Option<Moment>) {
        self.notes.lock().push(Note { lease, fact, sent, answered });
    }

    /// One lease from its grant to its end. `None`: something was not answered.
    async fn session(&self, rng: &mut Rng, key: &str) -> Option<()> {
        let ttl = rng.between(TTL_SECS.0, TTL_SECS.1) as i64;
        let sent = self.moment();
        let mut leases = LeaseClient::new(self.client.any(rng));
        let grant = leases.lease_grant(pb::LeaseGrantRequest { ttl, ..Default::default() });
        let granted = answered(grant.await)?;
        let lease = granted.id;
        self.note(lease, Fact::Renewed(seconds(granted.ttl)), sent, Some(self.moment()));
        let mut kv = KvClient::new(self.client.any(rng));
        let put = pb::PutRequest { key: key.to_owned().into(), lease, ..Default::default() };
        answered(timeout(ANSWER_MAX, kv.put(put)).await.ok()?)?;
        for _ in 0..rng.below(4) {
            sleep(Duration::from_millis(rng.between(100, granted.ttl as u64 * 400))).await;
            self.renew(rng, lease).await;
        }
        if rng.chance(300) {
            let sent = self.moment();
            let revoke = leases.lease_revoke(pb::LeaseRevokeRequest { id: lease });
            let done = answered(timeout(ANSWER_MAX, revoke).await.ok()?).map(|_| self.moment());
            self.note(lease, Fact::Revoked, sent, done);
        }
        // Until it is over, or for longer than it may be there.
        for _ in 0..120 {
            if self.look(rng, lease, key).await == Some(Fact::KeyGone) {
                return Some(());
            }
            sleep(Duration::from_millis(rng.between(100, 500))).await;
        }
        Some(())
    }

    async fn renew(&self, rng: &mut Rng, lease: i64) {
        let sent = self.moment();
        let mut leases = LeaseClient::new(self.client.any(rng));
        let ask = async {
            let request = stream::iter([pb::LeaseKeepAliveRequest { id: lease }]);
            leases.lease_keep_alive(request).await.ok()?.into_inner().message().await.ok()?
        };
        let answer = timeout(ANSWER_MAX, ask).await.ok().flatten();
        let now = self.moment();
        match answer {
            Some(answer) if answer.ttl > 0 => {
                self.note(lease, Fact::Renewed(seconds(answer.ttl)), sent, Some(now));
            }
            Some(_) => self.note(lease, Fact::Gone, sent, Some(now)),
            // It may have been renewed all the same.
            None => self.note(lease, Fact::Renewed(Duration::ZERO), sent, None),
        }
    }

    async fn look(&self, rng: &mut Rng, lease: i64, key: &str) -> Option<Fact> {
        let sent = self.moment();
        let mut kv = KvClient::new(self.client.any(rng));
        let range = pb::RangeRequest { key: key.to_owned().into(), ..Default::default() };
        let found = answered(timeout(ANSWER_MAX, kv.range(range)).await.ok()?)?;
        let fact = if found.kvs.is_empty() { Fact::KeyGone } else { Fact::KeyThere };
        self.note(lease, fact, sent, Some(self.moment()));
        Some(fact)
    }
}

fn answered<T>(result: Result<tonic::Response<T>, tonic::Status>) -> Option<T> {
    result.map(tonic::Response::into_inner).map_err(Failure::from).ok()
}

fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(ttl.max(0) as u64)
}
