//! What passes a sidecar does not stay in it.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weft_tests::mesh::strings;
use weft_tests::process::WeftProcess;

const GIB: usize = 1024 * 1024 * 1024;

/// More than the process may grow by while it carries as much as a thousand times of it.
const GROWTH_MAX: u64 = 24 * 1024 * 1024;

/// Takes each body to its end, and then says how long it was.
async fn sink() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut piece = vec![0; 256 * 1024];
                let mut seen = 0;
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => return,
                    }
                }
                while seen < GIB {
                    match stream.read(&mut piece).await {
                        Ok(read) if read > 0 => seen += read,
                        _ => return,
                    }
                }
                let text = seen.to_string();
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len());
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    addr
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_of_a_gibibyte_passes_whole_and_memory_stays_flat() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("proxy.yaml");
    let text = format!("clusters:\n  - name: sink\n    endpoints: [\"{}\"]\n", sink().await);
    std::fs::write(&file, text).expect("writes");
    let args = [
        "proxy",
        "--config",
        &file.display().to_string(),
        "--outbound",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
    ];
    let proxy = WeftProcess::start("proxy", &strings(&args)).await;
    let mut stream = TcpStream::connect(proxy.addr("outbound")).await.expect("connects");
    let head = format!("POST / HTTP/1.1\r\nhost: sink\r\ncontent-length: {GIB}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("writes");
    let piece = vec![b'x'; 1024 * 1024];
    // What the first pieces need is there from then on.
    for _ in 0..16 {
        stream.write_all(&piece).await.expect("writes");
    }
    let before = proxy.resident();
    let mut most = before;
    let whole = async {
        for sent in 16..GIB / piece.len() {
            stream.write_all(&piece).await.expect("writes");
            if sent % 32 == 0 {
                most = most.max(proxy.resident());
            }
        }
        let mut answer = [0; 1024];
        let read = stream.read(&mut answer).await.expect("an answer");
        String::from_utf8_lossy(&answer[..read]).into_owned()
    };
    let answer = tokio::time::timeout(Duration::from_secs(120), whole).await.expect("it goes on");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(&GIB.to_string()), "{answer}");
    assert!(most < before + GROWTH_MAX, "from {before} to {most} bytes");
}
