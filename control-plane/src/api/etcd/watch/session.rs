//! One stream: its requests, its watchers, and what each has to tell.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use tokio::time::{Instant, Sleep};
use tonic::{Status, Streaming};
use weft_state::auth::Caller;
use weft_state::command::Revision;
use weft_state::machine::Machine;
use weft_state::watch::{WatchOptions, WatchPoll, WatchRange};
use weft_xds_proto::etcdserverpb as pb;
use weft_xds_proto::etcdserverpb::watch_create_request::FilterType;
use weft_xds_proto::etcdserverpb::watch_request::RequestUnion;

use super::frames::{Frames, PIECE_BYTES, encode_header};
use super::guard::Guard;
use super::{answer, fragment};
use crate::api::etcd::{Api, status};
use crate::watch_driver::{Wakes, Watcher};

/// Stands for "no watcher": a refused one, or all of a stream in an answer to a progress request.
pub const NO_WATCH_ID: i64 = -1;

/// Watchers that are looked at between two looks for a request, so that neither a flood of requests nor busy
/// watchers starve the other.
const TURNS_PER_REQUEST: usize = 32;

/// Rounds of one poll. Many watchers may be looked at without an answer; then others run in between.
const ROUNDS_PER_POLL: usize = 32;

/// One stream.
pub struct Session {
    api: Api,
    caller: Caller,
    input: Streaming<pb::WatchRequest>,
    input_open: bool,
    end: BoxFuture<'static, Status>,
    watchers: BTreeMap<i64, Watching>,
    next_id: i64,
    /// Ids (as tokens) of watchers that may have something to tell.
    wakes: Arc<Wakes>,
    /// A progress request is unanswered. Several are answered once.
    progress_requested: bool,
    progress_tick: Pin<Box<Sleep>>,
    /// A watcher asked for `progress_notify`; the tick runs from then on.
    notifies: bool,
    /// The header of the last events: many watchers are told of the same revision.
    header: EncodedHeader,
}

#[derive(Default)]
struct EncodedHeader {
    of: Option<(Revision, u64)>,
    bytes: Vec<u8>,
}

/// One watcher of the stream.
struct Watching {
    watcher: Watcher,
    guard: Guard,
    fragment: bool,
    progress_notify: bool,
    /// Nothing was sent since the last progress tick.
    quiet: bool,
    /// Is owed a progress notification as soon as it is synced.
    due: bool,
}

