//! A route in the form that requests use: patterns compiled, names and values ready to be put into a message. Each
//! policy is a value here, so that a new one is a field with its own file under [`crate::policy`].

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::StatusCode;
use weft_xds_proto::resource::cluster::RateLimit;
use weft_xds_proto::resource::route as ir;
use weft_xds_proto::resource::subset::Subset;

use super::matcher::Matcher;
use super::rewrite::{Redirect, Rewrite};
use crate::policy::cors::Cors;
use crate::policy::edits::Edits;
use crate::policy::fault::Fault;
use crate::policy::rate_limit::Bucket;
use crate::telemetry::answers::Answers;

/// One route.
#[derive(Debug)]
pub struct Route {
    /// For people and logs.
    pub name: String,
    /// Its conditions.
    pub matcher: Matcher,
    /// What happens.
    pub action: Action,
    /// Changes of the request before it is forwarded.
    pub request_headers: Edits,
    /// Changes of the answer.
    pub response_headers: Edits,
    /// Failures made on purpose.
    pub fault: Option<Fault>,
    /// Pages of other origins.
    pub cors: Option<Cors>,
    /// Compression of answers.
    pub compression: Option<ir::Compression>,
    /// A store of answers.
    pub cache: Option<ir::CachePolicy>,
    /// How many requests pass, and what is left of that.
    pub rate_limit: Option<(RateLimit, Arc<Bucket>)>,
    /// Slow requests are sent twice.
    pub hedge: Option<ir::Hedge>,
    /// Looked up by its first request.
    pub metrics: OnceLock<Answers>,
}

/// What happens to a request.
#[derive(Debug)]
pub enum Action {
    /// To an endpoint.
    Forward(Box<Forward>),
    /// Elsewhere.
    Redirect(Redirect),
    /// Answered at once.
    Respond {
        /// Of the answer.
        status: StatusCode,
        /// Of the answer.
        body: bytes::Bytes,
    },
}

/// See [`ir::Forward`].
#[derive(Debug)]
pub struct Forward {
    /// With weights summed up, so that a number below the total finds its backend.
    backends: Box<[(u64, Backend)]>,
    /// The path that the endpoint sees.
    pub path: Option<Rewrite>,
    /// The `Host` that the endpoint sees.
    pub host: Option<String>,
    /// For the whole request; 0: for ever.
    pub timeout: Option<Duration>,
    /// For each try; 0: for ever.
    pub try_timeout: Option<Duration>,
    /// When to try again.
    pub retry: Option<ir::Retry>,
    /// Who gets copies.
    pub mirrors: Vec<ir::Mirror>,
    /// By what requests stick to endpoints, if there is something.
    pub hash: Option<Arc<[ir::RouteHash]>>,
}

/// One cluster of a route.
#[derive(Debug)]
pub struct Backend {
    /// Its name.
    pub cluster: String,
    /// Only these instances; none for all.
    pub subset: Option<Arc<Subset>>,
    /// After those of the route.
    pub request_headers: Edits,
    /// Before those of the route.
    pub response_headers: Edits,
}

impl Route {
    /// From a checked configuration.
    ///
    /// # Errors
    /// If some part is not usable after all; the text names it.
    pub fn new(r: &ir::Route) -> Result<Self, String> {
        let action = match &r.action {
            ir::Action::Forward(f) => Action::Forward(Box::new(Forward::new(f)?)),
            ir::Action::Redirect(r) => Action::Redirect(Redirect::new(r)?),
            ir::Action::Respond(d) => Action::Respond {
                status: StatusCode::from_u16(d.status).map_err(|e| e.to_string())?,
                body: bytes::Bytes::from(d.body.clone()),
            },
        };
        Ok(Self {
            name: r.name.clone(),
            matcher: Matcher::new(&r.matches)?,
            action,
            request_headers: Edits::new(&r.policy.request_headers)?,
            response_headers: Edits::new(&r.policy.response_headers)?,
            fault: r.policy.fault.as_ref().map(Fault::new).transpose()?,
            cors: r.policy.cors.as_ref().map(Cors::new).transpose()?,
            compression: r.policy.compression.clone(),
            cache: r.policy.cache.clone(),
            rate_limit: r.policy.rate_limit.map(|limit| (limit, Arc::default())),
            hedge: r.policy.hedge,
            metrics: OnceLock::new(),
        })
    }
}

impl Forward {
    fn new(f: &ir::Forward) -> Result<Self, String> {
        let mut total = 0;
        let mut backends = Vec::with_capacity(f.backends.len());
        for b in f.backends.iter().filter(|b| b.weight > 0) {
            total += u64::from(b.weight);
            let backend = Backend {
                cluster: b.cluster.clone(),
                subset: (!b.subset.is_empty()).then(|| Arc::new(b.subset.clone())),
                request_headers: Edits::new(&b.request_headers)?,
                response_headers: Edits::new(&b.response_headers)?,
            };
            backends.push((total, backend));
        }
        if backends.is_empty() {
            return Err("no backend has a weight above 0".to_owned());
        }
        Ok(Self {
            backends: backends.into(),
            path: f.path.as_ref().map(Rewrite::new).transpose()?,
            host: f.host.clone(),
            timeout: f.timeout,
            try_timeout: f.try_timeout,
            retry: f.retry.clone(),
            mirrors: f.mirrors.clone(),
            hash: (!f.hash.is_empty()).then(|| f.hash.as_slice().into()),
        })
    }

    /// All backends with their shares in percent.
    pub fn shares(&self) -> impl Iterator<Item = (&Backend, f64)> {
        let total = self.backends.last().map_or(1, |(upto, _)| *upto) as f64;
        let mut before = 0;
        self.backends.iter().map(move |(upto, backend)| {
            let weight = upto - before;
            before = *upto;
            (backend, weight as f64 * 100.0 / total)
        })
    }

    /// The backend of one request, drawn by weight.
    pub fn draw(&self, rng: &mut fastrand::Rng) -> &Backend {
        let [.., (total, last)] = &*self.backends else { unreachable!("there is a backend") };
        if self.backends.len() == 1 {
            return last;
        }
        let drawn = rng.u64(0..*total);
        let found = self.backends.partition_point(|(upto, _)| *upto <= drawn);
        self.backends.get(found).map_or(last, |(_, backend)| backend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// D07: a split is what was asked for.
    #[test]
    fn backends_are_drawn_by_weight() {
        let backends = [("a", 70), ("b", 0), ("c", 20), ("d", 10)].map(|(n, w)| ir::Backend::new(n, w));
        let forward =
            Forward::new(&ir::Forward { backends: backends.into(), ..ir::Forward::default() }).unwrap();
        let mut rng = fastrand::Rng::with_seed(7);
        let mut counts = std::collections::BTreeMap::new();
        const DRAWS: u32 = 100_000;
        for _ in 0..DRAWS {
            *counts.entry(forward.draw(&mut rng).cluster.as_str()).or_insert(0u32) += 1;
        }
        // χ² with 2 degrees of freedom; 13.8 is passed once in a thousand seeds.
        let chi: f64 = [("a", 0.7), ("c", 0.2), ("d", 0.1)]
            .map(|(n, share)| {
                let expected = f64::from(DRAWS) * share;
                (f64::from(counts[n]) - expected).powi(2) / expected
            })
            .iter()
            .sum();
        assert!(chi < 13.8 && !counts.contains_key("b"), "{counts:?} χ² {chi}");
    }
}
