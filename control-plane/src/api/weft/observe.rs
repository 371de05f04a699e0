//! Observing an election: the leader as it stands, then every change, in order, none missed (L10).
//!
//! The present leader is read at one revision and the watch starts right after it. Changes of one
//! revision (one leader goes, the next comes) are told as one: the state after it.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use weft_state::command::{Event, EventKind, Revision};
use weft_state::recipes::election::{decode_leader, is_news, leader_key};
use weft_state::watch::{SharedEvent, WatchOptions, WatchPoll, WatchRange};
use weft_xds_proto::weft as pb;

use super::WeftApi;
use crate::api::read::Wanted;
use crate::api::status;
use crate::watch_driver::WatchHandle;

/// Changes that wait for a slow observer in its stream; the rest waits in the store's history.
const CHANGES_QUEUED: usize = 16;

/// Most bytes of changes taken from the watch at a time.
const EVENT_BYTES_MAX: usize = 256 * 1024;

/// Answers of one observer.
pub type Observations = ReceiverStream<Result<pb::ObserveResponse, Status>>;

/// Starts observing. The task ends when the observer goes away or the server stops.
pub(super) async fn start(api: &WeftApi, name: String) -> Result<Observations, Status> {
    let key = leader_key(&name);
    let read = |m: &weft_state::machine::Machine| (m.election(&name).and_then(|e| e.leader), m.revision());
    let ((leader, revision), _) =
        api.reader.read(Wanted::Linearizable, read).await.map_err(|e| status::propose(&e))?;
    let present = match leader {
        Some((grant, value)) => pb::ObserveResponse {
            has_leader: true,
            grant: Some(super::grant(&grant, grant.fence)),
            value,
            revision,
        },
        None => vacant(revision),
    };
    let range = WatchRange { key: key.clone(), range_end: Bytes::new() };
    let options = WatchOptions { range, start: revision + 1, prev_kv: true, no_put: false, no_delete: false };
    let changes = api.watches.open(&api.coordinator, options);
    let (sender, receiver) = mpsc::channel(CHANGES_QUEUED);
    let stop = api.stop.clone();
    api.tasks.spawn(async move {
        let follow = follow(present, changes, &sender);
        let ended = tokio::select! {
            biased;
            ended = follow => ended,
            () = stop.cancelled() => Some(status::stopping()),
            () = sender.closed() => None,
        };
        if let Some(status) = ended {
            // An observer that reads nothing hears of the end by the end of the connection.
            let _ = sender.try_send(Err(status));
        }
    });
    Ok(ReceiverStream::new(receiver))
}

async fn follow(
    present: pb::ObserveResponse,
    mut changes: WatchHandle,
    sender: &mpsc::Sender<Result<pb::ObserveResponse, Status>>,
) -> Option<Status> {
    sender.send(Ok(present)).await.ok()?;
    loop {
        match changes.next(EVENT_BYTES_MAX).await {
            WatchPoll::Events { events, .. } => {
                for change in leaders(&events) {
                    sender.send(Ok(change)).await.ok()?;
                }
            }
            WatchPoll::Compacted { oldest } => {
                return Some(Status::out_of_range(format!(
                    "this observer fell behind: history before revision {oldest} is compacted; observe again"
                )));
            }
            WatchPoll::Idle { .. } => {}
        }
    }
}

/// The leader after each revision that changed it.
fn leaders(events: &[Arc<SharedEvent>]) -> Vec<pb::ObserveResponse> {
    let mut all: Vec<pb::ObserveResponse> = Vec::with_capacity(events.len());
    for event in events.iter().filter(|event| is_news(event)) {
        let after = leader_after(event);
        match all.last_mut() {
            Some(last) if last.revision == after.revision => *last = after,
            _ => all.push(after),
        }
    }
    all
}

fn leader_after(event: &Event) -> pb::ObserveResponse {
    let revision = event.kv.mod_revision;
    let led = match event.kind {
        EventKind::Put => decode_leader(&event.kv.value),
        EventKind::Delete => None,
    };
    let Some(led) = led else {
        return vacant(revision);
    };
    let grant = weft_state::command::Grant {
        fence: event.kv.create_revision,
        lease: led.lease,
        key: event.kv.key.clone(),
    };
    pb::ObserveResponse {
        has_leader: true,
        grant: Some(super::grant(&grant, revision)),
        value: led.value,
        revision,
    }
}

fn vacant(revision: Revision) -> pb::ObserveResponse {
    pb::ObserveResponse { has_leader: false, grant: None, value: Bytes::new(), revision }
}
