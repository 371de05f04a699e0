//! The whole state as a stream, a piece at a time as the client takes it.

use aws_lc_rs::digest::{Context, SHA256};
use futures::stream::{self, BoxStream, StreamExt};
use tonic::Status;
use weft_xds_proto::etcdserverpb as pb;

use super::API_VERSION;
use crate::raft::StateImage;

/// What `etcdctl` expects of a file's length beside the SHA-256: etcd's own are whole pages of a disk.
const BLOCK_BYTES: usize = 512;

/// The pieces of an image, zeros up to a multiple of 512 bytes, then the SHA-256 of all that, as etcd ends its own:
/// `etcdctl snapshot save` refuses a file whose length does not say that there is one. How much is left is not known
/// before the end, so `remaining_bytes` is 0.
pub fn stream(
    image: StateImage,
    header: pb::ResponseHeader,
) -> BoxStream<'static, Result<pb::SnapshotResponse, Status>> {
    let begun = Some((image, Context::new(&SHA256), 0));
    stream::try_unfold(begun, move |state| async move {
        let Some((mut image, mut hasher, mut length)) = state else { return Ok(None) };
        let answer = |blob| pb::SnapshotResponse {
            header: Some(header),
            remaining_bytes: 0,
            blob,
            version: API_VERSION.to_owned(),
        };
        // A piece takes about 150 microseconds, and a client's window has room for many: whoever waits on this thread
        // comes in between.
        tokio::task::yield_now().await;
        match image.next_piece() {
            Ok(Some(piece)) => {
                hasher.update(&piece);
                length += piece.len();
                Ok(Some((answer(piece), Some((image, hasher, length)))))
            }
            Ok(None) => {
                let mut end = vec![0; length.next_multiple_of(BLOCK_BYTES) - length];
                hasher.update(&end);
                end.extend_from_slice(hasher.finish().as_ref());
                Ok(Some((answer(end.into()), None)))
            }
            Err(lost) => Err(Status::aborted(format!("etcdserver: {lost}: begin anew"))),
        }
    })
    .boxed()
}
