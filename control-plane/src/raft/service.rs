//! The peer port: what other servers of the group ask of this one.

use std::{collections::HashSet, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, TransferLeaderRequest, VoteRequest,
};
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use tonic::{Request, Response, Status, Streaming};
use weft_core::id::{ClusterId, NodeId};
use weft_xds_proto::peer::{
    Ask, Frame, JoinRequest, JoinResponse, SnapshotChunk, Told, ask,
    peer_server::{Peer as PeerApi, PeerServer},
};

use super::{
    cluster::Verdict,
    codec::{
        self, Addressed, Append, AppendAnswer, Ballot, CodecError, SnapshotOffer, StreamAnswer, Transfer,
        VoteAnswer, VoteAsked,
    },
    driver::Node,
    exchange::{ANSWERING_MAX, told},
    forward::{Answer, Asked, Question},
    network::MESSAGE_BYTES_MAX,
    snapshot::Incoming,
    types::{BATCH_COMMANDS_MAX, Snapshot, SnapshotMeta, TypeConfig, Vote, check_command},
};
use crate::blocking;

/// Largest snapshot that is accepted, in bytes. It goes to disk as it comes.
const SNAPSHOT_BYTES_MAX: u64 = 8 * 1024 * 1024 * 1024;

/// Foreign clusters whose attempts were logged; further ones are refused without a line.
const FOREIGN_LOGGED_MAX: usize = 64;

type Reply<T> = Result<Response<T>, Status>;

/// Serves the peer port. Clones share all.
#[derive(Clone)]
pub struct Service {
    node: Arc<Node>,
    foreign: Arc<Mutex<HashSet<u64>>>,
}

impl Service {
    /// The gRPC service of a node.
    pub fn server(node: Arc<Node>) -> PeerServer<Service> {
        PeerServer::new(Service { node, foreign: Arc::default() })
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            // An answer to a proposal is as large as what the command asked for.
            .max_encoding_message_size(usize::MAX)
    }

    /// Lets in what is of this server's group only, and for this server.
    fn admit<T: DeserializeOwned>(&self, message: Message<'_>) -> Result<T, Status> {
        let Message { cluster_id, body, invites, from } = message;
        let verdict = self.node.cluster.judge(cluster_id, invites);
        match verdict {
            Verdict::Ours | Verdict::Invitation => {}
            Verdict::Foreign { ours } => return Err(self.foreign(cluster_id, ours, from)),
            Verdict::NoGroup => {
                return Err(Status::failed_precondition(format!(
                    "server {} belongs to no cluster and has not asked cluster {} to take it in",
                    self.node.id,
                    ClusterId(cluster_id)
                )));
            }
        }
        let addressed: Addressed<T> = codec::decode("message", body).map_err(bad)?;
        // An address may have passed to another server, or this one lost its data and has a new id.
        if addressed.to != self.node.id.0 {
            return Err(Status::failed_precondition(format!(
                "the message is for server {}, but this is server {}",
                NodeId(addressed.to),
                self.node.id
            )));
        }
        if verdict == Verdict::Invitation {
            let adopted = self
                .node
                .cluster
                .adopt(ClusterId(cluster_id))
                .map_err(|error| Status::internal(format!("cannot store the cluster's id: {error}")))?;
            if !adopted {
                return Err(Status::failed_precondition("another cluster was faster to take this server in"));
            }
        }
        Ok(addressed.message)
    }

    fn foreign(&self, cluster_id: u64, ours: ClusterId, from: Option<SocketAddr>) -> Status {
        let theirs = ClusterId(cluster_id);
        let mut foreign = self.foreign.lock();
        if foreign.len() < FOREIGN_LOGGED_MAX && foreign.insert(cluster_id) {
            let from = from.map(|a| a.to_string()).unwrap_or_default();
            tracing::error!(%theirs, %ours, from, "refuse a server of another cluster");
        }
        Status::failed_precondition(format!(
            "server {} belongs to cluster {ours}, the message is of cluster {theirs}",
            self.node.id
        ))
    }

    fn open<T: DeserializeOwned>(&self, request: Request<Frame>, invites: bool) -> Result<T, Status> {
        let from = request.remote_addr();
        let frame = request.into_inner();
        self.admit(Message { cluster_id: frame.cluster_id, body: &frame.body, invites, from })
    }

    fn append_of(
        &self,
        frame: Frame,
        from: Option<SocketAddr>,
    ) -> Result<AppendEntriesRequest<TypeConfig>, Status> {
        let message = Message { cluster_id: frame.cluster_id, body: &frame.body, invites: true, from };
        let append: Append = self.admit(message)?;
        AppendEntriesRequest::try_from(append).map_err(bad)
    }

