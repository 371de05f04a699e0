//! `Maintenance`: how this server is doing.

use futures::stream::BoxStream;
use tonic::{Request, Status};
use weft_state::command::{KeyValue, Range, Revision};
use weft_state::error::StoreError;
use weft_state::machine::Machine;
use weft_xds_proto::etcdserverpb as pb;
use weft_xds_proto::etcdserverpb::alarm_request::AlarmAction;
use weft_xds_proto::etcdserverpb::downgrade_request::DowngradeAction;

use super::pager::Pager;
use super::{API_VERSION, Answer, Api, snapshot, status};
use crate::raft::{DiskState, GroupChange};

#[tonic::async_trait]
impl pb::maintenance_server::Maintenance for Api {
    async fn status(&self, request: Request<pb::StatusRequest>) -> Answer<pb::StatusResponse> {
        self.admit_user(request.metadata()).await?;
        let raft = self.coordinator.status();
        let bytes = i64::try_from(raft.wal_bytes).unwrap_or(i64::MAX);
        let voter = raft.peers.iter().any(|peer| peer.id == raft.id && peer.voter);
        let no_leader = raft.leader.is_none().then_some(status::NO_LEADER);
        let no_space = (raft.disk != DiskState::Fine).then_some(status::NO_SPACE);
        Ok(pb::StatusResponse {
            header: Some(self.header_now()),
            version: API_VERSION.to_owned(),
            // The state is in memory; what grows on disk is the log.
            db_size: bytes,
            db_size_in_use: bytes,
            leader: raft.leader.map_or(0, |id| id.0),
            raft_index: raft.committed,
            raft_term: raft.term,
            raft_applied_index: raft.applied,
            errors: no_leader.into_iter().chain(no_space).map(str::to_owned).collect(),
            is_learner: !voter,
            storage_version: API_VERSION.to_owned(),
            // There is no quota for the whole; `weft quota` bounds prefixes.
            db_size_quota: 0,
            downgrade_info: Some(pb::DowngradeInfo::default()),
        }
        .into())
    }

    /// The one alarm there is: this server's disk has no space for its log. It is over by itself when there is, so
    /// there is nothing to disarm, and none can be raised: what etcd raises them for, Weft refuses at the write.
    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Answer<pb::AlarmResponse> {
        match request.get_ref().action() {
            AlarmAction::Get => self.admit_user(request.metadata()).await?,
            AlarmAction::Activate | AlarmAction::Deactivate => self.admit_admin(request.metadata()).await?,
        }
        let pb::AlarmRequest { action, alarm: asked, .. } = request.into_inner();
        match AlarmAction::try_from(action) {
            Ok(AlarmAction::Get) => {
                let raised = asked == pb::AlarmType::None as i32 || asked == pb::AlarmType::Nospace as i32;
                let no_space = raised && self.coordinator.status().disk != DiskState::Fine;
                let alarm = pb::AlarmMember { member_id: self.id.0, alarm: pb::AlarmType::Nospace.into() };
                let alarms = no_space.then_some(alarm).into_iter().collect();
                Ok(pb::AlarmResponse { header: Some(self.header_now()), alarms }.into())
            }
            // What was disarmed: nothing.
            Ok(AlarmAction::Deactivate) => {
                Ok(pb::AlarmResponse { header: Some(self.header_now()), alarms: Vec::new() }.into())
            }
            Ok(AlarmAction::Activate) => {
                Err(status::not_offered("raising an alarm", "limits are enforced at each write"))
            }
            Err(_) => Err(status::request(&status::RequestError::UnknownValue {
                field: "alarm action",
                seen: action,
                allowed: "0 GET, 1 ACTIVATE, 2 DEACTIVATE",
            })),
        }
    }

    /// Nothing to do: the log drops whole segments, and the state is in memory.
    async fn defragment(&self, request: Request<pb::DefragmentRequest>) -> Answer<pb::DefragmentResponse> {
        self.admit_admin(request.metadata()).await?;
        tracing::info!("defragment was asked for: there is nothing to do, the log gives back whole segments");
        Ok(pb::DefragmentResponse { header: Some(self.header_now()) }.into())
    }

