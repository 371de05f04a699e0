//! One-shot HTTP requests and small servers over real sockets.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// No demo request takes longer.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// Largest answer that is read: demo answers are a line or two.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// A whole answer.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: String,
}

/// One request on a connection of its own. The error is in words.
pub(crate) async fn call(
    to: SocketAddr,
    host: &str,
    method: Method,
    path: &str,
    json: Option<String>,
) -> Result<Answer, String> {
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, host);
    if json.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let request =
        request.body(Full::new(Bytes::from(json.unwrap_or_default()))).map_err(|error| error.to_string())?;
    let exchange = async {
        let stream =
            TcpStream::connect(to).await.map_err(|error| format!("cannot connect to {to}: {error}"))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        // Its own task, ended together with this call.
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let answer =
            sender.send_request(request).await.map_err(|error| format!("{to} did not answer: {error}"))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| format!("the answer of {to} broke off: {error}"))?;
        Ok(Answer { status, body: String::from_utf8_lossy(&body.to_bytes()).into_owned() })
    };
    tokio::time::timeout(REQUEST_LIMIT, exchange)
        .await
        .unwrap_or_else(|_| Err(format!("{to} did not answer within {REQUEST_LIMIT:?}")))
}

/// Serves HTTP/1.1 until it is dropped or aborted, which also closes its connections at once.
pub(crate) async fn serve<F, Fut>(listener: TcpListener, answer: F)
where
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: wait for some to be closed.
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let answer = answer.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let answer = answer(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "demo connection ended");
            }
        });
    }
}

/// A plain text answer.
pub(crate) fn text(status: StatusCode, body: impl Into<String>) -> Response<Full<Bytes>> {
    plain(status, "text/plain; charset=utf-8", body.into())
}

/// A JSON answer.
pub(crate) fn json(status: StatusCode, body: impl Into<String>) -> Response<Full<Bytes>> {
    plain(status, "application/json", body.into())
}

fn plain(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}