    /// One of an exchange.
    async fn answer_to(&self, asked: Ask, from: Option<SocketAddr>) -> Result<Bytes, Status> {
        let Ask { cluster_id, body, .. } = asked;
        match body {
            Some(ask::Body::Append(body)) => {
                let append: Append = self.admit(Message { cluster_id, body: &body, invites: true, from })?;
                self.append(append).await.map(|answer| codec::encode(&answer))
            }
            Some(ask::Body::Question(body)) => {
                let asked: Asked = self.admit(Message { cluster_id, body: &body, invites: false, from })?;
                self.question(asked).await.map(|answer| codec::encode(&answer))
            }
            None => Err(Status::invalid_argument("an ask of an unknown kind: append or question")),
        }
    }

    async fn append(&self, append: Append) -> Result<AppendAnswer, Status> {
        let rpc = AppendEntriesRequest::<TypeConfig>::try_from(append).map_err(bad)?;
        let answer = self.node.raft.append_entries(rpc).await.map_err(ended)?;
        if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
            self.node.heard_from_leader();
        }
        Ok(AppendAnswer::from(answer))
    }

    async fn question(&self, asked: Asked) -> Result<Answer, Status> {
        let patience = asked.patience();
        if let Question::Propose(commands) = &asked.question {
            check(commands).map_err(Status::failed_precondition)?;
        }
        Ok(self.node.answer_here(asked.question, patience).await)
    }

    fn frame<T: Serialize>(&self, message: &T) -> Result<Frame, Status> {
        Ok(Frame { cluster_id: self.node.cluster.wire_id(), body: codec::encode(message) })
    }

    fn answer<T: Serialize>(&self, message: &T) -> Reply<Frame> {
        self.frame(message).map(Response::new)
    }
}

/// A message as it came, before anything is known of it.
struct Message<'a> {
    cluster_id: u64,
    body: &'a [u8],
    /// It is one that a leader sends to its members only.
    invites: bool,
    from: Option<SocketAddr>,
}

/// What is in the log must decode on every replica, for ever; one that cannot go on stops. So nothing enters
/// it that this server cannot read: it came from a newer version, or not from a server at all.
fn check(commands: &[Bytes]) -> Result<(), String> {
    if commands.len() > BATCH_COMMANDS_MAX {
        return Err(format!("{} commands in a message, allowed are {BATCH_COMMANDS_MAX}", commands.len()));
    }
    commands.iter().try_for_each(|command| check_command(command))
}

