//! A check by gRPC's health checking protocol (`grpc.health.v1`, gRPC's doc/health-checking.md).

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderMap, TE, USER_AGENT};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;

use super::{HEALTH_BODY_BYTES_MAX, UpstreamStream};
use crate::upstream::once::Connection;

#[derive(Clone, PartialEq, Message)]
struct CheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct CheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SERVING: i32 = 1;

/// Asks for a service, or for the server as a whole if the name is empty.
pub(super) async fn check(stream: UpstreamStream, host: &str, service: &str) -> Result<(), String> {
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let _connection = Connection::of(connection);
    let request = Request::post(format!("http://{host}/grpc.health.v1.Health/Check"))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header(USER_AGENT, "weft-health")
        .body(Full::new(frame(&CheckRequest { service: service.to_owned() })))
        .map_err(|e| e.to_string())?;
    judge(sender.send_request(request).await.map_err(|e| e.to_string())?).await
}

/// One message, not compressed.
fn frame(message: &impl Message) -> Bytes {
    let encoded = message.encode_to_vec();
    let mut frame = BytesMut::with_capacity(5 + encoded.len());
    frame.put_u8(0);
    // A service name, so far below that.
    frame.put_u32(u32::try_from(encoded.len()).unwrap_or(u32::MAX));
    frame.put_slice(&encoded);
    frame.freeze()
}

async fn judge(answer: Response<Incoming>) -> Result<(), String> {
    let (head, body) = answer.into_parts();
    if head.status != http::StatusCode::OK {
        return Err(format!("status {}", head.status.as_u16()));
    }
    // An error without a message says so in the head.
    grpc_status(&head.headers)?;
    if body.is_end_stream() {
        return Err("no message".to_owned());
    }
    let whole = Limited::new(body, HEALTH_BODY_BYTES_MAX).collect().await.map_err(|e| e.to_string())?;
    if let Some(trailers) = whole.trailers() {
        grpc_status(trailers)?;
    }
    judge_message(&whole.to_bytes())
}

fn grpc_status(fields: &HeaderMap) -> Result<(), String> {
    match fields.get("grpc-status").map(|v| v.as_bytes()) {
        None | Some(b"0") => Ok(()),
        Some(status) => {
            let text = fields.get("grpc-message").and_then(|v| v.to_str().ok()).unwrap_or_default();
            Err(format!("gRPC status {} {text}", String::from_utf8_lossy(status)).trim_end().to_owned())
        }
    }
}

/// What an answer says, without its head.
pub(crate) fn judge_message(bytes: &[u8]) -> Result<(), String> {
    let message = match bytes {
        [0, a, b, c, d, message @ ..] if u32::from_be_bytes([*a, *b, *c, *d]) as usize == message.len() => {
            message
        }
        _ => return Err("an answer that is no single gRPC message".to_owned()),
    };
    match CheckResponse::decode(message).map_err(|e| e.to_string())?.status {
        SERVING => Ok(()),
        2 => Err("NOT_SERVING".to_owned()),
        3 => Err("SERVICE_UNKNOWN".to_owned()),
        other => Err(format!("serving status {other}")),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use hyper::service::service_fn;

    use super::*;

    /// Answers one call with a serving status and a gRPC status.
    async fn ask(serving: Option<i32>, grpc_status: &'static str) -> Result<(), String> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (served, _) = listener.accept().await.unwrap();
        let service = service_fn(move |request: Request<Incoming>| async move {
            assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
            assert_eq!(request.headers()[CONTENT_TYPE], "application/grpc");
            let asked = request.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(asked, frame(&CheckRequest { service: "shop.Orders".to_owned() }));
            let trailers =
                HeaderMap::from_iter([("grpc-status".parse().unwrap(), grpc_status.parse().unwrap())]);
            let message = serving.map(|status| Ok(Frame::data(frame(&CheckResponse { status }))));
            let frames = message.into_iter().chain([Ok::<_, Infallible>(Frame::trailers(trailers))]);
            Ok::<_, Infallible>(Response::new(StreamBody::new(futures::stream::iter(
                frames.collect::<Vec<_>>(),
            ))))
        });
        let server = tokio::spawn(
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(served), service),
        );
        let result = check(UpstreamStream::Left(stream), "orders", "shop.Orders").await;
        server.abort();
        result
    }

    #[tokio::test]
    async fn only_serving_passes() {
        assert_eq!(ask(Some(1), "0").await, Ok(()));
        assert_eq!(ask(Some(2), "0").await, Err("NOT_SERVING".to_owned()));
        assert_eq!(ask(Some(0), "0").await, Err("serving status 0".to_owned()));
        assert_eq!(ask(None, "12").await, Err("gRPC status 12".to_owned()));
        assert_eq!(ask(Some(1), "14").await, Err("gRPC status 14".to_owned()));
        assert!(ask(None, "0").await.is_err(), "no message is no statement");
    }

    #[test]
    fn what_is_no_single_message_is_refused() {
        for bad in
            [&b""[..], b"\0\0\0\0", b"\0\0\0\0\x02\x08", b"\x01\0\0\0\x02\x08\x01", b"\0\0\0\0\x01\xff"]
        {
            assert!(judge_message(bad).is_err(), "{bad:?}");
        }
        assert_eq!(judge_message(b"\0\0\0\0\x02\x08\x01"), Ok(()));
    }
}
