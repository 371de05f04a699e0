//! Logging in: a user's token, fetched when it is first needed and again when a server does not accept it any more.

use std::fmt;

use tokio::sync::Mutex;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Status};
use weft_xds_proto::etcdserverpb as pb;
use weft_xds_proto::etcdserverpb::auth_client::AuthClient;

use crate::link::{Link, Stamp};

/// Who a client asks as.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user's name.
    pub user: String,
    /// The user's password.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Passwords do not belong into logs.
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Servers with authentication off give no token, and need none.
const NOT_ENABLED: &str = "etcdserver: authentication is not enabled";
/// How servers say that a token is needed, or another one.
const NO_TOKEN: &str = "etcdserver: user name is empty";
const OLD_TOKEN: [&str; 2] = ["etcdserver: invalid auth token", "etcdserver: revision of auth store is old"];

/// The token of one client. The lock is held while it is fetched, so that many calls fetch one.
#[derive(Debug)]
pub(crate) struct Login {
    credentials: Option<Credentials>,
    token: Mutex<State>,
}

#[derive(Debug, Clone, Default)]
struct State {
    /// How often a token was fetched: whoever complains about an earlier one is late.
    fetched: u64,
    token: Option<MetadataValue<Ascii>>,
}

/// A token to be used, none if there is none to be had, and which it is.
pub(crate) type Ticket = (u64, Option<MetadataValue<Ascii>>);

impl Login {
    pub(crate) fn new(credentials: Option<Credentials>) -> Self {
        Self { credentials, token: Mutex::default() }
    }

    /// The token; fetched if there is none yet, or if it is the `refused` one.
    pub(crate) async fn ticket(&self, channel: &Channel, refused: Option<u64>) -> Result<Ticket, Status> {
        if self.credentials.is_none() {
            return Ok((0, None));
        }
        let mut state = self.token.lock().await;
        if state.fetched == 0 || refused == Some(state.fetched) {
            let link = Link::new(channel.clone(), Stamp::default());
            let token = self.fetch(link).await?;
            state.token = token.and_then(|token| token.parse().ok());
            state.fetched += 1;
        }
        Ok((state.fetched, state.token.clone()))
    }

    /// A fresh token; none without credentials, or where none is needed.
    pub(crate) async fn fetch(&self, link: Link) -> Result<Option<String>, Status> {
        let Some(Credentials { user, password }) = &self.credentials else { return Ok(None) };
        let login = pb::AuthenticateRequest { name: user.clone(), password: password.clone() };
        match AuthClient::new(link).authenticate(login).await {
            Ok(answer) => Ok(Some(answer.into_inner().token)),
            Err(status) if status.message() == NOT_ENABLED => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// Whether another token would help.
    pub(crate) fn is_stale(&self, code: Code, message: &str) -> bool {
        let said =
            matches!(code, Code::Unauthenticated) || OLD_TOKEN.contains(&message) || message == NO_TOKEN;
        said && self.credentials.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_shown() {
        let credentials = Credentials { user: "app".into(), password: "secret".into() };
        let shown = format!("{credentials:?}");
        assert!(shown.contains("app") && !shown.contains("secret"), "{shown}");
    }

    #[test]
    fn another_token_helps_only_whoever_can_log_in() {
        let message = "etcdserver: user name is empty";
        let credentials = Credentials { user: "app".into(), password: "secret".into() };
        assert!(Login::new(Some(credentials)).is_stale(Code::InvalidArgument, message));
        assert!(!Login::new(None).is_stale(Code::InvalidArgument, message));
    }
}
