//! One GET on a connection of its own, for what this proxy itself wants to know of an endpoint. On the control runtime.

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderValue, USER_AGENT};
use http::{Request, Response};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use weft_xds_proto::resource::cluster::Protocol;

use super::stream::UpstreamStream;

/// The connection of an answer, which ends with it: hold it while the answer is read.
pub(crate) struct Connection(tokio::task::JoinHandle<()>);

impl Connection {
    /// Drives one.
    pub fn of<F>(connection: F) -> Self
    where
        F: Future<Output: Send> + Send + 'static,
    {
        Self(tokio::spawn(async move {
            let _ = connection.await;
        }))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Asks, and answers with the head of the answer.
///
/// # Errors
/// Why there is none.
pub(crate) async fn get(
    stream: UpstreamStream,
    protocol: Protocol,
    (host, path): (&str, &str),
    agent: &'static str,
) -> Result<(Response<Incoming>, Connection), String> {
    let request = |uri: &str| {
        let mut request = Request::get(uri).header(USER_AGENT, agent);
        if protocol == Protocol::Http1 {
            let close = HeaderValue::from_static("close");
            request = request.header(HOST, host).header(CONNECTION, close);
        }
        request.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())
    };
    let io = TokioIo::new(stream);
    match protocol {
        Protocol::Http1 => {
            let (mut sender, connection) = http1::handshake(io).await.map_err(|e| e.to_string())?;
            let connection = Connection::of(connection);
            let answer = sender.send_request(request(path)?).await;
            Ok((answer.map_err(|e| e.to_string())?, connection))
        }
        Protocol::Http2 => {
            let handshake = http2::handshake(TokioExecutor::new(), io).await;
            let (mut sender, connection) = handshake.map_err(|e| e.to_string())?;
            let connection = Connection::of(connection);
            let answer = sender.send_request(request(&format!("http://{host}{path}"))?).await;
            Ok((answer.map_err(|e| e.to_string())?, connection))
        }
    }
}
