//! A plain HTTP/1.1 server to measure proxies with.

use std::net::SocketAddr;

use anyhow::Context;
use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

/// Answers every request with 128 bytes, until the process is ended.
pub async fn run(listen: SocketAddr) -> anyhow::Result<()> {
    let listener =
        tokio::net::TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    println!("listening on {}", listener.local_addr()?);
    let body = Bytes::from_static(&[b'x'; 128]);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let body = body.clone();
        tokio::spawn(async move {
            let service = service_fn(move |_| {
                let answer = Response::new(Full::new(body.clone()));
                async move { Ok::<_, std::convert::Infallible>(answer) }
            });
            // A load generator that goes away ends its connections; that is no error here.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}