    /// Of everything that is replicated: equal on servers that have applied the same index.
    async fn hash(&self, request: Request<pb::HashRequest>) -> Answer<pb::HashResponse> {
        self.admit_admin(request.metadata()).await?;
        let (revision, hash) = self.coordinator.read(|machine| (machine.revision(), machine.hash()));
        let header = Some(self.header_at(revision));
        Ok(pb::HashResponse { header, hash: (hash ^ (hash >> 32)) as u32 }.into())
    }

    /// Of the keys as of one revision: equal on all servers that have reached it (A09).
    async fn hash_kv(&self, request: Request<pb::HashKvRequest>) -> Answer<pb::HashKvResponse> {
        self.admit_admin(request.metadata()).await?;
        let hashed = self.hash_keys(request.into_inner().revision);
        let (hash, hash_revision) = hashed.map_err(|error| status::store(&error))?;
        let (revision, compact_revision) =
            self.coordinator.read(|machine| (machine.revision(), machine.compacted()));
        let header = Some(self.header_at(revision));
        Ok(pb::HashKvResponse { header, hash, compact_revision, hash_revision }.into())
    }

    type SnapshotStream = BoxStream<'static, Result<pb::SnapshotResponse, Status>>;

    /// In Weft's format, for `weft snapshot restore`.
    async fn snapshot(&self, request: Request<pb::SnapshotRequest>) -> Answer<Self::SnapshotStream> {
        self.admit_admin(request.metadata()).await?;
        let image = self.coordinator.begin_image();
        let header = self.header_at(image.revision());
        Ok(snapshot::stream(image, header).into())
    }

    /// Whichever server is asked, as opposed to etcd, where it has to be the leader.
    async fn move_leader(&self, request: Request<pb::MoveLeaderRequest>) -> Answer<pb::MoveLeaderResponse> {
        self.admit_admin(request.metadata()).await?;
        let to = request.into_inner().target_id;
        self.change_group(GroupChange::Transfer { to }).await?;
        Ok(pb::MoveLeaderResponse { header: Some(self.header_now()) }.into())
    }

    /// There is never one under way: the format on disk does not follow etcd's versions.
    async fn downgrade(&self, request: Request<pb::DowngradeRequest>) -> Answer<pb::DowngradeResponse> {
        self.admit_admin(request.metadata()).await?;
        let pb::DowngradeRequest { action, version } = request.into_inner();
        match DowngradeAction::try_from(action) {
            Ok(DowngradeAction::Cancel) => Err(status::no_downgrade()),
            Ok(DowngradeAction::Validate | DowngradeAction::Enable) => Err(status::downgrade_to(&version)),
            Err(_) => Err(status::request(&status::RequestError::UnknownValue {
                field: "downgrade action",
                seen: action,
                allowed: "0 VALIDATE, 1 ENABLE, 2 CANCEL",
            })),
        }
    }
}

impl Api {
    /// Page by page, so that the state is never locked for long.
    fn hash_keys(&self, revision: Revision) -> Result<(u32, Revision), StoreError> {
        let everything = Range {
            key: bytes::Bytes::from_static(b"\0"),
            range_end: bytes::Bytes::from_static(b"\0"),
            revision,
            ..Range::default()
        };
        let mut pager = Pager::new(everything, self.options.limits.range_page_keys);
        let mut hasher = crc32fast::Hasher::new();
        while let Some(kvs) = self.coordinator.read(|machine: &Machine| pager.page(machine))? {
            kvs.iter().for_each(|kv| hash_key(&mut hasher, kv));
        }
        Ok((hasher.finalize(), pager.summary().map_or(revision, |summary| summary.revision)))
    }
}

fn hash_key(hasher: &mut crc32fast::Hasher, kv: &KeyValue) {
    for bytes in [&kv.key, &kv.value] {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    }
    for number in [kv.create_revision, kv.mod_revision, kv.version, kv.lease] {
        hasher.update(&number.to_le_bytes());
    }
}