impl Session {
    pub fn new(
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
            watchers: BTreeMap::new(),
            next_id: 0,
            wakes: Arc::default(),
            progress_requested: false,
            progress_tick,
            notifies: false,
            header: EncodedHeader::default(),
        }
    }

    /// Puts what there is to say into `out`, until that is about a piece; none: something is there. Or the
    /// status with which the stream ends, and is not to be polled again.
    pub fn poll(&mut self, cx: &mut Context<'_>, out: &mut Frames) -> Poll<Option<Status>> {
        if let Poll::Ready(status) = self.end.poll_unpin(cx) {
            return Poll::Ready(Some(status));
        }
        for _ in 0..ROUNDS_PER_POLL {
            let mut idle = true;
            while self.notifies && self.progress_tick.poll_unpin(cx).is_ready() {
                self.progress_is_due();
            }
            if self.input_open
                && let Poll::Ready(request) = self.input.poll_next_unpin(cx)
            {
                idle = false;
                match request {
                    Some(Ok(request)) => self.handle(request, out),
                    Some(Err(status)) => return Poll::Ready(Some(status)), // cut off, or no request at all
                    None => self.input_open = false,
                }
            }
            for _ in 0..TURNS_PER_REQUEST {
                if out.len() >= PIECE_BYTES {
                    return Poll::Ready(None);
                }
                let Poll::Ready(token) = self.wakes.poll_pop(cx) else { break };
                idle = false;
                self.advance(token as i64, out);
            }
            if self.progress_requested && self.wakes.is_empty() {
                idle = false;
                self.answer_progress_request(out);
            }
            if idle && out.len() > 0 {
                return Poll::Ready(None);
            }
            if idle && !self.input_open && self.watchers.is_empty() {
                // The client will ask for nothing more, and nothing is left to tell.
                return Poll::Ready(Some(Status::ok("")));
            }
            if idle {
                return Poll::Pending;
            }
        }
        if out.len() > 0 {
            return Poll::Ready(None);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn handle(&mut self, request: pb::WatchRequest, out: &mut Frames) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => {
                let answer = self.create(create);
                out.message(&answer.unwrap_or_else(|reason| {
                    let header = Some(self.api.header_now());
                    answer::refused(header, reason)
                }));
            }
            Some(RequestUnion::CancelRequest(cancel)) => {
                let closed = self.watchers.remove(&cancel.watch_id);
                // An unknown id is not answered, as in etcd: it may have been canceled just before.
                let answer = closed.map(|_| answer::canceled(Some(self.api.header_now()), cancel.watch_id));
                answer.iter().for_each(|answer| out.message(answer));
            }
            Some(RequestUnion::ProgressRequest(_)) => self.progress_requested = true,
            None => {} // as in etcd: a request of a newer kind must not end the other watches
        }
    }

    /// Opens a watcher and answers that, or says why not.
    fn create(&mut self, request: pb::WatchCreateRequest) -> Result<pb::WatchResponse, String> {
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
                fragment: request.fragment,
                progress_notify: request.progress_notify,
                quiet: true,
                due: false,
            },
        );
        Ok(answer::created(Some(self.api.header_at(current)), id))
    }

    /// From 0 upwards; not one that the client chose, and not one that was in use before.
    fn free_id(&mut self) -> i64 {
        while self.watchers.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    /// Says what the watcher has to tell.
    fn advance(&mut self, id: i64, out: &mut Frames) {
        // A wake-up may outlive its watcher.
        let Some(watching) = self.watchers.get_mut(&id) else { return };
        let limits = &self.api.options.limits;
        let poll = watching.watcher.poll(limits.watch_response_bytes);
        // After the poll: users and roles as of now are at least as new as the events.
        if let Err(error) = watching.guard.check(&self.api.coordinator.auth()) {
            self.watchers.remove(&id);
            let header = Some(self.api.header_now());
            out.message(&answer::forbidden(header, id, &status::auth(&error)));
            return;
        }
        match poll {
            WatchPoll::Events { revision, events, more } => {
                watching.quiet = false;
                let header = self.header.at(&self.api, revision);
                let bytes_max = watching.fragment.then_some(limits.watch_fragment_bytes);
                let mut parts = fragment::parts(&events, bytes_max).peekable();
                while let Some(part) = parts.next() {
                    out.events(header, id, part, parts.peek().is_some());
                }
                if more || watching.due {
                    self.wakes.wake(id as u64); // after the others' turn
                }
            }
            WatchPoll::Compacted { oldest } => {
                self.watchers.remove(&id);
                let header = Some(self.api.header_now());
                out.message(&answer::compacted(header, id, oldest));
            }
            WatchPoll::Idle { synced_to } => {
                if std::mem::take(&mut watching.due) {
                    let header = Some(self.api.header_at(synced_to));
                    out.message(&answer::progress(header, id));
                }
            }
        }
    }

    /// Says, for all watchers at once, up to which revision everything has been sent. Only when nothing is
    /// left to send, so that the answer never runs ahead of the events (W05).
    fn answer_progress_request(&mut self, out: &mut Frames) {
        let before = out.len();
        let mut synced_to = self.api.coordinator.read(Machine::revision);
        let ids: Vec<i64> = self.watchers.keys().copied().collect();
        for id in ids {
            self.advance(id, out);
            if out.len() > before {
                return; // that comes first; then look again
            }
            if let Some(watching) = self.watchers.get(&id) {
                synced_to = synced_to.min(watching.watcher.synced_to());
            }
        }
        self.progress_requested = false;
        out.message(&answer::progress(Some(self.api.header_at(synced_to)), NO_WATCH_ID));
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

impl EncodedHeader {
    /// For events: the term is that of what was applied last, which is at least theirs.
    fn at(&mut self, api: &Api, revision: Revision) -> &[u8] {
        let of = (revision, api.watches.term());
        if self.of != Some(of) {
            self.of = Some(of);
            self.bytes = encode_header(&api.header(of.0, of.1));
        }
        &self.bytes
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
