//! The Rust SDK: typed handles to a Weft control plane.
//!
//! ```no_run
//! # async fn example() -> Result<(), weft_client::Error> {
//! use std::time::Duration;
//! let client = weft_client::Client::connect(["127.0.0.1:2379"])?;
//! client.kv().put("greeting", "hello").await?;
//!
//! let session = client.session(Duration::from_secs(10)).await?;
//! let held = client.lock("deploy").acquire(&session).await?;
//! println!("mine, with fencing token {}", held.grant().fence);
//! tokio::select! {
//!     () = do_the_work() => held.release().await?,
//!     lost = session.lost() => eprintln!("stop at once: {lost}"),
//! }
//! session.close().await
//! # }
//! # async fn do_the_work() {}
//! ```
//!
//! - [`client`]: endpoints, fail-over, and what is repeated after a failure and what is not. [`login`]: who asks.
//! - [`kv`], [`watch`]: the etcd v3 key-value API; a watch resumes by itself where it left off.
//! - [`lease`], [`session`]: leases; a session keeps its own alive and knows when it is lost, also
//!   without any network.
//! - [`semaphore`], [`lock`], [`election`]: coordination. Each grant carries a fencing token.
//! - [`mesh`]: services, endpoints, members, status. [`snapshot`]: the whole state, for backups.
//!   [`config`]: routes.

pub mod client;
pub mod config;
mod deadline;
pub mod election;
pub mod endpoint;
pub mod error;
pub mod grant;
mod group;
pub mod kv;
pub mod lease;
mod link;
pub mod lock;
pub mod login;
pub mod mesh;
mod quota;
mod secure;
pub mod semaphore;
pub mod session;
pub mod snapshot;
pub mod watch;

pub use client::{Client, Options};
pub use error::Error;
pub use login::Credentials;
pub use session::{Lost, Session};
pub use weft_core::tls::{Identity, Trust};

/// The generated messages, for what has no wrapper here.
pub mod proto {
    pub use weft_xds_proto::{etcdserverpb as etcd, mvccpb, weft};
}
