//! Named limits shared by crates: value, unit, and why. A limit that only one module knows stays there.

use std::time::Duration;

/// Largest configuration file, in bytes. Far above any real one; keeps a wrong path (a log, a device) from
/// being read whole.
pub const CONFIG_FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Label combinations of one metric. Further ones are counted under `other`, so that label values from
/// outside cannot grow memory without bound.
pub const METRIC_SERIES_MAX: usize = 2_000;

/// Members of a gossip pool that a process remembers, down ones included. Updates about further ones are
/// dropped and counted.
pub const GOSSIP_MEMBERS_MAX: usize = 10_000;

/// Datagram, in bytes: below the 1280 of IPv6's minimum MTU with room for IP and UDP headers, so that none is
/// fragmented.
pub const GOSSIP_DATAGRAM_BYTES_MAX: usize = 1_200;

/// Instances that one process may advertise by gossip.
pub const GOSSIP_INSTANCES_PER_OWNER_MAX: usize = 1_024;

/// One owner's advertisement, in encoded bytes. Larger ones are refused where they are made.
pub const GOSSIP_ADVERTISEMENT_BYTES_MAX: usize = 512 * 1024;

/// One frame of the anti-entropy stream, in bytes: at least one advertisement.
pub const GOSSIP_FRAME_BYTES_MAX: usize = 1024 * 1024;

/// Longest member name, in bytes: as a DNS label. Names are labels; every datagram carries up to three of them.
pub const MEMBER_NAME_BYTES_MAX: usize = 63;

/// Longest service name, in bytes: a DNS label (RFC 1035 §2.3.4).
pub const SERVICE_NAME_BYTES_MAX: usize = 63;

/// Longest instance id, in bytes: room for a name and a UUID.
pub const INSTANCE_ID_BYTES_MAX: usize = 128;

/// Instances in the gossip catalogue, of all owners together.
pub const GOSSIP_INSTANCES_MAX: usize = 100_000;

/// Anti-entropy sessions that others may have open with a process. Further ones are refused and come back later.
pub const GOSSIP_SESSIONS_SERVED_MAX: usize = 16;

/// Anti-entropy sessions that a process has open with others.
pub const GOSSIP_SESSIONS_STARTED_MAX: usize = 4;

/// Longest anti-entropy session.
pub const GOSSIP_SESSION_MAX: Duration = Duration::from_secs(10);

/// How long a process waits for the rest of its pool to hear that it leaves.
pub const GOSSIP_LEAVE_MAX: Duration = Duration::from_secs(1);
