//! `/tap`: requests as they end, until the visitor leaves.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::{Body, Frame};

use crate::telemetry::tap::{Filter, TAPS_MAX, TapLines, Taps};

/// Lines of one visitor.
pub(super) struct Lines {
    lines: TapLines,
    /// How many more are wanted; none: without end.
    left: Option<u64>,
}

/// Begins it, or says why not.
pub(super) fn open(taps: &Arc<Taps>, query: &str) -> Result<Response<Lines>, (StatusCode, String)> {
    let bad = |why: String| (StatusCode::BAD_REQUEST, format!("{why}\n"));
    let query = super::query(query).map_err(bad)?;
    let filter = Filter::from_query(&query, &["limit"]).map_err(bad)?;
    let left = match query.get("limit") {
        None => None,
        Some(text) => match text.parse() {
            Ok(n @ 1..) => Some(n),
            _ => return Err(bad(format!("limit: {text:?}; allowed is a number of requests from 1"))),
        },
    };
    let lines = taps.open(filter).ok_or_else(|| {
        let why = format!("{TAPS_MAX} look on already, which is the limit; try again when one has left\n");
        (StatusCode::SERVICE_UNAVAILABLE, why)
    })?;
    Ok(Response::new(Lines { lines, left }))
}

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == Some(0) {
            return Poll::Ready(None);
        }
        let line = std::task::ready!(self.lines.poll_next(cx));
        if let (Some(left), Some(_)) = (&mut self.left, &line) {
            *left -= 1;
        }
        Poll::Ready(line.map(|line| Ok(Frame::data(line))))
    }
}
