//! `Watch`: one stream in both directions, many watchers on it.
//!
//! There is no task and no queue of events per stream. The answers are a [`Stream`](futures::Stream) that
//! the HTTP/2 connection polls when the client has room; each poll takes the next request or asks the hub
//! for one watcher's next events. A client that does not read is not polled for: it holds the one message
//! in flight and what the hub holds for its watchers, which is bounded. When it reads again, each watcher
//! goes on in history where it stopped, or is canceled as compacted. Dropping the stream, which is what a
//! lost connection does, closes its watchers.
//!
//! ```text
//! create ─► created ─► (events | progress)* ─► canceled      by request, by compaction, by a permission revoked
//!        └► created+canceled, watch_id -1                    refused
//! ```

mod answer;
mod guard;

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::time::{Instant, Sleep};
use tonic::{Request, Status, Streaming};
use weft_state::auth::Caller;
use weft_state::machine::Machine;
use weft_state::watch::{WatchOptions, WatchPoll, WatchRange};
use weft_xds_proto::etcdserverpb as pb;
use weft_xds_proto::etcdserverpb::watch_create_request::FilterType;
use weft_xds_proto::etcdserverpb::watch_request::RequestUnion;

use self::guard::Guard;
use super::stream_end::stream_end;
use super::{Answer, Api, requires_leader, status};
use crate::api::caller::Asking;
use crate::watch_driver::{Wakes, Watcher};

/// Stands for "no watcher": a refused one, or all of a stream in an answer to a progress request.
const NO_WATCH_ID: i64 = -1;

#[tonic::async_trait]
impl pb::watch_server::Watch for Api {
    type WatchStream = BoxStream<'static, Result<pb::WatchResponse, Status>>;

    async fn watch(&self, request: Request<Streaming<pb::WatchRequest>>) -> Answer<Self::WatchStream> {
        self.admit(request.metadata())?;
        let Asking { caller, .. } = self.asking(request.metadata()).await?;
        let end = stream_end(self, requires_leader(request.metadata()));
        let session = Session::new(self.clone(), caller, request.into_inner(), end);
        let stream = stream::unfold(session, |mut session| async move {
            let answer = session.next().await?;
            session.finished = answer.is_err();
            Some((answer, session))
        });
        Ok(stream.boxed().into())
    }
}

/// One stream.
struct Session {
    api: Api,
    caller: Caller,
    input: Streaming<pb::WatchRequest>,
    input_open: bool,
    end: BoxFuture<'static, Status>,
    finished: bool,
    watchers: HashMap<i64, Watching>,
    next_id: i64,
    /// Ids (as tokens) of watchers that may have something to tell.
    wakes: Arc<Wakes>,
    /// Answers that are ready; at most one watcher's fragments and one answer more.
    outbox: VecDeque<pb::WatchResponse>,
    /// A progress request is unanswered. Several are answered once.
    progress_requested: bool,
    progress_tick: Pin<Box<Sleep>>,
    /// A watcher asked for `progress_notify`; the tick runs from then on.
    notifies: bool,
}

/// One watcher of the stream.
struct Watching {
    watcher: Watcher,
    guard: Guard,
    prev_kv: bool,
    fragment: bool,
    progress_notify: bool,
    /// Nothing was sent since the last progress tick.
    quiet: bool,
    /// Is owed a progress notification as soon as it is synced.
    due: bool,
}

impl Session {
    fn new(
        api: Api,
        caller: Caller,
        input: Streaming<pb::WatchRequest>,
        end: BoxFuture<'static, Status>,
    ) -> Self {
        let progress_tick = Box::pin(tokio::time::sleep_until(next_tick(&api)));
        Session {
            api,
            caller,
            input,
            input_open: true,
            end,
            finished: false,
            watchers: HashMap::new(),
            next_id: 0,
            wakes: Arc::default(),
            outbox: VecDeque::new(),
            progress_requested: false,
            progress_tick,
            notifies: false,
        }
    }

