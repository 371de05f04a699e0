//! openraft's messages to other servers, over gRPC (`xds-proto/proto/weft/peer.proto`).

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::{
    OptionalSend, RPCTypes, RaftNetworkFactory,
    base::{BoxFuture, BoxStream},
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::{RPCOption, RaftNetworkV2, stream_append_sequential},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
        TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};
use parking_lot::{Mutex, RwLock};
use serde::{Serialize, de::DeserializeOwned};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use weft_core::{id::NodeId, net::Dialer};
use weft_xds_proto::peer::{Frame, SnapshotChunk, ask, peer_client::PeerClient};

use super::{
    cluster::Cluster,
    codec::{
        self, Addressed, Append, AppendAnswer, Ballot, SnapshotOffer, StreamAnswer, Transfer, VoteAnswer,
        VoteAsked,
    },
    exchange::Exchange,
    snapshot::SnapshotFile,
    types::{Peer, Snapshot, TypeConfig, Vote},
};
use crate::{
    blocking,
    gate::{self, Gate, Unreached},
};

/// Largest message between servers, in bytes: a few of the largest entries ([`super::types`]) with room.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bytes of one chunk of a snapshot.
const CHUNK_BYTES: usize = 512 * 1024;

/// Pause before a snapshot goes on after its connection broke.
const RESUME_PAUSE: Duration = Duration::from_millis(100);

/// Slowest link on which a snapshot still arrives, in bytes a second.
const SNAPSHOT_BYTES_PER_SEC_MIN: u64 = 1024 * 1024;

/// Connections to one peer are separate by what they carry, so that heartbeats never wait behind entries
/// and neither waits behind a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Entries and votes.
    Log,
    /// Heartbeats and leadership confirmations.
    Heartbeat,
    /// Snapshots.
    Snapshot,
    /// What followers ask the leader for.
    Forward,
}

/// The other servers: where they are, and connections to them.
pub struct Peers {
    own: NodeId,
    cluster: Arc<Cluster>,
    /// How long one message may take.
    message_timeout: Duration,
    /// Gets this server in at the others.
    gate: Arc<Gate>,
    /// Connects in place of the system.
    dialer: Option<Dialer>,
    /// Told by gossip or by a join; takes precedence over the membership entry.
    addresses: RwLock<HashMap<u64, SocketAddr>>,
    channels: Mutex<HashMap<(SocketAddr, Lane), Channel>>,
    exchanges: Mutex<HashMap<(SocketAddr, Lane), Arc<Exchange>>>,
    /// Owns the exchanges' tasks, until `stop`.
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Peers whose refusal was logged. Cleared for a peer that answers again.
    complained: Mutex<HashSet<u64>>,
}

impl Peers {
    /// Knows nobody yet.
    pub fn new(
        own: NodeId,
        cluster: Arc<Cluster>,
        message_timeout: Duration,
        (gate, dialer): (Arc<Gate>, Option<Dialer>),
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self {
            own,
            cluster,
            message_timeout,
            gate,
            dialer,
            addresses: RwLock::default(),
            channels: Mutex::default(),
            exchanges: Mutex::default(),
            tasks,
            stop,
            complained: Mutex::default(),
        }
    }

    /// This server.
    pub fn own(&self) -> NodeId {
        self.own
    }

    /// Reaches a peer there from now on.
    pub fn set_address(&self, id: NodeId, addr: SocketAddr) {
        if self.addresses.read().get(&id.0) == Some(&addr) {
            return;
        }
        let old = self.addresses.write().insert(id.0, addr);
        if let Some(old) = old {
            tracing::info!(peer = %id, %old, new = %addr, "a peer is reached at another address now");
            self.channels.lock().retain(|(at, _), _| *at != old);
            self.exchanges.lock().retain(|(at, _), _| *at != old);
        }
    }

    /// Where to reach a peer: what was last heard, else what the membership says.
    pub fn address(&self, id: u64, recorded: SocketAddr) -> SocketAddr {
        self.addresses.read().get(&id).copied().unwrap_or(recorded)
    }

