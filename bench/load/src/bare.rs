//! The least that a gRPC server in Rust can do: what a server costs before it has done anything of its own.

use std::{convert::Infallible, net::SocketAddr};

use anyhow::Context;
use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderValue, Response, header::CONTENT_TYPE};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    Request,
    body::{Body, Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use weft_xds_proto::{
    etcdserverpb::{RangeResponse, ResponseHeader},
    mvccpb::KeyValue,
};

/// Answers every call with the same range of one key of 256 bytes, unread and undecided, on hyper alone and on one
/// thread, until the process is ended.
pub async fn run(listen: SocketAddr) -> anyhow::Result<()> {
    let listener =
        tokio::net::TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    println!("listening on {}", listener.local_addr()?);
    let answer = answer();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let answer = answer.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| respond(request, answer.clone()));
            // A load generator that goes away ends its connections; that is no error here.
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// The message with its frame: a flag and the length.
fn answer() -> Bytes {
    let kv = KeyValue {
        key: Bytes::from_static(b"bench/000000"),
        value: vec![b'v'; 256].into(),
        ..Default::default()
    };
    let header = ResponseHeader { cluster_id: 1, member_id: 1, revision: 1, raft_term: 1 };
    let message = RangeResponse { header: Some(header), kvs: vec![kv], more: false, count: 1 };
    let mut framed = vec![0];
    framed.extend((message.encoded_len() as u32).to_be_bytes());
    framed.extend(message.encode_to_vec());
    framed.into()
}

async fn respond(
    request: Request<Incoming>,
    answer: Bytes,
) -> Result<Response<impl Body<Data = Bytes, Error = Infallible>>, hyper::Error> {
    let mut body = request.into_body();
    while !body.is_end_stream() {
        let Some(frame) = body.frame().await else { break };
        frame?;
    }
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = stream::iter([Ok(Frame::data(answer)), Ok(Frame::trailers(trailers))]);
    let mut response = Response::new(StreamBody::new(frames));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    Ok(response)
}
