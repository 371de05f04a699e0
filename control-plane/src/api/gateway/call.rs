//! Calling a gRPC service of this process as a client on the port does: the same router, the same frames, no socket.

use axum::Router;
use axum::body::Body;
use bytes::{Buf, Bytes, BytesMut};
use http::{Extensions, HeaderMap, HeaderValue, Method, Request, Version, header};
use http_body_util::BodyExt;
use tonic::Status;
use tower::Service;

use super::transcode::FRAME_HEAD;

/// Begins a call. `body` is framed messages.
///
/// # Errors
/// What the service refused before it answered anything.
pub(super) async fn start(
    mut grpc: Router,
    method: &str,
    mut metadata: HeaderMap,
    extensions: Extensions,
    body: Body,
) -> Result<Messages, Status> {
    metadata.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    metadata.insert(header::TE, HeaderValue::from_static("trailers"));
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = format!("/{method}").parse().expect("names of methods are paths");
    *request.headers_mut() = metadata;
    *request.extensions_mut() = extensions;
    let response = match Service::<Request<Body>>::call(&mut grpc, request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    refused(response.headers())?;
    if !response.status().is_success() {
        return Err(Status::internal(format!(
            "weft: {method} answered with HTTP status {}",
            response.status()
        )));
    }
    Ok(Messages { body: response.into_body(), buffer: BytesMut::new() })
}

/// The answers of a call, without their frames.
pub(super) struct Messages {
    body: Body,
    buffer: BytesMut,
}

impl Messages {
    /// The next one; none when the call has ended well.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(message) = self.framed() {
                return Ok(Some(message));
            }
            let Some(frame) = self.body.frame().await else {
                let whole = self.buffer.is_empty();
                return if whole { Ok(None) } else { Err(Status::internal("weft: an answer was cut off")) };
            };
            let frame = frame.map_err(|error| Status::unavailable(error.to_string()))?;
            match frame.into_data() {
                Ok(data) => self.buffer.extend_from_slice(&data),
                Err(frame) => {
                    if let Some(trailers) = frame.trailers_ref() {
                        refused(trailers)?;
                    }
                }
            }
        }
    }

    /// The answer of a call that gives one.
    pub(super) async fn only(&mut self) -> Result<Bytes, Status> {
        let message = self.next().await?;
        // What comes after it is how the call ended.
        while self.next().await?.is_some() {}
        message.ok_or_else(|| Status::internal("weft: a call ended without an answer"))
    }

    fn framed(&mut self) -> Option<Bytes> {
        let length = self.buffer.get(1..FRAME_HEAD)?;
        let length = u32::from_be_bytes(length.try_into().expect("four bytes")) as usize;
        if self.buffer.len() < FRAME_HEAD + length {
            return None;
        }
        self.buffer.advance(FRAME_HEAD);
        Some(self.buffer.split_to(length).freeze())
    }
}

fn refused(headers: &HeaderMap) -> Result<(), Status> {
    match Status::from_header_map(headers) {
        Some(status) if status.code() != tonic::Code::Ok => Err(status),
        _ => Ok(()),
    }
}