    /// A client on a shared connection, which is made when first used and made again when it breaks.
    pub fn client(&self, addr: SocketAddr, lane: Lane) -> PeerClient<Channel> {
        let mut channels = self.channels.lock();
        let channel = channels.entry((addr, lane)).or_insert_with(|| {
            let endpoint = Endpoint::from_shared(format!("http://{addr}"))
                .expect("a socket address makes a valid URI")
                .http2_keep_alive_interval(Duration::from_secs(5))
                .keep_alive_timeout(Duration::from_secs(5))
                .initial_stream_window_size(4 * 1024 * 1024)
                .initial_connection_window_size(8 * 1024 * 1024);
            gate::channel(self.gate.clone(), addr, endpoint, self.dialer.clone())
        });
        // What was asked for through the leader is as large as it is; the rest is bounded.
        let answer_bytes_max = if lane == Lane::Forward { usize::MAX } else { MESSAGE_BYTES_MAX };
        PeerClient::new(channel.clone())
            .max_decoding_message_size(answer_bytes_max)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The lasting stream to a peer for this lane, opened anew if it has ended.
    fn exchange(&self, addr: SocketAddr, lane: Lane) -> Arc<Exchange> {
        let mut exchanges = self.exchanges.lock();
        match exchanges.get(&(addr, lane)) {
            Some(exchange) if exchange.is_open() => exchange.clone(),
            _ => {
                let opened = Exchange::open(self.client(addr, lane), &self.tasks, self.stop.clone());
                exchanges.insert((addr, lane), opened.clone());
                opened
            }
        }
    }

    /// Asks a peer on the lasting stream.
    ///
    /// # Errors
    /// As [`Exchange::ask`].
    pub async fn ask<T: Serialize>(
        &self,
        (to, addr): (u64, SocketAddr),
        lane: Lane,
        message: T,
        wrap: fn(Bytes) -> ask::Body,
    ) -> Result<Bytes, Status> {
        let Frame { cluster_id, body } = self.frame(to, message);
        self.exchange(addr, lane).ask(cluster_id, wrap(body)).await
    }

    /// Wraps a message for a peer.
    pub fn frame<T: Serialize>(&self, to: u64, message: T) -> Frame {
        let body = codec::encode(&Addressed { to, from: self.own.0, message });
        Frame { cluster_id: self.cluster.wire_id(), body }
    }

    fn heard(&self, id: u64) {
        let mut complained = self.complained.lock();
        if !complained.is_empty() {
            complained.remove(&id);
        }
    }

    /// A refusal says that something is set up wrongly; it is logged once, not at each heartbeat.
    fn refused(&self, id: u64, addr: SocketAddr, status: &Status) {
        if status.code() == Code::FailedPrecondition && self.complained.lock().insert(id) {
            tracing::error!(peer = %NodeId(id), %addr, reason = status.message(), "a peer refuses this server");
        }
    }
}

/// Whether a call certainly never reached the other server.
pub fn never_sent(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// What a refused or broken call says; for a connection that was not made, why not.
pub fn reason(status: &Status) -> String {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if let Some(unreached) = error.downcast_ref::<Unreached>() {
            return unreached.to_string();
        }
        source = error.source();
    }
    status.message().to_owned()
}

/// Makes connections for openraft.
pub struct Factory {
    peers: Arc<Peers>,
}

impl Factory {
    /// Over these peers.
    pub fn new(peers: Arc<Peers>) -> Self {
        Self { peers }
    }

    fn network(&self, target: u64, node: &Peer, lane: Lane) -> Network {
        Network { peers: self.peers.clone(), target, recorded: node.addr, lane }
    }
}

impl RaftNetworkFactory<TypeConfig> for Factory {
    type Network = Network;

    async fn new_client(&mut self, target: u64, node: &Peer) -> Network {
        self.network(target, node, Lane::Log)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Peer) -> Network {
        self.network(target, node, Lane::Heartbeat)
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &Peer) -> Network {
        self.network(target, node, Lane::Snapshot)
    }
}

/// One server's link to another.
pub struct Network {
    peers: Arc<Peers>,
    target: u64,
    recorded: SocketAddr,
    lane: Lane,
}

type RpcResult<T> = Result<T, RPCError<TypeConfig>>;
type StreamItem = RpcResult<StreamAppendResult<TypeConfig>>;

impl Network {
    /// Sends one message and waits for its answer.
    ///
    /// openraft's own limit for an append is one heartbeat interval, less than a loaded disk takes; it does
    /// not enforce it, and giving up would only send the same entries again. So ours is longer.
    async fn call<M, A, C, F>(&self, action: RPCTypes, message: M, call: C) -> RpcResult<A>
    where
        M: Serialize,
        A: DeserializeOwned,
        C: FnOnce(PeerClient<Channel>, Frame) -> F,
        F: Future<Output = Result<tonic::Response<Frame>, Status>>,
    {
        let addr = self.peers.address(self.target, self.recorded);
        let frame = self.peers.frame(self.target, message);
        let client = self.peers.client(addr, self.lane);
        let timeout = self.peers.message_timeout;
        let Ok(result) = tokio::time::timeout(timeout, call(client, frame)).await else {
            return Err(self.timeout(action, timeout).into());
        };
        let answer = result.map_err(|status| self.failed(addr, &status))?;
        self.peers.heard(self.target);
        codec::decode("answer of a peer", &answer.into_inner().body).map_err(|e| NetworkError::new(&e).into())
    }

