//! Throws history away from time to time, close behind the present.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{sleep, timeout};
use weft_xds_proto::etcdserverpb as pb;
use weft_xds_proto::etcdserverpb::kv_client::KvClient;

use super::{ANSWER_MAX, Client};
use crate::rng::Rng;

/// To which revisions it was asked for.
pub(crate) type Compactions = Arc<Mutex<Vec<i64>>>;

/// Until it is stopped.
pub(crate) async fn run(client: Client, mut rng: Rng, compactions: Compactions) {
    while !client.stopped() {
        sleep(Duration::from_millis(rng.between(200, 2_500))).await;
        let mut kv = KvClient::new(client.any(&mut rng));
        let look = pb::RangeRequest { key: "k".into(), ..Default::default() };
        let Ok(Ok(seen)) = timeout(ANSWER_MAX, kv.range(look)).await else { continue };
        let revision = seen.into_inner().header.map_or(0, |header| header.revision);
        let keep = rng.below(20) as i64;
        if revision > keep + 1 {
            compactions.lock().push(revision - keep);
            let compact = pb::CompactionRequest { revision: revision - keep, ..Default::default() };
            let _ = timeout(ANSWER_MAX, kv.compact(compact)).await;
        }
    }
}
