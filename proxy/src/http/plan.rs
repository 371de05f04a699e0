//! What a route and the caller say of a request's times and tries, and waiting for an answer no longer than that.

use std::pin::Pin;
use std::time::{Duration, Instant};

use http::{HeaderMap, StatusCode};
use weft_xds_proto::resource::cluster::Timeouts;

use super::grpc_status;
use crate::coarse_timer::CoarseTimer;
use crate::limits::{RETRY_BACKOFF_DEFAULT, RETRY_BACKOFF_MAX};
use crate::route::compiled;
use crate::upstream::request_body::Progress;

/// What a route and the caller say of times and tries.
pub(crate) struct Plan {
    /// For the head of the answer, unless the times below say something.
    pub head: Duration,
    /// When the request as a whole is over.
    pub until: Option<(tokio::time::Instant, Duration)>,
    /// Whether it is the caller's patience that ends then.
    by_caller: bool,
    one_try: Option<Duration>,
    tries_left: u32,
    codes: Vec<u16>,
    grpc_codes: Vec<u8>,
    backoff: Duration,
}

/// Instead of no limit.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

impl Plan {
    /// Without a route: the caller's deadline and the service's times, if there are any.
    pub fn of_service(
        times: Timeouts,
        deadline: Option<Duration>,
        started: Instant,
        default: Duration,
    ) -> Option<Self> {
        let times = (times.request, times.one_try);
        if deadline.is_none() && times == (None, None) {
            return None;
        }
        Some(Self::of(times, deadline, started, default))
    }

    fn of(
        (request, one_try): (Option<Duration>, Option<Duration>),
        deadline: Option<Duration>,
        started: Instant,
        default: Duration,
    ) -> Self {
        let by_caller = deadline.is_some_and(|d| request.is_none_or(|t| d <= t));
        let until = request.into_iter().chain(deadline).min();
        Self {
            head: if request.or(one_try).is_none() { default } else { FOR_EVER },
            until: until.map(|t| (tokio::time::Instant::from_std(started + t), t)),
            by_caller,
            one_try,
            tries_left: 0,
            codes: Vec::new(),
            grpc_codes: Vec::new(),
            backoff: RETRY_BACKOFF_DEFAULT,
        }
    }

    /// The same for one try beside it.
    pub fn alone(&self) -> Self {
        Self { tries_left: 0, codes: Vec::new(), grpc_codes: Vec::new(), ..*self }
    }

    /// For a request that came at `started`, from a caller that waits for `deadline`.
    pub fn new(
        route: &compiled::Forward,
        service: Timeouts,
        deadline: Option<Duration>,
        started: Instant,
        default: Duration,
    ) -> Self {
        let limit = |t: Option<Duration>| t.filter(|t| !t.is_zero());
        let times = (limit(route.timeout.or(service.request)), limit(route.try_timeout.or(service.one_try)));
        let says = route.timeout.is_some() || route.try_timeout.is_some();
        let retry = route.retry.as_ref();
        let plan = Self::of(times, deadline, started, default);
        Self {
            // A route that wants no limit has none.
            head: if says { FOR_EVER } else { plan.head },
            tries_left: retry.map_or(0, |r| r.attempts),
            codes: retry.map(|r| r.codes.clone()).unwrap_or_default(),
            grpc_codes: retry.map(|r| r.grpc_codes.clone()).unwrap_or_default(),
            backoff: retry.and_then(|r| r.backoff).unwrap_or(RETRY_BACKOFF_DEFAULT),
            ..plan
        }
    }

    /// Until when a try that begins now may take, and the time that says so.
    pub fn try_until(&self) -> Option<(tokio::time::Instant, Duration)> {
        let one = self.one_try.map(|t| (tokio::time::Instant::now() + t, t));
        one.into_iter().chain(self.until).min_by_key(|(at, _)| *at)
    }

    /// Whether a try that was given up at `at` was given up because the caller waits no longer: that says nothing of
    /// the endpoint.
    pub fn is_callers(&self, at: tokio::time::Instant) -> bool {
        self.by_caller && self.until.is_some_and(|(until, _)| until == at)
    }

    pub fn may_retry(&self) -> bool {
        self.tries_left > 0
    }

    /// Whether the route says of a request with these fields, which is no idempotent one, that it may be carried out twice.
    pub fn allows_twice(&self, fields: &HeaderMap) -> bool {
        !self.grpc_codes.is_empty() && grpc_status::is_grpc(fields)
    }

    /// Whether an answer with this head is not good enough.
    pub fn wants_another(&self, status: StatusCode, fields: &HeaderMap) -> bool {
        self.codes.contains(&status.as_u16())
            || !self.grpc_codes.is_empty()
                && grpc_status::of(fields)
                    .is_some_and(|code| self.grpc_codes.iter().any(|c| u32::from(*c) == code))
    }

    /// Waits before the next try, for as long as the endpoint has `said`, if it has. False if there is none: all are used up, or
    /// the time is.
    pub async fn next_try(&mut self, rng: f64, said: Option<Duration>) -> bool {
        if self.tries_left == 0 {
            return false;
        }
        // Anything up to it ("full jitter"), so that those that failed together do not come back together.
        let wait = said.unwrap_or_else(|| self.backoff.min(RETRY_BACKOFF_MAX).mul_f64(rng));
        if self.until.is_some_and(|(at, _)| tokio::time::Instant::now() + wait >= at) {
            return false;
        }
        self.tries_left -= 1;
        self.backoff *= 2;
        tokio::time::sleep(wait).await;
        true
    }
}

/// Who took too long.
pub(crate) enum Late {
    Client,
    Endpoint(Duration),
}

/// Waits for the head of the answer. The time runs from the end of the request's body: a long upload is no slow server.
/// An upload in which nothing moves for `stall` ends as well, by the fault of the side that is waited for.
pub(crate) async fn with_limit<T>(
    timer: &CoarseTimer,
    mut sent: Pin<&mut impl Future<Output = T>>,
    progress: Option<&Progress>,
    stall: Duration,
    request: Duration,
) -> Result<T, Late> {
    loop {
        let upload = progress.filter(|p| !p.is_finished()).map(|p| (p, p.frames()));
        let limit = if upload.is_some() { stall } else { request };
        if let Ok(done) = timer.limit(limit, sent.as_mut()).await {
            return Ok(done);
        }
        match upload {
            None => return Err(Late::Endpoint(limit)),
            Some((now, before)) if now.is_finished() || now.frames() != before => {}
            Some((now, _)) if now.waits_for_client() => return Err(Late::Client),
            Some(_) => return Err(Late::Endpoint(limit)),
        }
    }
}
