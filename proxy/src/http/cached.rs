//! The cache of a route's answers: asked before a request goes on, filled as its answer streams by.

use std::rc::Rc;
use std::task::{Context as TaskContext, Poll};
use std::time::Instant;

use std::pin::Pin;

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{Response, StatusCode, request};
use http_body::{Body, Frame};
use weft_xds_proto::resource::route::CachePolicy;

use super::body::{BodyError, ResponseBody};
use super::context::Context;
use super::target::Target;
use crate::limits::STORING_MAX;
use crate::policy::cache::{Found, Pending, Ticket, judge};

/// RFC 9211.
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// What a cache has for a request, or will do with its answer.
pub(crate) enum Lookup {
    /// It is answered.
    Answer(Response<ResponseBody>),
    /// It goes on; what comes may be stored.
    Store(Ticket),
    /// It goes on; if it succeeds, what is stored of its target goes.
    Changes(String),
    /// It goes on, and that is all.
    Pass,
}

/// What is known of a request beside its head.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub route: &'a str,
    pub target: &'a Target,
    /// As in [`super::resolve::Routed`].
    pub path: Option<&'a str>,
    /// It had `Authorization`, which may have been taken out meanwhile.
    pub authorized: bool,
    /// What its answer depends on then is no part of the key.
    pub has_body: bool,
}

/// Asks the cache.
pub(crate) fn lookup(ctx: &Context, head: &request::Parts, asked: Asked<'_>) -> Lookup {
    let path = asked.path.unwrap_or_else(|| head.uri.path());
    let key = format!("{}{path}?{}", asked.target.host, head.uri.query().unwrap_or_default());
    if !head.method.is_safe() {
        return Lookup::Changes(key);
    }
    if asked.has_body {
        return Lookup::Pass;
    }
    match ctx.cache.borrow_mut().lookup(&key, asked.route, head, Instant::now()) {
        Found::Miss(ticket) if asked.authorized => Lookup::Store(ticket.authorized()),
        Found::Miss(ticket) => Lookup::Store(ticket),
        Found::Bypass => Lookup::Pass,
        Found::OnlyIfCached => {
            let text = "the cache has no fresh answer, and the request wants no other\n";
            let mut response = Response::new(ResponseBody::text(text.to_owned()));
            *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
            Lookup::Answer(response)
        }
        Found::Hit(status, headers, body) => {
            let mut response = Response::new(ResponseBody::Own((!body.is_empty()).then_some(body)));
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            response.headers_mut().insert(CACHE_STATUS, HeaderValue::from_static("weft; hit"));
            Lookup::Answer(response)
        }
    }
}

/// Does with an answer what the cache is to do.
pub(crate) fn keep(
    ctx: &Rc<Context>,
    policy: &CachePolicy,
    lookup: Lookup,
    response: Response<ResponseBody>,
) -> Response<ResponseBody> {
    match lookup {
        Lookup::Store(ticket) => store(ctx, policy, &ticket, response),
        Lookup::Changes(key) => {
            if response.status().is_success() || response.status().is_redirection() {
                ctx.cache.borrow_mut().invalidate(&key);
            }
            response
        }
        Lookup::Answer(_) | Lookup::Pass => response,
    }
}

fn store(
    ctx: &Rc<Context>,
    policy: &CachePolicy,
    ticket: &Ticket,
    response: Response<ResponseBody>,
) -> Response<ResponseBody> {
    let (head, body) = response.into_parts();
    let body = match judge(policy, ticket, &head) {
        None => body,
        Some(pending) if body.is_end_stream() => {
            ctx.cache.borrow_mut().store(pending, Bytes::new(), Instant::now());
            body
        }
        Some(_) if ctx.storing.get() >= STORING_MAX => body,
        Some(pending) => {
            ctx.storing.set(ctx.storing.get() + 1);
            let storing = Storing { ctx: ctx.clone(), inner: body, pending: Some(pending), seen: Vec::new() };
            ResponseBody::Storing(Box::new(storing))
        }
    };
    Response::from_parts(head, body)
}

/// A body that is stored when it has come whole. What is seen of it is bounded by the route's limit, and how many there
/// are at once by [`STORING_MAX`].
pub(crate) struct Storing {
    ctx: Rc<Context>,
    inner: ResponseBody,
    /// None: it will not be stored.
    pending: Option<Pending>,
    seen: Vec<u8>,
}

impl Storing {
    pub fn inner(&mut self) -> &mut ResponseBody {
        &mut self.inner
    }

    pub fn body(&self) -> &ResponseBody {
        &self.inner
    }

    pub fn poll_frame(&mut self, cx: &mut TaskContext<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        match &polled {
            Poll::Pending => return polled,
            Poll::Ready(None) => self.whole(),
            Poll::Ready(Some(Ok(frame))) => match (frame.data_ref(), &self.pending) {
                (Some(data), Some(pending)) if self.seen.len() + data.len() <= pending.body_bytes_max => {
                    self.seen.extend_from_slice(data);
                    if self.inner.is_end_stream() {
                        self.whole();
                    }
                }
                // Too large, or with trailers, which are not kept.
                _ => self.give_up(),
            },
            Poll::Ready(Some(Err(_))) => self.give_up(),
        }
        polled
    }

    fn whole(&mut self) {
        if let Some(pending) = self.pending.take() {
            let body = Bytes::from(std::mem::take(&mut self.seen));
            self.ctx.cache.borrow_mut().store(pending, body, Instant::now());
        }
    }

    fn give_up(&mut self) {
        self.pending = None;
        self.seen = Vec::new();
    }
}

impl Drop for Storing {
    fn drop(&mut self) {
        self.ctx.storing.set(self.ctx.storing.get() - 1);
    }
}
