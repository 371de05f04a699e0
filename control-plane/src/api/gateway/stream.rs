//! Bodies that are more than one value: JSON values one after the other in requests, lines in answers.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream;
use http::{Extensions, HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use prost_reflect::{MessageDescriptor, MethodDescriptor};
use serde::de::IgnoredAny;
use tonic::Code;

use super::call::{self, Messages};
use super::refusal::Refusal;
use super::{BODY_BYTES_MAX, transcode};

/// What was wrong with a message after the first: told at the end of the answer, which has begun already.
type Late = Arc<Mutex<Option<Refusal>>>;

/// The JSON values of a request's body, each as a framed message.
pub(super) struct Values {
    body: Body,
    kind: MessageDescriptor,
    buffer: BytesMut,
    ended: bool,
}

impl Values {
    pub(super) fn new(body: Body, kind: MessageDescriptor) -> Self {
        Self { body, kind, buffer: BytesMut::new(), ended: false }
    }

    /// The next value; none after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Refusal> {
        loop {
            match first_value(&self.buffer) {
                Ok(Some(length)) => {
                    let value = self.buffer.split_to(length);
                    return transcode::frame(&self.kind, &value).map(Some);
                }
                Ok(None) if !self.ended => self.more().await?,
                Ok(None) if self.buffer.iter().all(u8::is_ascii_whitespace) => return Ok(None),
                Ok(None) => {
                    return Err(Refusal::invalid(format!("{}: the JSON is cut off", self.kind.name())));
                }
                Err(error) => return Err(Refusal::invalid(format!("{}: {error}", self.kind.name()))),
            }
        }
    }

    /// The body as one value. Without any, it is a message without any field, as in etcd.
    pub(super) async fn only(&mut self) -> Result<Bytes, Refusal> {
        while !self.ended {
            self.more().await?;
        }
        if self.buffer.iter().all(u8::is_ascii_whitespace) {
            return Ok(transcode::empty_frame());
        }
        transcode::frame(&self.kind, &self.buffer)
    }

    async fn more(&mut self) -> Result<(), Refusal> {
        let Some(frame) = self.body.frame().await else {
            self.ended = true;
            return Ok(());
        };
        let broken = |error: axum::Error| Refusal::invalid(format!("the body broke off: {error}"));
        let Ok(data) = frame.map_err(broken)?.into_data() else { return Ok(()) };
        let seen = self.buffer.len() + data.len();
        if seen > BODY_BYTES_MAX {
            return Err(Refusal::new(
                Code::ResourceExhausted,
                format!("JSON of {seen} bytes or more exceeds the limit of {BODY_BYTES_MAX} bytes"),
            )
            .with_status(StatusCode::PAYLOAD_TOO_LARGE));
        }
        self.buffer.extend_from_slice(&data);
        Ok(())
    }
}

/// Bytes of the first value, with the space before it; none if it is not all there.
fn first_value(bytes: &[u8]) -> Result<Option<usize>, serde_json::Error> {
    let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<IgnoredAny>();
    match values.next() {
        Some(Ok(_)) => Ok(Some(values.byte_offset())),
        None => Ok(None),
        Some(Err(error)) if error.is_eof() => Ok(None),
        Some(Err(error)) => Err(error),
    }
}

/// Calls a method that is a stream both ways, with `first` and then the rest of the body as it comes. The end of the
/// body is the end of the requests, not of the call: `curl -d` says all at once and then listens.
pub(super) async fn both_ways(
    grpc: Router,
    method: &MethodDescriptor,
    metadata: HeaderMap,
    extensions: Extensions,
    first: Bytes,
    values: Values,
) -> Result<Response, Refusal> {
    let late = Late::default();
    let told = late.clone();
    let rest = stream::try_unfold(values, move |mut values| {
        let told = told.clone();
        async move {
            match values.next().await {
                Ok(next) => Ok(next.map(|message| (message, values))),
                Err(refusal) => {
                    *told.lock() = Some(refusal);
                    Err(std::io::Error::other("a message that is none"))
                }
            }
        }
    });
    let body = Body::from_stream(stream::once(async move { Ok(first) }).chain(rest));
    let name = format!("{}/{}", method.parent_service().full_name(), method.name());
    let answers = call::start(grpc, &name, metadata, extensions, body).await?;
    Ok(lines(answers, method.output(), late))
}

/// Answers as lines, made as the client takes them.
pub(super) fn lines(answers: Messages, kind: MessageDescriptor, late: Late) -> Response {
    let lines = stream::unfold(Some(answers), move |answers| {
        let (kind, late) = (kind.clone(), late.clone());
        async move {
            let mut answers = answers?;
            let next = answers.next().await.map_err(Refusal::from);
            let line = next.and_then(|next| next.map(|message| transcode::line(kind, message)).transpose());
            let (line, answers) = match line {
                Ok(Some(line)) => (Bytes::from(line), Some(answers)),
                Ok(None) => (late.lock().take()?.line(), None),
                // What the client said wrong is the reason, not what came of it.
                Err(refusal) => (late.lock().take().unwrap_or(refusal).line(), None),
            };
            Some((Ok::<_, std::convert::Infallible>(line), answers))
        }
    });
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(lines)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(pieces: &[&'static str]) -> Values {
        let pieces: Vec<_> = pieces.iter().map(|piece| Ok::<_, std::io::Error>(*piece)).collect();
        let body = Body::from_stream(stream::iter(pieces));
        Values::new(body, transcode::method("etcdserverpb.Lease/LeaseKeepAlive").input())
    }

    #[tokio::test]
    async fn values_are_found_wherever_the_body_is_cut_and_whatever_stands_between_them() {
        let mut values = values(&["{\"I", "D\":1}{\"ID\":2}", "\n\n {", "\"ID\":\"3\"}  "]);
        for id in 1..=3u8 {
            let frame = values.next().await.expect("reads").expect("is there");
            assert_eq!(frame.as_ref(), [0, 0, 0, 0, 2, 8, id]);
        }
        assert!(values.next().await.expect("reads").is_none());
    }

    #[tokio::test]
    async fn what_is_cut_off_or_no_json_is_refused() {
        for (pieces, expected) in [
            (&["{\"ID\":1"][..], "cut off"),
            (&["{\"ID\":1}}"], "expected value"),
            (&["{\"ID\":1}", "x"], "expected value"),
        ] {
            let mut values = values(pieces);
            let refused = loop {
                match values.next().await {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("{pieces:?} is taken"),
                    Err(refusal) => break format!("{refusal:?}"),
                }
            };
            assert!(refused.contains(expected), "{pieces:?}: {refused}");
        }
    }

    #[tokio::test]
    async fn a_call_takes_one_value_or_none_and_a_body_has_a_limit() {
        assert_eq!(values(&[" ", "\n"]).only().await.expect("reads"), [0; 5][..]);
        let two = values(&["{}", "{}"]).only().await.expect_err("is refused");
        assert!(format!("{two:?}").contains("trailing"), "{two:?}");
        let large = format!("{{\"ID\":\"{}\"}}", "1".repeat(BODY_BYTES_MAX)).leak();
        let refused = values(&[large]).only().await.expect_err("is refused");
        assert!(format!("{refused:?}").contains("exceeds the limit of 3145728 bytes"), "{refused:?}");
    }
}
