//! By HTTP/1.1, and in place of TLS.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::{IN_USE, Scene};

/// Slowloris: heads that never end, short ones and almost as long as they may be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_heads_take_no_more_than_their_bytes() {
    let scene = Scene::new(&[]).await;
    let open = async |connections: usize, length: usize| {
        let head = format!("GET / HTTP/1.1\r\nhost: shop\r\nx: {}", "a".repeat(length));
        let attack = scene.attack(connections, |to, _| {
            let head = head.clone();
            async move {
                let mut stream = TcpStream::connect(to).await.expect("connects");
                stream.write_all(head.as_bytes()).await.expect("it is taken");
                stream
            }
        });
        attack.await
    };
    let short = open(800, 10).await;
    // As much as an idle connection.
    let of_short = 800 * 12 * 1024;
    scene.endured("short heads", IN_USE + of_short).await;
    let long = open(400, 60_000).await;
    // The largest read buffer.
    scene.endured("long heads", IN_USE + of_short + 400 * 80 * 1024).await;
    drop((short, long));
}

/// A size is what may come, and no room is made for it before it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sizes_of_chunks_and_bodies_are_not_believed() {
    let scene = Scene::new(&[]).await;
    let head = "POST / HTTP/1.1\r\nhost: silent\r\n";
    let long = "x".repeat(100_000);
    let bodies = [
        "transfer-encoding: chunked\r\n\r\n7fffffffffffffff\r\nhello".to_owned(),
        "transfer-encoding: chunked\r\n\r\nffffffffffffffff\r\nhello".to_owned(),
        "transfer-encoding: chunked\r\n\r\n7fffffff\r\nhello".to_owned(),
        "transfer-encoding: chunked\r\n\r\n100000000000000000\r\nhello".to_owned(),
        format!("transfer-encoding: chunked\r\n\r\n5;{long}"),
        format!("transfer-encoding: chunked\r\n\r\n0\r\nx: {long}"),
        "content-length: 9223372036854775807\r\n\r\nhello".to_owned(),
    ];
    let held = scene.attack(50 * bodies.len(), |to, number| {
        let bytes = format!("{head}{}", bodies[number % bodies.len()]);
        async move {
            let mut stream = TcpStream::connect(to).await.expect("connects");
            // It may be refused before all of it is sent.
            let _ = stream.write_all(bytes.as_bytes()).await;
            stream
        }
    });
    let held = held.await;
    scene.endured("sizes", IN_USE + 50 * bodies.len() as u64 * 32 * 1024).await;
    drop(held);
}

/// What is no handshake, or one that never ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_in_place_of_tls_takes_little() {
    let shop = "127.0.0.1:0=shop,cert=DIR/cert.pem,key=DIR/key.pem";
    let by_name = "127.0.0.1:0=*,protocol=tls";
    let scene = Scene::new(&["--upstream", shop, "--upstream", by_name]).await;
    let doors: Vec<SocketAddr> = (scene.proxy.ready()["upstreams"].as_array().expect("two").iter())
        .map(|door| door["address"].as_str().and_then(|at| at.parse().ok()).expect("an address"))
        .collect();
    assert_eq!(doors.len(), 2, "{}", scene.proxy.ready());
    let record =
        |kind: u8, bytes: &[u8]| [&[kind, 3, 3], &(bytes.len() as u16).to_be_bytes()[..], bytes].concat();
    // A hello of 16 MiB, of which as much comes as is taken.
    let endless = [&[1, 0xff, 0xff, 0xff][..], &[0; 16_000]].concat();
    let half = [&[1, 0, 0xea, 0x60][..], &[0; 12_000]].concat();
    let hellos = [record(22, &endless), record(22, &[0; 16_000]).repeat(20)].concat();
    let garbage = [
        vec![0xff; 100_000],
        b"GET / HTTP/1.1\r\nhost: shop\r\n\r\n".repeat(2000),
        record(22, &[0; 100]).repeat(1000),
        record(23, &[0; 16_000]).repeat(10),
        record(20, &[1]).repeat(10_000),
        record(21, &[1, 0]).repeat(10_000),
        record(22, &[]).repeat(10_000),
        hellos,
        [record(22, &half), record(22, &[0; 16_000]).repeat(2)].concat(),
        vec![22, 3, 1, 0xff, 0xff, 1],
    ];
    let held = scene.attack(doors.len() * garbage.len() * 20, |_, number| {
        let bytes = garbage[number / doors.len() % garbage.len()].clone();
        let to = doors[number % doors.len()];
        async move {
            let mut stream = TcpStream::connect(to).await.expect("connects");
            // It may be refused before all of it is sent.
            let _ = tokio::time::timeout(Duration::from_secs(1), stream.write_all(&bytes)).await;
            stream
        }
    });
    let held = held.await;
    scene.endured("garbage", IN_USE + held.len() as u64 * 64 * 1024).await;
    drop(held);
}
