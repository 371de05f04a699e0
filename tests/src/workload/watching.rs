//! A watcher at one server over the bare etcd API, so that every message is seen: it asks for progress, takes fragments and
//! previous values, and after a break goes on from the first revision that it was not told whole. History that all were told
//! is compacted meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::sync::mpsc;
use tokio::time::{interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use weft_client::proto::etcd as pb;
use weft_client::proto::etcd::watch_client::WatchClient;
use weft_client::proto::mvccpb;

use crate::checker::watch::{Change, Event, Message, Watcher};
use crate::workload::{Run, keys};

/// How often progress is asked for.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);
/// A connection that is silent for so long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// How often history is forgotten.
const COMPACTION_INTERVAL: Duration = Duration::from_secs(2);
/// Pause before another connection.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// How far the watchers of a run have come: for each the first revision that it was not told whole.
#[derive(Debug, Clone)]
pub struct Progress(Arc<Vec<AtomicI64>>);

impl Progress {
    /// Of `count` watchers that begin with revision 1.
    pub fn new(count: usize) -> Self {
        Self(Arc::new((0..count).map(|_| AtomicI64::new(1)).collect()))
    }

    /// Every watcher was told everything below this revision.
    pub fn lowest(&self) -> i64 {
        self.0.iter().map(|next| next.load(Ordering::Relaxed)).min().unwrap_or(1)
    }
}

/// Watches the keys' range at server `i` from the first revision on, until everything up to the revision that `until` tells
/// was told.
pub async fn watch(
    run: Run,
    i: usize,
    progress: Progress,
    until: tokio::sync::watch::Receiver<Option<i64>>,
) -> Watcher {
    let mut watching = Watching::new(run, i, 1, until);
    watching.progress = Some(progress);
    watching.follow().await
}

/// What server `i` tells of the revisions in `[from, until]` now.
pub async fn retell(run: Run, i: usize, from: i64, until: i64) -> Watcher {
    let (_keep, until) = tokio::sync::watch::channel(Some(until));
    Watching::new(run, i, from, until).follow().await
}

/// Lets the group forget what every watcher was told, every now and then, until the run is stopped.
pub async fn compact(run: Run, progress: Progress) {
    let (_, mut rng) = run.process();
    while !run.is_stopped() {
        tokio::time::sleep(COMPACTION_INTERVAL).await;
        let server = &run.endpoints()[rng.usize(0..run.endpoints().len())];
        // A server that is away or says that this was done already: the next time will do.
        let _ = timeout(SILENCE_MAX, compact_at(server, progress.lowest() - 1)).await;
    }
}

async fn compact_at(server: &str, revision: i64) -> Result<()> {
    let channel = Endpoint::from_shared(format!("http://{server}"))?.connect().await?;
    let request = pb::CompactionRequest { revision, physical: false };
    pb::kv_client::KvClient::new(channel).compact(request).await?;
    Ok(())
}

struct Watching {
    run: Run,
    endpoint: usize,
    watcher: Watcher,
    /// First revision that was not told whole.
    next: i64,
    progress: Option<Progress>,
    until: tokio::sync::watch::Receiver<Option<i64>>,
}

impl Watching {
    fn new(run: Run, i: usize, from: i64, until: tokio::sync::watch::Receiver<Option<i64>>) -> Self {
        let (start, end) = (keys::RANGE.0.into(), Some(keys::RANGE.1.into()));
        let watcher = Watcher { name: format!("watcher at s{}", i + 1), start, end, told: Vec::new() };
        Self { run, endpoint: i, watcher, next: from, progress: None, until }
    }

    async fn follow(mut self) -> Watcher {
        while !self.is_done() {
            // However the stream ended, the next one goes on; what matters is in the messages.
            if self.stream().await.is_err() {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
        self.watcher
    }

    fn is_done(&self) -> bool {
        self.until.borrow().is_some_and(|until| self.next > until)
    }

    async fn stream(&mut self) -> Result<()> {
        let channel = Endpoint::from_shared(format!("http://{}", self.run.endpoints()[self.endpoint]))?
            .connect_timeout(SILENCE_MAX)
            .connect()
            .await?;
        let (requests, outgoing) = mpsc::channel(16);
        requests.send(create(self.next)).await?;
        let mut client = WatchClient::new(channel);
        let opened = client.watch(ReceiverStream::new(outgoing));
        let mut messages = timeout(SILENCE_MAX, opened).await??.into_inner();
        let created = timeout(SILENCE_MAX, messages.message()).await??.context("no answer")?;
        if !created.created || created.canceled {
            bail!("not created: {created:?}");
        }
        self.tell(Message::Opened { from: self.next });
        let mut progress = interval(PROGRESS_INTERVAL);
        while !self.is_done() {
            tokio::select! {
                message = timeout(SILENCE_MAX, messages.message()) => match message?? {
                    Some(message) => self.message(message)?,
                    None => bail!("the server ended the stream"),
                },
                // A full queue: the connection is stuck, and its silence ends it.
                _ = progress.tick() => drop(requests.try_send(ask_progress())),
            }
        }
        Ok(())
    }

    fn message(&mut self, message: pb::WatchResponse) -> Result<()> {
        let revision = message.header.context("a message without a header")?.revision;
        if message.canceled {
            self.tell(Message::Compacted);
            bail!("cancelled: {}", message.cancel_reason);
        }
        let Some(last) = message.events.last().and_then(|event| event.kv.as_ref()).map(|kv| kv.mod_revision)
        else {
            self.tell(Message::Progress { revision });
            self.advance(revision + 1);
            return Ok(());
        };
        let events = message.events.into_iter().map(event).collect::<Result<_>>()?;
        let fragment = message.fragment;
        self.tell(Message::Events { events, fragment });
        // Of a fragment's last revision more is to come.
        self.advance(if fragment { last } else { last + 1 });
        Ok(())
    }

    fn advance(&mut self, next: i64) {
        self.next = self.next.max(next);
        if let Some(Progress(all)) = &self.progress {
            all[self.endpoint].store(self.next, Ordering::Relaxed);
        }
    }

    fn tell(&mut self, message: Message) {
        self.watcher.told.push((self.run.moment(), message));
    }
}

fn create(start_revision: i64) -> pb::WatchRequest {
    let create = pb::WatchCreateRequest {
        key: keys::RANGE.0.into(),
        range_end: keys::RANGE.1.into(),
        start_revision,
        prev_kv: true,
        fragment: true,
        ..Default::default()
    };
    pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) }
}

fn ask_progress() -> pb::WatchRequest {
    let progress = pb::watch_request::RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
    pb::WatchRequest { request_union: Some(progress) }
}

fn event(event: mvccpb::Event) -> Result<Event> {
    let deleted = event.r#type() == mvccpb::event::EventType::Delete;
    let kv = event.kv.context("an event without a key")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).as_ref().into();
    let change =
        Change { key: text(&kv.key), value: (!deleted).then(|| text(&kv.value)), revision: kv.mod_revision };
    Ok(Event { change, previous: Some(event.prev_kv.map(|kv| text(&kv.value))) })
}