fn bad(error: CodecError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn ended(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

#[tonic::async_trait]
impl PeerApi for Service {
    type StreamAppendStream = BoxStream<'static, Result<Frame, Status>>;

    async fn stream_append(&self, request: Request<Streaming<Frame>>) -> Reply<Self::StreamAppendStream> {
        let from = request.remote_addr();
        let service = self.clone();
        // What ended the stream of requests too early, for the end of the stream of answers.
        let refusal: Arc<Mutex<Option<Status>>> = Arc::default();
        let (refused, checking) = (refusal.clone(), self.clone());
        let requests = futures::stream::unfold(request.into_inner(), move |mut frames| {
            let (refused, checking) = (refused.clone(), checking.clone());
            async move {
                let next = match frames.message().await {
                    Ok(None) => return None,
                    Ok(Some(frame)) => checking.append_of(frame, from),
                    Err(status) => Err(status),
                };
                match next {
                    Ok(append) => Some((append, frames)),
                    Err(status) => {
                        *refused.lock() = Some(status);
                        None
                    }
                }
            }
        });
        let answers = self.node.raft.stream_append(requests).map(move |result| {
            let answer = result.map_err(ended)?;
            if !matches!(answer, Err(StreamAppendError::HigherVote(_))) {
                service.node.heard_from_leader();
            }
            service.frame(&StreamAnswer::from(answer))
        });
        let end = futures::stream::once(async move { refusal.lock().take() });
        let end = end.filter_map(|status| async move { status.map(Err) });
        Ok(Response::new(Box::pin(answers.chain(end))))
    }

    async fn vote(&self, request: Request<Frame>) -> Reply<Frame> {
        let asked: VoteAsked = self.open(request, false)?;
        let rpc = VoteRequest::from(asked);
        let answer = self.node.raft.vote(rpc).await.map_err(ended)?;
        self.answer(&VoteAnswer::from(answer))
    }

    async fn pre_vote(&self, request: Request<Frame>) -> Reply<Frame> {
        let asked: VoteAsked = self.open(request, false)?;
        let rpc = VoteRequest::from(asked);
        let answer = self.node.raft.pre_vote(rpc).await.map_err(ended)?;
        self.answer(&VoteAnswer::from(answer))
    }

    async fn transfer_leader(&self, request: Request<Frame>) -> Reply<Frame> {
        let transfer: Transfer = self.open(request, false)?;
        let rpc = TransferLeaderRequest::from(transfer);
        if let Err(error) = self.node.raft.handle_transfer_leader(rpc).await.map_err(ended)? {
            tracing::warn!(%error, "leadership is not taken over");
        }
        self.answer(&())
    }

    async fn install_snapshot(&self, request: Request<Streaming<SnapshotChunk>>) -> Reply<Frame> {
        let from = request.remote_addr();
        let (vote, snapshot) = self.receive(request.into_inner(), from).await?;
        let answer = self.node.raft.install_full_snapshot(vote, snapshot).await.map_err(ended)?;
        self.node.heard_from_leader();
        self.answer(&Ballot::from(&answer.vote))
    }

    async fn snapshot_progress(&self, request: Request<Frame>) -> Reply<Frame> {
        let offer: SnapshotOffer = self.open(request, true)?;
        self.answer(&self.node.replica.snapshots().received(&offer))
    }

    type ExchangeStream = BoxStream<'static, Result<Told, Status>>;

    async fn exchange(&self, request: Request<Streaming<Ask>>) -> Reply<Self::ExchangeStream> {
        let from = request.remote_addr();
        let service = self.clone();
        // What cannot be read ends the stream: the connection is broken, or the other end is no server.
        let asked = request.into_inner().scan((), |(), asked| std::future::ready(asked.ok()));
        let answers = asked.map(move |asked| {
            let service = service.clone();
            async move {
                let id = asked.id;
                Ok(told(id, service.answer_to(asked, from).await))
            }
        });
        Ok(Response::new(answers.buffer_unordered(ANSWERING_MAX).boxed()))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Reply<JoinResponse> {
        self.node.take_in(request.into_inner()).await.map(Response::new)
    }
}

impl Service {
    /// Writes a snapshot to disk as it comes; every chunk and the whole are checked. What came of one whose
    /// connection breaks stays, and the next stream goes on there.
    async fn receive(
        &self,
        mut chunks: Streaming<SnapshotChunk>,
        from: Option<SocketAddr>,
    ) -> Result<(Vote, Snapshot), Status> {
        let mut coming: Option<(SnapshotOffer, Incoming)> = None;
        let (mut seen, mut done) = (0, false);
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk?;
            let (offer, incoming) = match &mut coming {
                Some(coming) => coming,
                None => {
                    seen = chunk.offset;
                    coming.insert(self.begin(&chunk, from)?)
                }
            };
            let expected = offer.bytes;
            if chunk.offset != seen || seen + chunk.data.len() as u64 > expected || done {
                return Err(Status::invalid_argument(format!(
                    "snapshot chunk of {} bytes at {} where {seen} of {expected} bytes are there",
                    chunk.data.len(),
                    chunk.offset
                )));
            }
            if crc32fast::hash(&chunk.data) != chunk.checksum {
                return Err(Status::data_loss(format!("snapshot chunk at {seen} has a wrong checksum")));
            }
            incoming.write(&chunk.data).map_err(disk)?;
            seen += chunk.data.len() as u64;
            done = chunk.done;
            // A large one takes longer than an election; the leader is there as long as it sends.
            self.node.heard_from_leader();
        }
        let Some((offer, incoming)) = coming.filter(|_| done) else {
            return Err(Status::unavailable("the snapshot ends before its last chunk"));
        };
        let whole = blocking::run(move || incoming.finish()).await;
        let snapshot = whole.map_err(disk)?.map_err(Status::data_loss)?;
        let meta = SnapshotMeta::try_from(offer.head).map_err(bad)?;
        if *snapshot.meta() != meta {
            return Err(Status::data_loss("the snapshot's head is not the one that was offered"));
        }
        Ok((offer.vote.into(), Snapshot { meta, snapshot }))
    }

    fn begin(
        &self,
        chunk: &SnapshotChunk,
        from: Option<SocketAddr>,
    ) -> Result<(SnapshotOffer, Incoming), Status> {
        let header = &chunk.header[..];
        let message = Message { cluster_id: chunk.cluster_id, body: header, invites: true, from };
        let offer: SnapshotOffer = self.admit(message)?;
        let bytes = offer.bytes;
        if bytes > SNAPSHOT_BYTES_MAX {
            return Err(Status::resource_exhausted(format!(
                "snapshot of {bytes} bytes exceeds the limit of {SNAPSHOT_BYTES_MAX} bytes"
            )));
        }
        let folder = self.node.replica.snapshots();
        let incoming = folder.receive(&offer, chunk.offset).map_err(disk)?;
        Ok((offer, incoming.map_err(Status::invalid_argument)?))
    }
}

/// The sender keeps trying, and this server goes on without the snapshot meanwhile.
fn disk(error: std::io::Error) -> Status {
    tracing::warn!(%error, "a snapshot from the leader cannot be stored");
    Status::internal(format!("the snapshot cannot be stored: {error}"))
}
