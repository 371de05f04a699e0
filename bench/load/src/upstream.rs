//! A plain HTTP server to measure proxies with.

use std::{convert::Infallible, net::SocketAddr};

use anyhow::Context;
use bytes::Bytes;
use http::{Request, Response, header::CONTENT_LENGTH};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};

const SMALL: &[u8] = &[b'x'; 128];
const PIECE: &[u8] = &[b'x'; 64 * 1024];

/// Answers every request with 128 bytes, and `/bytes/N` with N, over HTTP/1.1 or HTTP/2 with prior knowledge, until the
/// process is ended.
pub async fn run(listen: SocketAddr) -> anyhow::Result<()> {
    let listener =
        tokio::net::TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let service = service_fn(async |request| Ok::<_, Infallible>(answer(&request)));
            // A load generator that goes away ends its connections; that is no error here.
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn answer(request: &Request<Incoming>) -> Response<BoxBody<Bytes, Infallible>> {
    let many = request.uri().path().strip_prefix("/bytes/").and_then(|count| count.parse::<u64>().ok());
    let Some(count) = many else { return Response::new(Full::new(Bytes::from_static(SMALL)).boxed()) };
    let pieces = futures::stream::unfold(count, |left| async move {
        let length = left.min(PIECE.len() as u64);
        let piece = Bytes::from_static(&PIECE[..length as usize]);
        (length > 0).then_some((Ok(Frame::data(piece)), left - length))
    });
    let mut answer = Response::new(BoxBody::new(StreamBody::new(pieces)));
    answer.headers_mut().insert(CONTENT_LENGTH, count.into());
    answer
}
