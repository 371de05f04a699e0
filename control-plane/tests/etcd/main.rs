//! The etcd API from outside: a real one-server group over a temporary folder, a real gRPC server on a
//! free loopback port, and clients over TCP: generated ones, and `etcdctl`.

mod auth;
mod cluster;
mod etcdctl;
mod group;
mod kv;
mod lease;
mod repeated;
mod server;
mod txn;
mod watch;
mod watch_limits;
