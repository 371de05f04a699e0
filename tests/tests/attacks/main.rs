//! What a sidecar holds while it is attacked: each attack takes no more memory than its limits say, and whoever comes after
//! it is served.

#[path = "../../../proxy/tests/shared/wire.rs"]
#[allow(dead_code, reason = "the proxy's own tests use all of it")]
mod wire;

mod http1;
mod http2;

use std::net::SocketAddr;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;
use weft_tests::fake_upstream::FakeUpstream;
use weft_tests::http_client;
use weft_tests::mesh::strings;
use weft_tests::process::WeftProcess;
use wire::*;

const MIB: u64 = 1024 * 1024;

/// What a sidecar may grow by for being used at all: pages of the program, workers' buffers, what the allocator keeps.
const IN_USE: u64 = 8 * MIB;

/// An attack that is not refused goes on for so long at most.
const LONG: Duration = Duration::from_secs(20);

/// A sidecar with three services: `shop`, `silent`, which reads nothing and says nothing, and `endless`, whose answers are.
struct Scene {
    proxy: WeftProcess,
    outbound: SocketAddr,
    before: u64,
    _shop: FakeUpstream,
    _dir: tempfile::TempDir,
}

impl Scene {
    async fn new(more: &[&str]) -> Self {
        let shop = FakeUpstream::start("shop").await;
        let dir = tempfile::tempdir().expect("a folder");
        let mut text = "name: edge\nadmin: 127.0.0.1:0\noutbound: 127.0.0.1:0\nclusters:\n".to_owned();
        for (name, at) in [("shop", shop.addr()), ("silent", silent().await), ("endless", endless().await)] {
            text += &format!("  - {{name: {name}, endpoints: ['{at}']}}\n");
        }
        let file = dir.path().join("edge.yaml");
        std::fs::write(&file, text).expect("the folder is ours");
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["shop".to_owned()]).expect("a name");
        let cert = params.self_signed(&key).expect("signed");
        std::fs::write(dir.path().join("cert.pem"), cert.pem()).expect("the folder is ours");
        std::fs::write(dir.path().join("key.pem"), key.serialize_pem()).expect("the folder is ours");
        let more = more.iter().map(|flag| flag.replace("DIR", &dir.path().display().to_string()));
        let mut args = strings(&["proxy", "--config", &file.display().to_string()]);
        args.extend(more);
        let proxy = WeftProcess::start("edge", &args).await;
        let outbound = proxy.addr("outbound");
        let mut scene = Self { proxy, outbound, before: 0, _shop: shop, _dir: dir };
        scene.serves().await;
        scene.before = scene.proxy.resident();
        scene
    }

    /// Both protocols, on connections of their own.
    async fn serves(&self) {
        let answer = http_client::get(self.outbound, "shop", "/x").await.expect("it is answered");
        assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, "shop\n"));
        let mut wire = Wire::open(self.outbound).await;
        wire.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &get("shop"))).await;
        let answered = async {
            while let Some((kind, stream, payload)) = wire.frame().await {
                if kind == DATA && stream == 1 {
                    return payload;
                }
            }
            Vec::new()
        };
        let answered = tokio::time::timeout(LONG, answered).await.expect("it is answered");
        assert_eq!(answered, b"shop\n", "over HTTP/2");
    }

    /// Runs an attack on so many connections at once, which all stay open until it is over.
    async fn attack<F, Fut, T>(&self, connections: usize, attack: F) -> Vec<T>
    where
        F: Fn(SocketAddr, usize) -> Fut,
        Fut: Future<Output = T> + Send + 'static,
        T: Send + 'static,
    {
        let mut all = JoinSet::new();
        for number in 0..connections {
            let attack = attack(self.outbound, number);
            all.spawn(async move { tokio::time::timeout(LONG, attack).await.expect("it has an end") });
        }
        all.join_all().await
    }

    /// Others are served, and no more was held at any moment.
    async fn endured(&self, what: &str, growth_max: u64) {
        self.serves().await;
        let grown = self.proxy.resident_most().saturating_sub(self.before);
        eprintln!("{what}: {} KiB, at most {} KiB", grown / 1024, growth_max / 1024);
        assert!(grown < growth_max, "{what}: {grown} bytes from {}, {growth_max} allowed", self.before);
    }
}

async fn silent() -> SocketAddr {
    let socket = TcpSocket::new_v4().expect("a socket");
    // Else the kernel takes megabytes for it.
    socket.set_recv_buffer_size(4096).expect("it can be small");
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("binds");
    let listener = socket.listen(1024).expect("listens");
    let addr = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    addr
}

async fn endless() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1099511627776\r\n\r\n";
                let _ = stream.write_all(head).await;
                while stream.write_all(&[b'x'; 64 * 1024]).await.is_ok() {}
            });
        }
    });
    addr
}

fn get(authority: &str) -> Vec<u8> {
    fields(&[
        (":method", b"GET"),
        (":scheme", b"http"),
        (":path", b"/"),
        (":authority", authority.as_bytes()),
    ])
}
