//! Wire types: etcd v3, Weft's own API, the servers' peer protocol (generated at build time) and the
//! Envoy xDS v3 types (from `envoy-types`), plus the validated resources that both sides of xDS use.

/// Code generated from the `.proto` files in `proto/`.
#[allow(missing_docs, clippy::all, rust_2018_idioms)]
pub mod generated {
    /// etcd's `mvccpb` package.
    pub mod mvccpb {
        tonic::include_proto!("mvccpb");
    }
    /// etcd's `authpb` package.
    pub mod authpb {
        tonic::include_proto!("authpb");
    }
    /// etcd's `etcdserverpb` package: KV, Watch, Lease, Cluster, Maintenance, Auth.
    pub mod etcdserverpb {
        tonic::include_proto!("etcdserverpb");
    }
    /// Weft's own `weft.v1` package: Kv, Semaphore, Election, Mesh, MeshConfig.
    pub mod weft {
        /// Version 1.
        pub mod v1 {
            tonic::include_proto!("weft.v1");
        }
        /// The servers' peer protocol.
        pub mod peer {
            /// Version 1.
            pub mod v1 {
                tonic::include_proto!("weft.peer.v1");
            }
        }
    }
}

/// The etcd API and `weft.v1` described: a `FileDescriptorSet`, encoded. For clients that ask the server what it
/// speaks, and for JSON, whose names and kinds of fields the generated types do not carry.
pub const CLIENT_API_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/client_api.bin"));

#[cfg(test)]
mod any_input;
pub mod nack;
pub mod nonce;
pub mod resource;
pub mod type_url;

pub use envoy_types;
pub use generated::weft::peer::v1 as peer;
pub use generated::weft::v1 as weft;
pub use generated::{authpb, etcdserverpb, mvccpb};
