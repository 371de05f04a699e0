//! Copies of requests for mirrors. They go out beside the request, their answers are thrown away, and whatever becomes
//! of them changes nothing for the request: its body is not held up by a mirror that is slow, which gets no more of it.

use std::rc::Rc;

use http_body_util::BodyExt;

use super::context::Context;
use super::forward::{Outgoing, forward};
use super::resolve;
use super::target::Target;
use crate::limits::MIRRORS_MAX;
use crate::policy::fault::is_among;
use crate::route::compiled::Forward;

/// Sends the copies that a route wants of a request.
pub(crate) fn copies(ctx: &Rc<Context>, to: &Forward, outgoing: &mut Outgoing) {
    for mirror in &to.mirrors {
        if !is_among(mirror.fraction, &mut ctx.rng.borrow_mut()) {
            continue;
        }
        if ctx.mirrors.get() >= MIRRORS_MAX {
            ctx.metrics.mirrors_dropped.inc();
            continue;
        }
        let body = outgoing.request.body_mut().copied();
        let mut copy = Outgoing {
            request: outgoing.request_with(body),
            target: Target {
                authority: outgoing.target.authority.clone(),
                host: outgoing.target.host.clone(),
            },
            takes_trailers: outgoing.takes_trailers,
            progress: None,
            upgrade: None,
            client: outgoing.client,
            seen: None,
            subset: None,
            hash: outgoing.hash.clone(),
            avoid: None,
            at: None,
        };
        let (held, name) = (Held::new(ctx), mirror.cluster.clone());
        // Ends with its answer, at the latest with the time for one; the worker's runtime ends what is left.
        tokio::task::spawn_local(async move {
            let ctx = &held.0;
            let Ok(cluster) = resolve::cluster(ctx, &copy.target, &name).await else { return };
            let Ok(answer) = forward(ctx, cluster, &mut copy, None, None).await else { return };
            let mut body = answer.into_body();
            let read = async { while let Some(Ok(_)) = body.frame().await {} };
            let _ = tokio::time::timeout(ctx.timeouts.request, read).await;
        });
    }
}

/// Counts as under way.
struct Held(Rc<Context>);

impl Held {
    fn new(ctx: &Rc<Context>) -> Self {
        ctx.mirrors.set(ctx.mirrors.get() + 1);
        Self(ctx.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.mirrors.set(self.0.mirrors.get() - 1);
    }
}