    async fn next(&mut self) -> Option<Result<pb::WatchResponse, Status>> {
        while !self.finished {
            // Many idle watchers may be looked at without an answer; let others run in between.
            tokio::task::coop::consume_budget().await;
            if let Some(answer) = self.outbox.pop_front() {
                return Some(Ok(answer));
            }
            if self.progress_requested && self.wakes.is_empty() {
                self.answer_progress_request();
                continue;
            }
            if !self.input_open && self.watchers.is_empty() {
                return None; // the client will ask for nothing more, and nothing is left to tell
            }
            // In random order, so that neither a flood of requests nor a busy watcher starves the other.
            tokio::select! {
                status = &mut self.end => return Some(Err(status)),
                token = self.wakes.next() => self.advance(token as i64),
                request = self.input.message(), if self.input_open => match request {
                    Ok(Some(request)) => self.handle(request),
                    Ok(None) => self.input_open = false,
                    Err(_) => return None, // the client is gone
                },
                () = self.progress_tick.as_mut(), if self.notifies => self.progress_is_due(),
            }
        }
        None
    }

    fn handle(&mut self, request: pb::WatchRequest) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => {
                if let Err(reason) = self.create(create) {
                    let header = Some(self.api.header_now());
                    self.outbox.push_back(answer::refused(header, reason));
                }
            }
            Some(RequestUnion::CancelRequest(cancel)) => {
                let closed = self.watchers.remove(&cancel.watch_id);
                // An unknown id is not answered, as in etcd: it may have been canceled just before.
                let header = closed.map(|_| self.api.header_now());
                self.outbox.extend(header.map(|header| answer::canceled(Some(header), cancel.watch_id)));
            }
            Some(RequestUnion::ProgressRequest(_)) => self.progress_requested = true,
            None => {} // as in etcd: a request of a newer kind must not end the other watches
        }
    }

    /// Opens a watcher, or says why not.
    fn create(&mut self, request: pb::WatchCreateRequest) -> Result<(), String> {
        let limits = &self.api.options.limits;
        if request.watch_id < 0 {
            return Err(format!(
                "etcdserver: watch_id {} is negative; 0 lets the server choose",
                request.watch_id
            ));
        }
        if self.watchers.contains_key(&request.watch_id) && request.watch_id != 0 {
            return Err("mvcc: duplicate watch ID provided on the WatchStream".to_owned());
        }
        for (what, seen, limit) in [
            ("stream", self.watchers.len(), limits.watchers_per_stream_max),
            ("server", self.api.watches.count(), limits.watchers_per_server_max),
        ] {
            if seen >= limit {
                return Err(format!(
                    "etcdserver: too many requests: {seen} watchers on this {what}, limit {limit}"
                ));
            }
        }
        let options = watch_options(&request)?;
        let mut guard = Guard::new(self.caller.clone(), options.range.clone());
        if let Err(error) = guard.check(&self.api.coordinator.auth()) {
            return Err(status::auth(&error).message().to_owned());
        }
        let id = if request.watch_id == 0 { self.free_id() } else { request.watch_id };
        let (watcher, current) =
            self.api.watches.open_among(&self.api.coordinator, options, &self.wakes, id as u64);
        self.notifies |= request.progress_notify;
        self.watchers.insert(
            id,
            Watching {
                watcher,
                guard,
                prev_kv: request.prev_kv,
                fragment: request.fragment,
                progress_notify: request.progress_notify,
                quiet: true,
                due: false,
            },
        );
        self.outbox.push_back(answer::created(Some(self.api.header_at(current)), id));
        Ok(())
    }

    /// From 0 upwards; not one that the client chose, and not one that was in use before.
    fn free_id(&mut self) -> i64 {
        while self.watchers.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    /// Puts what the watcher has to tell into the outbox.
    fn advance(&mut self, id: i64) {
        // A wake-up may outlive its watcher.
        let Some(watching) = self.watchers.get_mut(&id) else { return };
        let limits = &self.api.options.limits;
        let poll = watching.watcher.poll(limits.watch_response_bytes);
        // After the poll: users and roles as of now are at least as new as the events.
        if let Err(error) = watching.guard.check(&self.api.coordinator.auth()) {
            self.watchers.remove(&id);
            let header = Some(self.api.header_now());
            self.outbox.push_back(answer::forbidden(header, id, &status::auth(&error)));
            return;
        }
        match poll {
            WatchPoll::Events { revision, events } => {
                watching.quiet = false;
                let header = Some(self.api.header_at(revision));
                let fragment_bytes = watching.fragment.then_some(limits.watch_fragment_bytes);
                self.outbox.extend(answer::events(header, id, &events, watching.prev_kv, fragment_bytes));
                self.wakes.wake(id as u64); // there may be more; after the others' turn
            }
            WatchPoll::Compacted { oldest } => {
                self.watchers.remove(&id);
                let header = Some(self.api.header_now());
                self.outbox.push_back(answer::compacted(header, id, oldest));
            }
            WatchPoll::Idle { synced_to } => {
                if std::mem::take(&mut watching.due) {
                    let header = Some(self.api.header_at(synced_to));
                    self.outbox.push_back(answer::progress(header, id));
                }
            }
        }
    }

    /// Says, for all watchers at once, up to which revision everything has been sent. Only when nothing is
    /// left to send, so that the answer never runs ahead of the events (W05).
    fn answer_progress_request(&mut self) {
        let mut synced_to = self.api.coordinator.read(Machine::revision);
        let ids: Vec<i64> = self.watchers.keys().copied().collect();
        for id in ids {
            self.advance(id);
            if !self.outbox.is_empty() {
                return; // send that first, then look again
            }
            if let Some(watching) = self.watchers.get(&id) {
                synced_to = synced_to.min(watching.watcher.synced_to());
            }
        }
        self.progress_requested = false;
        self.outbox.push_back(answer::progress(Some(self.api.header_at(synced_to)), NO_WATCH_ID));
    }

    /// Those that were told nothing for an interval are told how far they are, once they are synced.
    fn progress_is_due(&mut self) {
        for (id, watching) in &mut self.watchers {
            if watching.progress_notify && std::mem::replace(&mut watching.quiet, true) {
                watching.due = true;
                self.wakes.wake(*id as u64);
            }
        }
        self.progress_tick.as_mut().reset(next_tick(&self.api));
    }
}

