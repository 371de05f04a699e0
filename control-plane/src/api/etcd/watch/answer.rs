//! The kinds of answers on a watch stream that carry no events.

use tonic::Status;
use weft_state::command::Revision;
use weft_xds_proto::etcdserverpb as pb;

use super::session::NO_WATCH_ID;
use crate::api::etcd::status;

type Header = Option<pb::ResponseHeader>;

/// The watcher is open; its events follow.
pub fn created(header: Header, watch_id: i64) -> pb::WatchResponse {
    pb::WatchResponse { header, watch_id, created: true, ..Default::default() }
}

/// The watcher was never opened.
pub fn refused(header: Header, cancel_reason: String) -> pb::WatchResponse {
    pb::WatchResponse {
        header,
        watch_id: NO_WATCH_ID,
        created: true,
        canceled: true,
        cancel_reason,
        ..Default::default()
    }
}

/// The client asked for it.
pub fn canceled(header: Header, watch_id: i64) -> pb::WatchResponse {
    pb::WatchResponse { header, watch_id, canceled: true, ..Default::default() }
}

/// The next event in order is gone; a new watcher may start from `oldest`.
pub fn compacted(header: Header, watch_id: i64, oldest: Revision) -> pb::WatchResponse {
    pb::WatchResponse {
        header,
        watch_id,
        canceled: true,
        compact_revision: oldest,
        cancel_reason: status::COMPACTED.to_owned(),
        ..Default::default()
    }
}

/// The caller may not watch this range any more; nothing of what came after that was sent.
pub fn forbidden(header: Header, watch_id: i64, reason: &Status) -> pb::WatchResponse {
    let cancel_reason = reason.message().to_owned();
    pb::WatchResponse { header, watch_id, canceled: true, cancel_reason, ..Default::default() }
}

/// Everything up to the header's revision has been sent.
pub fn progress(header: Header, watch_id: i64) -> pb::WatchResponse {
    pb::WatchResponse { header, watch_id, ..Default::default() }
}
