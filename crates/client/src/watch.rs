//! Watching keys: every change once, in the order of revisions, also across servers.
//!
//! A [`Watcher`] remembers the last revision that it has handed out whole. When its stream breaks it
//! opens another, on whichever endpoint answers, from the next revision: nothing is missed and nothing
//! comes twice. Only when that history has been compacted meanwhile does it end, with
//! [`Error::Compacted`], because then something may have been missed.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use weft_xds_proto::etcdserverpb as pb;
use weft_xds_proto::etcdserverpb::watch_client::WatchClient;
use weft_xds_proto::mvccpb;

use crate::client::{Client, Patience, Repeat};
use crate::endpoint::{Failure, MESSAGE_BYTES_MAX};
use crate::error::Error;
use crate::kv::{KeyRange, KeyValue, revision};

/// What to watch.
#[derive(Debug, Clone)]
pub struct WatchOptions {
    /// The keys.
    pub range: KeyRange,
    /// First revision to answer; 0 for whatever happens from now on.
    pub start_revision: i64,
    /// With each event, the key-value before it.
    pub prev_kv: bool,
    /// Leave puts out.
    pub no_put: bool,
    /// Leave deletes out.
    pub no_delete: bool,
}

impl WatchOptions {
    /// All changes of `range` from now on.
    pub fn new(range: impl Into<KeyRange>) -> Self {
        Self { range: range.into(), start_revision: 0, prev_kv: false, no_put: false, no_delete: false }
    }
}

/// What happened to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum EventKind {
    Put,
    Delete,
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Put or delete.
    pub kind: EventKind,
    /// After the change; a delete carries only key and revision.
    pub kv: KeyValue,
    /// Before it, if asked for and it existed.
    pub prev_kv: Option<KeyValue>,
}

/// A stream on which a server has accepted the watch.
#[derive(Debug)]
struct Open {
    endpoint: String,
    messages: Streaming<pb::WatchResponse>,
    /// Closing the requests would end the watch.
    _requests: mpsc::Sender<pb::WatchRequest>,
}

/// A running watch. Dropping it ends it.
#[derive(Debug)]
pub struct Watcher {
    client: Client,
    options: WatchOptions,
    stream: Option<Open>,
    /// First revision that was not handed out yet; 0 until a server has told its own.
    next: i64,
    /// Fragments of a revision whose rest has not come yet.
    pending: Vec<Event>,
    /// The start was answered once; from then on a lost server is no reason to give up.
    established: bool,
}

impl Client {
    /// Watches keys. Answers when a server has accepted the watch, so that a change made after this
    /// returns is seen.
    ///
    /// # Errors
    /// Those of [`Client`]; `Compacted` if `start_revision` is no longer there.
    pub async fn watch(&self, options: WatchOptions) -> Result<Watcher, Error> {
        let next = options.start_revision;
        let mut watcher = Watcher {
            client: self.clone(),
            options,
            stream: None,
            next,
            pending: Vec::new(),
            established: false,
        };
        watcher.open().await?;
        Ok(watcher)
    }
}

impl Watcher {
    /// The next changes: one or more, of one or more whole revisions, in order. Waits for them, and for
    /// a server when none is there. May be cancelled and called again: nothing is lost.
    ///
    /// # Errors
    /// `Compacted`, `Refused`, `Protocol`: the watch is over.
    pub async fn next(&mut self) -> Result<Vec<Event>, Error> {
        loop {
            let Some(Open { endpoint, messages, .. }) = &mut self.stream else {
                // What was not whole is sent again.
                self.pending.clear();
                self.open().await?;
                continue;
            };
            let message = match messages.message().await {
                Ok(Some(message)) => message,
                Ok(None) => {
                    self.lost("the server ended the stream");
                    continue;
                }
                Err(status) => {
                    let failure = Failure::of(&status);
                    if let Failure::Refused(code, message) = failure {
                        let endpoint = endpoint.clone();
                        self.stream = None;
                        return Err(Error::Refused { endpoint, code, message });
                    }
                    self.lost(failure.why());
                    continue;
                }
            };
            if message.canceled {
                let error = canceled(endpoint, self.next, &message);
                self.stream = None;
                return Err(error);
            }
            let fragment = message.fragment;
            if message.events.is_empty() {
                // A progress notice: everything up to its revision has been sent.
                self.next = self.next.max(revision(&message.header) + 1);
                continue;
            }
            self.pending.extend(message.events.into_iter().map(Event::from));
            if !fragment {
                let last = self.pending.last().map_or(0, |event| event.kv.mod_revision);
                self.next = self.next.max(last + 1);
                return Ok(std::mem::take(&mut self.pending));
            }
        }
    }

