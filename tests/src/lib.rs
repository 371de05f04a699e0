//! Harness for tests that cross crates: real `weft` processes on free ports, real sockets, real disk.
//!
//! - [`process`]: one `weft` process with its ready line, captured log and guaranteed stop.
//! - [`mesh`]: servers and proxies that find each other, and what tests ask of them.
//! - [`envoy`]: a real Envoy that goes by what a server tells over xDS.
//! - [`fake_upstream`]: a small HTTP service that says who it is, and can be stopped and started.
//! - [`http_client`]: one-shot HTTP requests and raw bytes over TCP.
//! - [`installed`]: a program that is replaced while it runs, and [`notified`]: what its supervisor hears of that.
//! - [`load`]: requests without a pause, none of which may fail.
//! - [`netns`]: servers in network namespaces, over a network that loses, delays and cuts.
//! - [`pki`]: identities of sidecars.
//! - [`wait`]: waiting for a condition with a deadline and a reason.
//! - [`workload`]: clients that record what they see while servers suffer.
//! - [`history`]: what clients asked and were told, and [`checker`]: whether that was right.
//!
//! The binary under test is `WEFT_BIN`, or the `weft` that lies beside the test's own target folder.

pub mod checker;
pub mod envoy;
pub mod fake_upstream;
pub mod history;
pub mod http_client;
pub mod installed;
pub mod load;
pub mod mesh;
pub mod netns;
pub mod notified;
pub mod pki;
pub mod process;
pub mod small_disk;
pub mod wait;
pub mod workload;
