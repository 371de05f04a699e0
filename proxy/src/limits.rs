//! Named limits of the data path: value, unit, and why.

use std::time::Duration;

/// Longest request line target, in bytes; longer ones are answered 414. What browsers and other proxies send.
pub const URI_BYTES_MAX: usize = 8 * 1024;

/// Largest request head (request line and fields), in bytes; larger ones are answered 431.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Most fields of a request; more are answered 431. The parser behind the guard keeps its table on the stack up to
/// this number.
pub const HEADERS_MAX: usize = 100;

/// Longest line of a chunk (size and extensions), in bytes. Extensions carry nothing for us.
pub const CHUNK_LINE_BYTES_MAX: usize = 256;

/// Largest trailer section, in bytes.
pub const TRAILER_BYTES_MAX: usize = 8 * 1024;

/// Largest read buffer of one HTTP/1 connection, in bytes: back-pressure starts here.
pub const READ_BUFFER_BYTES_MAX: usize = HEAD_BYTES_MAX + 16 * 1024;

/// Time for a request head to arrive once its first byte has: slow clients do not hold connections (408).
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// A downstream connection without a request is closed after this time. Longer than that of common clients, so that
/// they close first and no request meets a closing connection.
pub const DOWNSTREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// A tunnel (an upgraded connection, CONNECT, raw TCP) in which nothing moves for so long is ended. Many protocols are
/// silent for minutes; those that are for longer send signs of life.
pub const TUNNEL_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// The same once one side has said that it will send nothing more: what it waits for comes soon or never.
pub const TUNNEL_HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(300);

/// In a drain, a tunnel is ended as soon as nothing has moved in it for so long; at the end of the drain timeout anyway.
pub const TUNNEL_QUIET: Duration = Duration::from_secs(1);

/// Largest PROXY protocol header, in bytes. Addresses and common further fields take less than 300; those with
/// certificates of clients are for proxies that trust each other more.
pub const PROXY_HEADER_BYTES_MAX: usize = 4096;

/// Largest beginning of a TLS connection that is looked at for the name of a service, in bytes.
pub const CLIENT_HELLO_BYTES_MAX: usize = 64 * 1024;

/// How long a captured connection waits for its client to speak before the place that it was on its way to is connected:
/// in many protocols the server speaks first (P43).
pub const CAPTURED_CLIENT_FIRST: Duration = Duration::from_millis(20);

/// How long a captured connection waits for an answer whether the name in it is that of a service. Most names are not.
pub const CAPTURED_RESOLVE_TIMEOUT: Duration = Duration::from_millis(250);

/// Time to connect to the place that a captured connection was on its way to.
pub const CAPTURED_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A TCP connection that is silent for so long is probed by the kernel, and again after each interval. Below the 350 s after which
/// load balancers of clouds forget connections.
pub const TCP_KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// See [`TCP_KEEPALIVE_IDLE`].
pub const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// A TCP connection ends when its other side has acknowledged neither data nor probes for so long (RFC 5482). Without it,
/// data to a machine that is gone is sent again for a quarter of an hour.
pub const TCP_USER_TIMEOUT: Duration = Duration::from_secs(120);

/// What one turn of a tunnel reads at once, in bytes. The room for it is a worker's, not a tunnel's.
pub const TUNNEL_READ_BYTES: usize = 64 * 1024;

/// A client that takes nothing of what it is sent for so long is cut off, and so is an HTTP/1 client that sends
/// nothing more of a body (408). Slow ones move bytes all the same.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// An HTTP/2 client is asked for a sign of life after so long without one.
pub const H2_PING_INTERVAL: Duration = Duration::from_secs(60);

/// Time for the sign of life, or for the answer to GOAWAY on a connection without requests.
pub const H2_PING_TIMEOUT: Duration = Duration::from_secs(20);

/// From so many requests on one HTTP/2 connection on, it is cut if more than half of them were reset at once
/// (CVE-2023-44487): each has cost an endpoint a connection.
pub const H2_RESETS_MIN: u32 = 200;

/// A stream of HTTP/2 whose client makes no room for what waits is reset after this many times [`STALL_TIMEOUT`], twice that at
/// the latest: its connection may move for others, and a slow client has [`H2_SEND_BUFFER_BYTES`] to take in that time.
pub const H2_STALL_FACTOR: u32 = 5;

/// What one HTTP/2 stream may have waiting to be sent, in bytes, beyond what its reader takes.
pub const H2_SEND_BUFFER_BYTES: usize = 64 * 1024;

/// What is kept of a request's body, in bytes, so that it can be sent again where its route says so. A larger one is sent once.
pub const REPLAY_BYTES_MAX: usize = 64 * 1024;

/// Interim answers (1xx) that are passed on of one exchange with an endpoint; further ones are dropped.
pub const INTERIM_ANSWERS_MAX: usize = 16;

/// How many bytes of them may wait for one client.
pub const INTERIM_BYTES_MAX: usize = 16 * 1024;

/// How long a request waits for a service that is not known yet: enough for a round trip to the control plane and
/// a first answer.
pub const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);

