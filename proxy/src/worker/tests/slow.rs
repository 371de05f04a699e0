//! Clients that hold on to what they have, over real sockets, with the sweep at work and short limits.

use tokio::time::timeout;

use super::*;

const LIMIT: Duration = Duration::from_millis(500);

fn impatient() -> Timeouts {
    Timeouts { head: LIMIT, idle: LIMIT * 6, stall: LIMIT, request: LIMIT * 20, tunnel: LIMIT * 3 }
}

/// Longer than any of the limits, with the sweep's own ticks.
const ENOUGH: Duration = Duration::from_secs(8);

/// Reads a head and then does what `then` says with the connection.
async fn endpoint<F, Fut>(then: F) -> SocketAddr
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut seen = [0; 1024];
            let _ = stream.read(&mut seen).await;
            tokio::spawn(then(stream));
        }
    });
    addr
}

async fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset ends it as well.
    let _ = timeout(ENOUGH, stream.read_to_end(&mut answer)).await.expect("the connection ends");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn nothing_in_flight(mesh: &MeshState) {
    for _ in 0..100 {
        let cluster = mesh.view().clusters["orders"].clone();
        if cluster.endpoints.endpoints().iter().all(|e| e.state.active() == 0) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("a request is still counted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_comes_too_slowly_is_408() {
    let served = serve(&[upstream(b'a').await], impatient());
    let (mut reader, mut writer) = TcpStream::connect(served.addr).await.unwrap().into_split();
    let drip = tokio::spawn(async move {
        let head = b"GET / HTTP/1.1\r\nHost: orders\r\n".iter().chain([b'x'].iter().cycle());
        for byte in head {
            if writer.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let mut answer = Vec::new();
    let _ = timeout(ENOUGH, reader.read_to_end(&mut answer)).await.expect("the connection ends");
    assert!(answer.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&answer));
    drip.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_preface_and_silence_are_ended() {
    let served = serve(&[upstream(b'a').await], impatient());
    for start in [&b""[..], b"PRI * HTTP/2.0\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut stream = TcpStream::connect(served.addr).await.unwrap();
        stream.write_all(start).await.unwrap();
        if start.len() < 24 {
            assert_eq!(rest(&mut stream).await, "", "{start:?}");
        }
    }
}

/// The request fails, and the endpoint is not held up by it for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_stops_coming_is_408() {
    let served = serve(
        &[endpoint(|mut s| async move { drop(s.read_to_end(&mut Vec::new()).await) }).await],
        impatient(),
    );
    for framing in ["Content-Length: 100\r\n\r\nhi", "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n"] {
        let mut stream = TcpStream::connect(served.addr).await.unwrap();
        stream.write_all(format!("POST / HTTP/1.1\r\nHost: orders\r\n{framing}").as_bytes()).await.unwrap();
        let answer = rest(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("nothing more"), "{answer}");
        nothing_in_flight(&served.mesh).await;
    }
    let cluster = served.mesh.view().clusters["orders"].clone();
    assert_eq!(cluster.endpoints.endpoints()[0].state.failures.in_a_row(), 0, "the endpoint is not to blame");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_takes_nothing_of_a_body_is_504() {
    let served = serve(
        &[endpoint(|s| async move {
            let _s = s;
            std::future::pending().await
        })
        .await],
        impatient(),
    );
    let (mut reader, mut writer) = TcpStream::connect(served.addr).await.unwrap().into_split();
    let upload = tokio::spawn(async move {
        writer
            .write_all(b"POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 1000000000\r\n\r\n")
            .await
            .unwrap();
        while writer.write_all(&[b'x'; 64 * 1024]).await.is_ok() {}
    });
    let mut head = [0; 12];
    timeout(ENOUGH, reader.read_exact(&mut head)).await.expect("an answer").unwrap();
    assert_eq!(&head, b"HTTP/1.1 504");
    nothing_in_flight(&served.mesh).await;
    upload.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_its_answer_is_cut() {
    let endless = endpoint(|mut s| async move {
        let _ = s.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        while s.write_all(&[b'x'; 64 * 1024]).await.is_ok() {}
    });
    let served = serve(&[endless.await], impatient());
    let mut stream = TcpStream::connect(served.addr).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await.unwrap();
    stream.read_exact(&mut [0; 12]).await.unwrap();
    tokio::time::sleep(LIMIT * 3).await;
    nothing_in_flight(&served.mesh).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_stops_behind_an_early_answer_is_cut() {
    let early = endpoint(|mut s| async move {
        let _ = s.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n").await;
        let _ = s.read_to_end(&mut Vec::new()).await;
    });
    let served = serve(&[early.await], impatient());
    let mut stream = TcpStream::connect(served.addr).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 100\r\n\r\nhi").await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    nothing_in_flight(&served.mesh).await;
}

/// Server-sent events: minutes may pass between two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_pauses_is_not_cut() {
    let pauses = endpoint(|mut s| async move {
        let _ = s.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab").await;
        tokio::time::sleep(LIMIT * 5).await;
        let _ = s.write_all(b"cd").await;
    });
    let served = serve(&[pauses.await], impatient());
    let mut stream = TcpStream::connect(served.addr).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n").await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.ends_with("abcd"), "{answer}");
}

/// A tunnel in which nothing moves ends, and one in which something does stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_stands_still_is_ended() {
    let echo = endpoint(|mut stream| async move {
        let agree = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n";
        stream.write_all(agree).await.unwrap();
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let served = serve(&[echo], impatient());
    let ask = b"GET / HTTP/1.1\r\nHost: orders\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    let (mut still, mut moves) =
        (TcpStream::connect(served.addr).await.unwrap(), TcpStream::connect(served.addr).await.unwrap());
    still.write_all(ask).await.unwrap();
    moves.write_all(ask).await.unwrap();
    let mover = tokio::spawn(async move {
        let mut seen = [0; 1024];
        for _ in 0..12 {
            tokio::time::sleep(LIMIT / 2).await;
            moves.write_all(b"x").await.unwrap();
            assert!(moves.read(&mut seen).await.unwrap() > 0);
        }
    });
    assert!(rest(&mut still).await.starts_with("HTTP/1.1 101"));
    mover.await.unwrap();
    nothing_in_flight(&served.mesh).await;
}
