//! A grant: proof of ownership, and how its holder learns that it is gone.

use std::time::Duration;

use tonic::Code;
use weft_xds_proto::weft as pb;

use crate::error::Error;
use crate::kv::{GetOptions, KeyRange};
use crate::session::{Lost, Session};
use crate::watch::{Event, EventKind, WatchOptions};

/// Pause before the grant's key is looked at again after that failed.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Proof of ownership while its session lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Fencing token: strictly larger than that of every earlier grant in the cluster. Hand it to
    /// whatever is written to, which then refuses smaller ones.
    pub fence: i64,
    /// Store revision of the grant, or of when it was answered again.
    pub revision: i64,
    /// The owning session's lease.
    pub lease: i64,
    /// The key that stands for the grant; it can be read and watched.
    pub key: String,
}

impl From<pb::Grant> for Grant {
    fn from(grant: pb::Grant) -> Self {
        Self { fence: grant.fence, revision: grant.revision, lease: grant.lease, key: grant.key }
    }
}

impl Grant {
    /// Waits until the grant is no longer ours, and says why. The session's own deadline needs no
    /// network; that the servers took the grant back (an operator did, or a server that believed us
    /// gone) is seen by watching its key.
    pub async fn lost(&self, session: &Session) -> Lost {
        tokio::select! {
            lost = session.lost() => lost,
            () = self.taken_back(session) => Lost::TakenBack { fence: self.fence },
        }
    }

    async fn taken_back(&self, session: &Session) {
        let mut from = self.fence + 1;
        loop {
            match self.watch(session, from).await {
                Ok(()) => return,
                Err(Error::Compacted { .. }) => {}
                Err(error) => {
                    tracing::debug!(key = self.key, %error, "cannot watch the grant");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
            let range = KeyRange::key(self.key.clone());
            match session.client().kv().range(range, GetOptions::default()).await {
                Ok(now) if now.kvs.iter().any(|kv| kv.lease == self.lease) => from = now.revision + 1,
                Ok(_) => return,
                Err(error) => tracing::debug!(key = self.key, %error, "cannot read the grant"),
            }
        }
    }

    async fn watch(&self, session: &Session, from: i64) -> Result<(), Error> {
        let options = WatchOptions { start_revision: from, ..WatchOptions::new(self.key.clone()) };
        let mut watcher = session.client().watch(options).await?;
        while !watcher.next().await?.iter().any(|event| self.ends_with(event)) {}
        Ok(())
    }

    /// The leader's key of an election passes from one session to the next without being deleted.
    fn ends_with(&self, event: &Event) -> bool {
        event.kind == EventKind::Delete || event.kv.lease != self.lease
    }
}

/// A refusal that says that the session is no more.
pub(crate) fn is_session_gone(error: &Error) -> bool {
    matches!(error.code(), Some(Code::NotFound | Code::FailedPrecondition))
}

#[cfg(test)]
mod tests {
    use crate::kv::KeyValue;

    use super::*;

    #[test]
    fn a_new_value_of_the_same_leader_is_no_loss() {
        let grant = Grant { fence: 5, revision: 5, lease: 7, key: "k".to_owned() };
        let event =
            |kind, lease| Event { kind, kv: KeyValue { lease, ..KeyValue::default() }, prev_kv: None };
        assert!(!grant.ends_with(&event(EventKind::Put, 7)));
        assert!(grant.ends_with(&event(EventKind::Put, 8)));
        assert!(grant.ends_with(&event(EventKind::Delete, 0)));
    }
}