    fn timeout(&self, action: RPCTypes, timeout: Duration) -> Timeout<TypeConfig> {
        Timeout { action, id: self.peers.own.0, target: self.target, timeout }
    }

    fn failed(&self, addr: SocketAddr, status: &Status) -> RPCError<TypeConfig> {
        self.peers.refused(self.target, addr, status);
        Unreachable::from_string(format!("{addr}: {}: {}", status.code(), reason(status))).into()
    }
}

impl Network {
    /// Appends without waiting for the answer to one before the next is sent; the transport keeps their
    /// order. Ends with an error if an answer is due for longer than a message may take.
    async fn open_stream<'s, S>(&'s mut self, input: S) -> RpcResult<BoxStream<'s, StreamItem>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let addr = self.peers.address(self.target, self.recorded);
        let (peers, target) = (self.peers.clone(), self.target);
        let sent = Arc::new(AtomicU64::new(0));
        let sending = sent.clone();
        let frames = input.map(move |request| {
            sending.fetch_add(1, Relaxed);
            peers.frame(target, Append::from(&request))
        });
        let limit = self.peers.message_timeout;
        let mut client = self.peers.client(addr, self.lane);
        let opened = tokio::time::timeout(limit, client.stream_append(frames)).await;
        let answers = opened
            .map_err(|_| self.timeout(RPCTypes::AppendEntries, limit))?
            .map_err(|status| self.failed(addr, &status))?
            .into_inner();
        let network: &'s Network = self;
        let items = futures::stream::unfold(Some((answers, 0_u64)), move |state| {
            let sent = sent.clone();
            async move {
                let (mut answers, received) = state?;
                loop {
                    let due = sent.load(Relaxed) > received;
                    let item = match tokio::time::timeout(limit, answers.message()).await {
                        // Nothing was asked for most of that time: there is no answer to wait for.
                        Err(_) if !due => continue,
                        Err(_) => Err(network.timeout(RPCTypes::AppendEntries, limit).into()),
                        Ok(Err(status)) => Err(network.failed(addr, &status)),
                        Ok(Ok(None)) => return None,
                        Ok(Ok(Some(frame))) => {
                            network.peers.heard(network.target);
                            codec::decode("answer of a peer", &frame.body)
                                .map(|answer: StreamAnswer| answer.into())
                                .map_err(|e| NetworkError::new(&e).into())
                        }
                    };
                    let goes_on = matches!(item, Ok(Ok(_)));
                    return Some((item, goes_on.then_some((answers, received + 1))));
                }
            }
        });
        Ok(Box::pin(items))
    }
}