/// From the forwarded request to the head of its answer (504).
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// An upstream connection idle for longer is closed: below the 5 s that common servers keep theirs, so that we close
/// first (P42).
pub const UPSTREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// The same where an endpoint says for how long it keeps them (`Keep-Alive: timeout=60`), and it is longer than this.
pub const UPSTREAM_IDLE_SAID_MAX: Duration = Duration::from_secs(60);

/// Idle upstream connections kept per worker and endpoint; further ones are closed when their answer is done.
pub const UPSTREAM_IDLE_MAX: usize = 256;

/// Pieces of a body that wait for a mirror; one that is further behind gets no more of it.
pub const MIRROR_FRAMES_MAX: usize = 32;

/// Copies of requests that one worker has under way; further ones are not made.
pub const MIRRORS_MAX: usize = 256;

/// Answers that one worker collects for its cache at once; further ones are not stored.
pub const STORING_MAX: usize = 64;

/// Longest wait between two tries of a request.
pub const RETRY_BACKOFF_MAX: Duration = Duration::from_secs(1);

/// First wait between two tries, for routes that do not say.
pub const RETRY_BACKOFF_DEFAULT: Duration = Duration::from_millis(25);

/// Endpoints tried after a connect failure, beside the first.
pub const CONNECT_RETRIES_MAX: usize = 2;

/// Default of connections at once, all workers together; further ones wait in the kernel's queue.
pub const CONNECTIONS_MAX: usize = 20_000;

/// This part of them is kept for each of the two ways, those of apps and those of peers, so that neither locks the other out.
pub const CONNECTIONS_KEPT_DIVISOR: usize = 8;

/// Streams at once on one HTTP/2 connection.
pub const H2_STREAMS_MAX: u32 = 256;

/// Flow control window of one HTTP/2 stream, in bytes: the most that one slow reader buffers.
pub const H2_STREAM_WINDOW_BYTES: u32 = 256 * 1024;

/// Flow control window of one HTTP/2 connection, in bytes.
pub const H2_CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// Most times that one request may pass proxies of ours, by its `Via` field; more is a loop (508).
pub const HOPS_MAX: usize = 16;

/// Longest wait for the keys of an issuer, until their service is known and has sent all of them.
pub const JWKS_FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Waits before keys are fetched again after a failure: short at first, while tokens are refused for it.
pub const JWKS_RETRY_BASE: Duration = Duration::from_secs(1);
/// See [`JWKS_RETRY_BASE`]: an issuer that comes back is found soon.
pub const JWKS_RETRY_MAX: Duration = Duration::from_secs(30);

/// Largest body of a health check answer that is looked at, in bytes.
pub const HEALTH_BODY_BYTES_MAX: usize = 16 * 1024;

/// Longest time that a cluster may be configured with (to connect, between checks, of an ejection); the control plane
/// has the same limit.
pub const CLUSTER_TIME_MAX: Duration = Duration::from_secs(3600);

/// Shortest interval of active checks.
pub const HEALTH_CHECK_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// How often it is looked whether endpoints are to be compared, or shares of new ones to grow.
pub const MESH_TICK: Duration = Duration::from_secs(1);

/// Active checks that run at once; the others wait.
pub const HEALTH_CHECKS_AT_ONCE: usize = 64;

/// Between two checks of a service beside this sidecar.
pub const LOCAL_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Time for one check of a local service.
pub const LOCAL_CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// Between two tries to connect to an endpoint that was ejected because it refused connections, in a cluster without
/// active checks.
pub const RECOVERY_PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Largest weight of an endpoint.
pub const ENDPOINT_WEIGHT_MAX: u32 = 256;

/// Slots of a weighted round-robin schedule; weights are scaled down to fit.
pub const SCHEDULE_SLOTS_MAX: usize = 4096;

/// How long a stopping proxy waits for all members that are up to say that they use its services no more. One that is there
/// says so within a few hundredths of a second; one that is not is suspected by then.
pub const DRAIN_ACKNOWLEDGED_MAX: Duration = Duration::from_secs(3);

/// How long it keeps accepting after that, for those who hear of endpoints from servers and not by gossip.
pub const DRAIN_PROPAGATION: Duration = Duration::from_millis(300);

/// How long idle connections stay open after that, with every answer saying `Connection: close`; and again after the
/// last one was accepted.
pub const DRAIN_LINGER: Duration = Duration::from_millis(150);

/// How long idle connections stay open to a process that was taken over. Their next answer says `Connection: close`; clients
/// that close idle ones earlier, as other sidecars do, never meet one that is closing.
pub const HANDOVER_LINGER: Duration = Duration::from_secs(10);

/// Largest request to the admin port, in bytes: it has no bodies, and a question to `/admission` may carry the largest token.
pub const ADMIN_HEAD_BYTES_MAX: usize = 32 * 1024;

/// Labels of one local service. All instances of a sidecar share one gossip advertisement.
pub const LABELS_MAX: usize = 16;

/// Bytes of a label's key, and of its value.
pub const LABEL_BYTES_MAX: usize = 63;

/// Between two looks at the memory in use, where it is limited.
pub const MEMORY_LOOK_INTERVAL: Duration = Duration::from_millis(250);
