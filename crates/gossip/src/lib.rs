//! Membership by SWIM gossip, and the service instances that members carry: the AP half of Weft.
//!
//! - [`member`]: who is in the pool, and in which state.
//! - [`instance`]: service instances, each owned by one member, versioned by `(incarnation, seq)`.
//! - [`catalog`]: the pure merge of what members say about their instances.
//! - [`continuation`]: what a member hands to the process that goes on in its place.
//! - [`pool`]: the protocol as a value, without socket, clock or task.
//! - [`driver`]: the one task that owns the sockets and timers, and its [`driver::GossipHandle`].
//!
//! Gossip is a hint about liveness. It never changes Raft voters or lock owners.

#[cfg(test)]
mod any_input;
pub mod catalog;
pub mod continuation;
pub mod driver;
pub mod instance;
mod local_health;
pub mod member;
pub mod member_id;
mod peers;
pub mod pool;
mod spread;
pub mod stats;
mod sync;
mod timers;
pub mod timing;
pub mod wire;

pub use catalog::{CatalogInstance, CatalogView};
pub use continuation::Continuation;
pub use driver::{BoundGossip, GossipConfig, GossipError, GossipHandle};
pub use instance::{AdvertiseError, Advertisement, InstanceHealth, InstanceRecord, RecordVersion};
pub use member::{Member, MemberState, MemberView, Role};
pub use stats::Stats;
pub use timing::GossipTiming;