    /// First revision that was not handed out yet: where another watch would go on.
    pub fn next_revision(&self) -> i64 {
        self.next
    }

    fn lost(&mut self, why: &str) {
        if let Some(Open { endpoint, .. }) = &self.stream {
            tracing::warn!(endpoint, why, resume_from = self.next, "watch interrupted; resuming");
        }
        self.stream = None;
    }

    async fn open(&mut self) -> Result<(), Error> {
        let mut filters = Vec::new();
        if self.options.no_put {
            filters.push(pb::watch_create_request::FilterType::Noput.into());
        }
        if self.options.no_delete {
            filters.push(pb::watch_create_request::FilterType::Nodelete.into());
        }
        let create = pb::WatchRequest {
            request_union: Some(pb::watch_request::RequestUnion::CreateRequest(pb::WatchCreateRequest {
                key: self.options.range.key.clone(),
                range_end: self.options.range.end.clone(),
                start_revision: self.next,
                // Keeps `next` near the present, so that a quiet watch survives a compaction.
                progress_notify: true,
                filters,
                prev_kv: self.options.prev_kv,
                fragment: true,
                ..Default::default()
            })),
        };
        let ordinary = self.client.patience();
        let patience = Patience { total: if self.established { None } else { ordinary.total }, ..ordinary };
        let ((requests, messages, created), endpoint) = self
            .client
            .call_with("watch", Repeat::Safe, patience, |channel| {
                let create = create.clone();
                async move {
                    let (requests, outgoing) = mpsc::channel(4);
                    // Room for four and nothing in it yet.
                    let _ = requests.try_send(create);
                    let mut client = WatchClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
                    let mut messages = client.watch(ReceiverStream::new(outgoing)).await?.into_inner();
                    let first = messages.message().await?;
                    let first =
                        first.ok_or_else(|| tonic::Status::unavailable("the server ended the stream"))?;
                    Ok((requests, messages, first))
                }
            })
            .await?;
        if created.canceled {
            return Err(canceled(&endpoint, self.next, &created));
        }
        if !created.created {
            return Err(Error::Protocol {
                endpoint,
                what: "a watch whose first answer is not its creation".to_owned(),
            });
        }
        if self.next == 0 {
            // "Now" has a number from here on, so that a break before the first event loses nothing.
            self.next = revision(&created.header) + 1;
        }
        self.established = true;
        self.stream = Some(Open { endpoint, messages, _requests: requests });
        Ok(())
    }
}

fn canceled(endpoint: &str, requested: i64, message: &pb::WatchResponse) -> Error {
    if message.compact_revision > 0 {
        return Error::Compacted { requested, oldest: message.compact_revision };
    }
    let why =
        if message.cancel_reason.is_empty() { "the watch was cancelled" } else { &message.cancel_reason };
    Error::Refused { endpoint: endpoint.to_owned(), code: tonic::Code::Cancelled, message: why.to_owned() }
}

impl From<mvccpb::Event> for Event {
    fn from(event: mvccpb::Event) -> Self {
        let kind = match event.r#type() {
            mvccpb::event::EventType::Put => EventKind::Put,
            mvccpb::event::EventType::Delete => EventKind::Delete,
        };
        Self {
            kind,
            kv: event.kv.map(KeyValue::from).unwrap_or_default(),
            prev_kv: event.prev_kv.map(KeyValue::from),
        }
    }
}