impl RaftNetworkV2<TypeConfig> for Network {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> RpcResult<AppendEntriesResponse<TypeConfig>> {
        let addr = self.peers.address(self.target, self.recorded);
        let to = (self.target, addr);
        let asking = self.peers.ask(to, self.lane, Append::from(&rpc), ask::Body::Append);
        let timeout = self.peers.message_timeout;
        let Ok(result) = tokio::time::timeout(timeout, asking).await else {
            return Err(self.timeout(RPCTypes::AppendEntries, timeout).into());
        };
        let body = result.map_err(|status| self.failed(addr, &status))?;
        self.peers.heard(self.target);
        let answer: AppendAnswer =
            codec::decode("answer of a peer", &body).map_err(|e| RPCError::from(NetworkError::new(&e)))?;
        Ok(answer.into())
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, RpcResult<BoxStream<'s, StreamItem>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        if self.lane == Lane::Heartbeat {
            return stream_append_sequential(self, input, option);
        }
        Box::pin(self.open_stream(input))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> RpcResult<VoteResponse<TypeConfig>> {
        let answer: VoteAnswer = self
            .call(RPCTypes::Vote, VoteAsked::from(&rpc), |mut client, frame| async move {
                client.vote(frame).await
            })
            .await?;
        Ok(answer.into())
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> RpcResult<VoteResponse<TypeConfig>> {
        let answer: VoteAnswer = self
            .call(RPCTypes::Vote, VoteAsked::from(&rpc), |mut client, frame| async move {
                client.pre_vote(frame).await
            })
            .await?;
        Ok(answer.into())
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        _option: RPCOption,
    ) -> RpcResult<TransferLeaderResponse<TypeConfig>> {
        // The receiver acts on it or not; either way an election follows, so its answer says nothing more.
        let () = self
            .call(RPCTypes::TransferLeader, Transfer::from(&req), |mut client, frame| async move {
                client.transfer_leader(frame).await
            })
            .await?;
        Ok(Ok(()))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let file = snapshot.snapshot;
        let checked = file.clone();
        let checksum = blocking::run(move || checked.verify()).await;
        let checksum = checksum.and_then(|whole| whole.map_err(std::io::Error::other));
        let checksum = checksum.map_err(|e| StreamingError::Network(NetworkError::new(&e)))?;
        let offer = SnapshotOffer {
            vote: Ballot::from(&vote),
            head: (&snapshot.meta).into(),
            bytes: file.bytes(),
            checksum,
        };
        tokio::select! {
            closed = cancel => Err(closed.into()),
            result = self.send_snapshot(offer, file) => result,
        }
    }
}

impl Network {
    /// Sends a snapshot; goes on where a connection broke as long as each attempt brings some of it over.
    async fn send_snapshot(
        &self,
        offer: SnapshotOffer,
        file: SnapshotFile,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let mut furthest = None;
        loop {
            let there: u64 = self
                .call(RPCTypes::InstallSnapshot, offer.clone(), |mut client, frame| async move {
                    client.snapshot_progress(frame).await
                })
                .await
                .map_err(StreamingError::from)?;
            let there = there.min(offer.bytes);
            let addr = self.peers.address(self.target, self.recorded);
            let header = self.peers.frame(self.target, offer.clone());
            let timeout = Duration::from_secs(30 + (offer.bytes - there) / SNAPSHOT_BYTES_PER_SEC_MIN);
            let mut client = self.peers.client(addr, Lane::Snapshot);
            let sending = client.install_snapshot(chunks(header, file.clone(), there));
            let error = match tokio::time::timeout(timeout, sending).await {
                Ok(Ok(answer)) => {
                    self.peers.heard(self.target);
                    let ballot: Ballot = codec::decode("answer of a peer", &answer.into_inner().body)
                        .map_err(|e| StreamingError::Network(NetworkError::new(&e)))?;
                    return Ok(SnapshotResponse::new(ballot.into()));
                }
                Ok(Err(status)) => StreamingError::from(self.failed(addr, &status)),
                Err(_) => self.timeout(RPCTypes::InstallSnapshot, timeout).into(),
            };
            if furthest.is_some_and(|furthest| there <= furthest) {
                return Err(error);
            }
            tracing::info!(peer = %NodeId(self.target), %error, "sending a snapshot was cut off; it goes on");
            furthest = Some(there);
            tokio::time::sleep(RESUME_PAUSE).await;
        }
    }
}

/// Cuts a file, from an offset on, into messages; the first carries the header. One that cannot be read ends
/// too early, which the receiver refuses.
fn chunks(
    header: Frame,
    file: SnapshotFile,
    from: u64,
) -> impl Stream<Item = SnapshotChunk> + Send + 'static {
    let Frame { cluster_id, body } = header;
    futures::stream::unfold(Some((from, body, file)), move |state| async move {
        let (offset, header, file) = state?;
        let reading = file.clone();
        let data = match blocking::run(move || reading.read_at(offset, CHUNK_BYTES)).await {
            Ok(data) => data,
            Err(error) => {
                tracing::error!(%error, file = %file.path().display(), "a snapshot cannot be read");
                return None;
            }
        };
        let next = offset + data.len() as u64;
        let done = next >= file.bytes();
        let chunk =
            SnapshotChunk { cluster_id, header, offset, checksum: crc32fast::hash(&data), done, data };
        Some((chunk, (!done).then_some((next, Bytes::new(), file))))
    })
}
