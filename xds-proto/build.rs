//! Compiles the `.proto` files with a pure-Rust compiler, so that no `protoc` is needed.
//! Keys and values are `Bytes`, which share the received frame instead of copying out of it.

use prost::Message;

/// What only servers say to each other, and no client needs to know.
const PEER_PROTOCOL: &str = "weft/peer.proto";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(
        [
            "etcd/rpc.proto",
            "weft/config.proto",
            "weft/coordination.proto",
            "weft/kv.proto",
            "weft/mesh.proto",
            PEER_PROTOCOL,
        ],
        ["proto"],
    )?;
    let mut client_api = descriptors.clone();
    client_api.file.retain(|file| file.name() != PEER_PROTOCOL);
    for file in &mut client_api.file {
        // Comments and places in the source: half of the bytes, and nobody asks for them.
        file.source_code_info = None;
    }
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("client_api.bin"), client_api.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_server(true)
        .build_client(true)
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
