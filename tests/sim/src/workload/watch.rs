//! A watcher of all keys of the KV workload, that goes on where it was at any server when a stream ends.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use weft_xds_proto::etcdserverpb as pb;
use weft_xds_proto::etcdserverpb::watch_client::WatchClient;
use weft_xds_proto::mvccpb;

use super::{Client, kv};
use crate::rng::Rng;
use weft_tests::checker::kv::{Answer, Call};
use weft_tests::checker::watch::{Change, Event, Message, Watcher};
use weft_tests::history::Recorder;

/// A stream that says nothing for so long is asked for its progress, and given up if it stays silent.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// The same for one that stays, so that it is there when its server is back after a while.
const STAYING_SILENCE_MAX: Duration = Duration::from_secs(4);

/// Longer than a run.
const STAY: Duration = Duration::from_secs(3_600);

/// What a watcher was told so far.
pub(crate) type Told = Arc<Mutex<Watcher>>;

/// Nobody was told anything yet.
pub(crate) fn told(name: String) -> Told {
    let end = String::from_utf8(range_end()).expect("is ASCII");
    Arc::new(Mutex::new(Watcher { name, start: kv::PREFIX.into(), end: Some(end.into()), told: Vec::new() }))
}

fn range_end() -> Vec<u8> {
    let mut end = kv::PREFIX.as_bytes().to_vec();
    *end.last_mut().expect("the prefix is not empty") += 1;
    end
}

/// Watches for as long as it is polled, here and there.
pub(crate) async fn run(client: Client, rng: Rng, recorder: Recorder<Call, Answer>, told: Told) {
    watch(client, rng, recorder, told, true).await;
}

/// Watches for as long as it is polled, and leaves no stream that answers.
pub(crate) async fn stay(client: Client, rng: Rng, recorder: Recorder<Call, Answer>, told: Told) {
    watch(client, rng, recorder, told, false).await;
}

async fn watch(client: Client, mut rng: Rng, recorder: Recorder<Call, Answer>, told: Told, moves: bool) {
    // From the beginning, or from now on.
    let next = if rng.chance(500) { 1 } else { 0 };
    let silence_max = if moves { SILENCE_MAX } else { STAYING_SILENCE_MAX };
    let mut watch = Watch { client, recorder, told, next, silence_max };
    loop {
        let channel = watch.client.any(&mut rng);
        let (requests, queue) = mpsc::channel(4);
        let create = pb::WatchCreateRequest {
            key: kv::PREFIX.into(),
            range_end: range_end().into(),
            start_revision: watch.next,
            prev_kv: rng.chance(500),
            progress_notify: true,
            fragment: rng.chance(500),
            ..Default::default()
        };
        let prev_kv = create.prev_kv;
        let create = pb::watch_request::RequestUnion::CreateRequest(create);
        let _ = requests.try_send(pb::WatchRequest { request_union: Some(create) });
        let mut watcher = WatchClient::new(channel);
        let opened = timeout(SILENCE_MAX, watcher.watch(ReceiverStream::new(queue))).await;
        if let Ok(Ok(stream)) = opened {
            // Some streams are left without a reason.
            let stay = if moves { Duration::from_millis(rng.between(500, 10_000)) } else { STAY };
            let _ = timeout(stay, watch.follow(stream.into_inner(), &requests, prev_kv)).await;
        }
        // Some begin anew, from the beginning or from where history still goes back to; not in the end, when
        // everyone is to come to an end.
        if moves && !watch.client.stopped() && rng.chance(400) {
            watch.next = 1;
        }
        tokio::time::sleep(Duration::from_millis(rng.between(10, 1_000))).await;
    }
}

struct Watch {
    client: Client,
    recorder: Recorder<Call, Answer>,
    told: Told,
    /// First revision that was not told yet; 0: any.
    next: i64,
    silence_max: Duration,
}

impl Watch {
    fn note(&self, message: Message) {
        let moment = self.recorder.lock().moment(self.client.at());
        self.told.lock().told.push((moment, message));
    }

    async fn follow(
        &mut self,
        mut stream: Streaming<pb::WatchResponse>,
        requests: &mpsc::Sender<pb::WatchRequest>,
        prev_kv: bool,
    ) {
        let mut asked = false;
        loop {
            let response = match timeout(self.silence_max, stream.message()).await {
                Ok(Ok(Some(response))) => response,
                Ok(_) => return,
                Err(_) if asked => return,
                Err(_) => {
                    asked = true;
                    let progress = pb::watch_request::RequestUnion::ProgressRequest(Default::default());
                    let _ = requests.try_send(pb::WatchRequest { request_union: Some(progress) });
                    continue;
                }
            };
            asked = false;
            let revision = response.header.as_ref().map_or(0, |header| header.revision);
            if response.canceled {
                if response.compact_revision > 0 {
                    self.note(Message::Compacted);
                    self.next = response.compact_revision;
                }
                return;
            }
            if response.created {
                if self.next == 0 {
                    self.next = revision + 1;
                }
                self.note(Message::Opened { from: self.next });
            } else if response.events.is_empty() {
                self.note(Message::Progress { revision });
                self.next = self.next.max(revision + 1);
            } else {
                let events: Vec<Event> = response.events.iter().map(|e| event(e, prev_kv)).collect();
                if let (Some(last), false) = (events.last(), response.fragment) {
                    self.next = last.change.revision + 1;
                }
                self.note(Message::Events { events, fragment: response.fragment });
            }
        }
    }
}

fn event(event: &mvccpb::Event, prev_kv: bool) -> Event {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let kv = event.kv.clone().unwrap_or_default();
    let is_put = event.r#type == i32::from(mvccpb::event::EventType::Put);
    let before = event.prev_kv.as_ref().map(|kv| text(&kv.value).into());
    Event {
        change: Change {
            key: text(&kv.key).into(),
            value: is_put.then(|| text(&kv.value).into()),
            revision: kv.mod_revision,
        },
        previous: prev_kv.then_some(before),
    }
}
