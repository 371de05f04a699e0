//! Compiles the `.proto` files with a pure-Rust compiler, so that no `protoc` is needed.
//! Keys and values are `Bytes`, which share the received frame instead of copying out of it.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(
        [
            "etcd/rpc.proto",
            "weft/config.proto",
            "weft/coordination.proto",
            "weft/kv.proto",
            "weft/mesh.proto",
            "weft/peer.proto",
        ],
        ["proto"],
    )?;
    tonic_prost_build::configure()
        .build_server(true)
        .build_client(true)
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