fn next_tick(api: &Api) -> Instant {
    let interval = api.options.limits.progress_notify_interval;
    Instant::now() + interval + interval.mul_f64(fastrand::f64() / 10.0)
}

/// What to watch, or why not.
fn watch_options(request: &pb::WatchCreateRequest) -> Result<WatchOptions, String> {
    if request.start_revision < 0 {
        return Err(status::COMPACTED.to_owned()); // newer etcd's answer: such a revision never was
    }
    let mut options = WatchOptions {
        range: WatchRange { key: request.key.clone(), range_end: request.range_end.clone() },
        start: request.start_revision,
        prev_kv: request.prev_kv,
        no_put: false,
        no_delete: false,
    };
    if options.range.key.is_empty() {
        options.range.key = Bytes::from_static(b"\0"); // the smallest key
    }
    let WatchRange { key, range_end } = &options.range;
    if !range_end.is_empty() && range_end.as_ref() != b"\0" && key >= range_end {
        return Err("mvcc: watcher range is empty".to_owned());
    }
    for filter in &request.filters {
        match FilterType::try_from(*filter) {
            Ok(FilterType::Noput) => options.no_put = true,
            Ok(FilterType::Nodelete) => options.no_delete = true,
            Err(_) => {
                return Err(format!(
                    "etcdserver: watch filter {filter} is unknown: allowed are 0 NOPUT, 1 NODELETE"
                ));
            }
        }
    }
    Ok(options)
}
