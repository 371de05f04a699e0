//! The whole state as a stream, a piece at a time as the client takes it.

use aws_lc_rs::digest::{Context, SHA256};
use futures::stream::{self, BoxStream, StreamExt};
use tonic::Status;
use weft_xds_proto::etcdserverpb as pb;

use super::API_VERSION;
use crate::raft::StateImage;

/// The pieces of an image, then its SHA-256, as etcd ends its own: clients that save the stream check it. How much
/// is left is not known before the end, so `remaining_bytes` is 0.
pub fn stream(
    image: StateImage,
    header: pb::ResponseHeader,
) -> BoxStream<'static, Result<pb::SnapshotResponse, Status>> {
    let begun = Some((image, Context::new(&SHA256)));
    stream::try_unfold(begun, move |state| async move {
        let Some((mut image, mut hasher)) = state else { return Ok(None) };
        let answer = |blob| pb::SnapshotResponse {
            header: Some(header),
            remaining_bytes: 0,
            blob,
            version: API_VERSION.to_owned(),
        };
        match image.next_piece() {
            Ok(Some(piece)) => {
                hasher.update(&piece);
                Ok(Some((answer(piece), Some((image, hasher)))))
            }
            Ok(None) => {
                let digest = hasher.finish();
                Ok(Some((answer(bytes::Bytes::copy_from_slice(digest.as_ref())), None)))
            }
            Err(lost) => Err(Status::aborted(format!("etcdserver: {lost}: begin anew"))),
        }
    })
    .boxed()
}
