//! The connection to a control plane: endpoints, fail-over, and what is repeated after a failure.
//!
//! A request goes to the endpoint that answered last. When that one fails, the next is tried, in a
//! ring, with a growing pause after each full round. Reads and requests that are idempotent by their
//! ids are repeated after any failure. So are other writes, under a name by which servers recognise them: they are
//! carried out once, whatever was lost on the way, and a repetition is answered as the first one was. If no server answers
//! in time, what became of a write that was sent is told to the caller as [`Error::OutcomeUnknown`].

use std::collections::BTreeSet;
use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tonic::Status;
use weft_core::tls::Trust;

use crate::endpoint::{Endpoint, Failure};
use crate::error::{Attempt, Error};
use crate::link::{Link, Name, Stamp};
use crate::login::{Credentials, Login};
use crate::secure::Secure;

/// Longest pause between two rounds over the endpoints.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Pause after the first round; doubles with each further one.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// How patient a client is.
#[derive(Debug, Clone)]
pub struct Options {
    /// One attempt at one endpoint is given up after this. Default 10 s: longer than a server's own
    /// wait for a new leader would be, so that the server's clearer answer comes first.
    pub attempt_timeout: Duration,
    /// A request that may be repeated is repeated for this long. Default 5 s: a change of leader takes
    /// about one.
    pub retry_for: Duration,
    /// Whom to ask as, when servers check who asks. Default: nobody. Ignored by servers that do not check.
    pub credentials: Option<Credentials>,
    /// How to trust servers that speak TLS, and what to show them. With it, an endpoint without a scheme means
    /// `https://`. Default: none; `https://` then trusts the CAs of the system.
    pub tls: Option<Trust>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            attempt_timeout: Duration::from_secs(10),
            retry_for: Duration::from_secs(5),
            credentials: None,
            tls: None,
        }
    }
}

/// How often one call takes a new token, or a new name for a write of which nothing was done.
const RENEWALS_MAX: usize = 3;

/// What may be done after a failure that leaves the outcome open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Doing it twice has the effect of doing it once.
    Safe,
    /// Servers recognise it by its name and do it once.
    Named,
}

/// How long one call may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Limit of one attempt; none for calls that wait in the server.
    pub(crate) attempt: Option<Duration>,
    /// No new attempt after this long; none: for ever (the caller has a limit of its own).
    pub(crate) total: Option<Duration>,
}

/// A control plane. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    endpoints: Vec<Endpoint>,
    /// Index of the endpoint that answered last.
    current: AtomicUsize,
    options: Options,
    login: Login,
    /// Under which servers know this client's writes: random.
    id: u64,
    names: Names,
    /// A log index that servers told: writes that are first sent from now on come after it.
    after: AtomicU64,
}

impl Inner {
    fn new(endpoints: Vec<Endpoint>, options: Options) -> Arc<Self> {
        let login = Login::new(options.credentials.clone());
        Arc::new(Self {
            endpoints,
            current: AtomicUsize::new(0),
            options,
            login,
            id: random(),
            names: Names::default(),
            after: AtomicU64::new(0),
        })
    }

    /// A new name, and what keeps it among those that wait for an answer.
    fn name(&self) -> (Name, Outstanding<'_>) {
        let (seq, answered) = self.names.next();
        let after = self.after.load(Ordering::Relaxed);
        (Name { client: self.id, seq, after, answered }, Outstanding { names: &self.names, seq })
    }
}

/// The numbers of a client's writes.
#[derive(Debug, Default)]
struct Names {
    inner: Mutex<Numbers>,
}

#[derive(Debug, Default)]
struct Numbers {
    last: u64,
    /// Given to calls that wait for an answer.
    outstanding: BTreeSet<u64>,
}

impl Names {
    /// A new number, and below which all were answered.
    fn next(&self) -> (u64, u64) {
        let mut numbers = self.lock();
        numbers.last += 1;
        let seq = numbers.last;
        numbers.outstanding.insert(seq);
        (seq, numbers.outstanding.first().copied().unwrap_or(seq))
    }

    fn lock(&self) -> MutexGuard<'_, Numbers> {
        // Whoever panicked held it for one operation on a set, which is whole before and after.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A number that waits for its answer, until it is dropped: the call is over, or its caller has gone away.
#[derive(Debug)]
struct Outstanding<'n> {
    names: &'n Names,
    seq: u64,
}

impl Drop for Outstanding<'_> {
    fn drop(&mut self) {
        self.names.lock().outstanding.remove(&self.seq);
    }
}

impl Client {
    /// Prepares connections to `endpoints` (`HOST:PORT` of servers' gRPC ports) and makes none yet, so
    /// that a client can be made before its servers run. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// `NoEndpoints`, `BadEndpoint`.
    pub fn connect<S: AsRef<str>>(endpoints: impl IntoIterator<Item = S>) -> Result<Self, Error> {
        Self::connect_with(endpoints, Options::default())
    }

    /// As [`Client::connect`], with other limits.
    ///
    /// # Errors
    /// `NoEndpoints`, `BadEndpoint`.
    pub fn connect_with<S: AsRef<str>>(
        endpoints: impl IntoIterator<Item = S>,
        options: Options,
    ) -> Result<Self, Error> {
        let secure = Secure::new(options.tls.clone())?;
        let mut parsed: Vec<Endpoint> = Vec::new();
        for given in endpoints {
            let endpoint = Endpoint::parse(given.as_ref(), &secure)?;
            if !parsed.iter().any(|known| known.name == endpoint.name) {
                parsed.push(endpoint);
            }
        }
        if parsed.is_empty() {
            return Err(Error::NoEndpoints);
        }
        Ok(Self { inner: Inner::new(parsed, options) })
    }

    /// The endpoints, as `HOST:PORT`.
    pub fn endpoints(&self) -> impl Iterator<Item = &str> {
        self.inner.endpoints.iter().map(|endpoint| endpoint.name.as_str())
    }

    /// A client for one endpoint of this one, by its place in [`Client::endpoints`], over the same
    /// connection: to ask each server for its own view.
    pub fn only(&self, index: usize) -> Option<Self> {
        let endpoint = self.inner.endpoints.get(index)?.clone();
        Some(Self { inner: Inner::new(vec![endpoint], self.inner.options.clone()) })
    }

    /// A token of this client's user, for other programs' requests; none if the client has no credentials or the
    /// servers do not check who asks. A new one each time.
    ///
    /// # Errors
    /// `Refused` for a wrong password; else as any request.
    pub async fn token(&self) -> Result<Option<String>, Error> {
        let token =
            self.call("log in", Repeat::Safe, |link: Link| async move { self.inner.login.fetch(link).await });
        token.await
    }

    /// Limits of an ordinary request.
    pub(crate) fn patience(&self) -> Patience {
        Patience {
            attempt: Some(self.inner.options.attempt_timeout),
            total: Some(self.inner.options.retry_for),
        }
    }

    /// An ordinary request.
    pub(crate) async fn call<T, F, Fut>(
        &self,
        operation: &'static str,
        repeat: Repeat,
        request: F,
    ) -> Result<T, Error>
    where
        F: Fn(Link) -> Fut,
        Fut: Future<Output = Result<T, Status>>,
    {
        self.call_with(operation, repeat, self.patience(), request).await.map(|(answer, _)| answer)
    }

    /// Runs `request` against the endpoints until one answers; also tells which one did.
    pub(crate) async fn call_with<T, F, Fut>(
        &self,
        operation: &'static str,
        repeat: Repeat,
        patience: Patience,
        request: F,
    ) -> Result<(T, String), Error>
    where
        F: Fn(Link) -> Fut,
        Fut: Future<Output = Result<T, Status>>,
    {
        let inner = &*self.inner;
        let started = Instant::now();
        let mut pause = PAUSE_MIN;
        let (mut name, mut _outstanding) = (repeat == Repeat::Named).then(|| inner.name()).unzip();
        // An attempt of a write of which nobody has said yet what became of it.
        let mut open: Option<Error> = None;
        // How often this call took a new token, or a new name.
        let mut renewals = 0;
        loop {
            let mut failures: Vec<(usize, Failure)> = Vec::new();
            let first = inner.current.load(Ordering::Relaxed);
            for step in 0..inner.endpoints.len() {
                let index = (first + step) % inner.endpoints.len();
                let endpoint = &inner.endpoints[index];
                let mut refused = None;
                let failure = loop {
                    let login = inner.login.ticket(&endpoint.channel, refused);
                    let (ticket, token) = match attempt(patience.attempt, login).await {
                        Ok(ticket) => ticket,
                        // The request itself was not sent.
                        Err(Failure::Interrupted(why) | Failure::GaveUp(why)) => break Failure::NotSent(why),
                        Err(failure) => break failure,
                    };
                    let link = Link::new(endpoint.channel.clone(), Stamp { token, name });
                    let failure = match attempt(patience.attempt, request(link)).await {
                        Ok(answer) => {
                            inner.current.store(index, Ordering::Relaxed);
                            return Ok((answer, endpoint.name.clone()));
                        }
                        Err(failure) => failure,
                    };
                    match &failure {
                        Failure::Refused(code, message)
                            if renewals < RENEWALS_MAX && inner.login.is_stale(*code, message) =>
                        {
                            refused = Some(ticket);
                        }
                        // Nothing was done under the old name, so it can be dropped.
                        Failure::TooLate(known_from, _) if renewals < RENEWALS_MAX && open.is_none() => {
                            inner.after.fetch_max(*known_from, Ordering::Relaxed);
                            (name, _outstanding) = Some(inner.name()).unzip();
                        }
                        _ => break failure,
                    }
                    renewals += 1;
                };
                tracing::debug!(operation, endpoint = endpoint.name, why = failure.why(), "attempt failed");
                let unknown = |why: &str| Error::OutcomeUnknown {
                    operation,
                    endpoint: endpoint.name.clone(),
                    why: why.to_owned(),
                };
                match &failure {
                    Failure::Refused(code, message) => {
                        inner.current.store(index, Ordering::Relaxed);
                        return Err(Error::Refused {
                            endpoint: endpoint.name.clone(),
                            code: *code,
                            message: message.clone(),
                        });
                    }
                    Failure::DoneBefore(message) => {
                        let (endpoint, message) = (endpoint.name.clone(), message.clone());
                        return Err(Error::AnswerLost { endpoint, message });
                    }
                    Failure::TooLate(_, why) => return Err(open.unwrap_or_else(|| unknown(why))),
                    Failure::Interrupted(why) | Failure::GaveUp(why) if name.is_some() => {
                        open.get_or_insert_with(|| unknown(why));
                    }
                    _ => {}
                }
                failures.push((index, failure));
            }
            let jittered = pause.mul_f64(0.5 + unit() / 2.0);
            if patience.total.is_some_and(|total| started.elapsed() + jittered >= total) {
                return Err(open.unwrap_or_else(|| self.give_up(failures)));
            }
            tokio::time::sleep(jittered).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn give_up(&self, failures: Vec<(usize, Failure)>) -> Error {
        let answered = |failure: &Failure| matches!(failure, Failure::Unavailable(_) | Failure::GaveUp(_));
        let answered = failures.iter().any(|(_, failure)| answered(failure));
        let attempts = failures
            .into_iter()
            .map(|(index, failure)| Attempt {
                endpoint: self.inner.endpoints[index].name.clone(),
                why: failure.why().to_owned(),
            })
            .collect();
        if answered { Error::Unavailable { attempts } } else { Error::Unreachable { attempts } }
    }
}

async fn attempt<T>(
    limit: Option<Duration>,
    request: impl Future<Output = Result<T, Status>>,
) -> Result<T, Failure> {
    let answer = match limit {
        Some(limit) => tokio::time::timeout(limit, request)
            .await
            .map_err(|_| Failure::Interrupted(format!("no answer within {:.1} s", limit.as_secs_f64())))?,
        None => request.await,
    };
    answer.map_err(|status| Failure::of(&status))
}

/// A random number from the keys that the standard library takes from the system for its hash maps.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Uniform in `[0, 1)`.
fn unit() -> f64 {
    (random() >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(endpoints: &[&str]) -> Client {
        Client::connect(endpoints).unwrap()
    }

    /// Calls with a scripted outcome per attempt; says how many attempts were made.
    async fn scripted(repeat: Repeat, script: Vec<Result<u32, Status>>) -> (Result<u32, Error>, usize) {
        let client = client(&["127.0.0.1:1", "127.0.0.1:2"]);
        let script = Mutex::new(script.into_iter());
        let attempts = AtomicUsize::new(0);
        let answer = client
            .call("test", repeat, |_| {
                attempts.fetch_add(1, Ordering::Relaxed);
                let next = script.lock().unwrap().next().expect("no more attempts than scripted");
                async move { next }
            })
            .await;
        (answer, attempts.into_inner())
    }

    #[tokio::test(start_paused = true)]
    async fn an_idempotent_request_moves_to_the_next_endpoint() {
        let (answer, attempts) =
            scripted(Repeat::Safe, vec![Err(Status::unavailable("no leader")), Ok(7)]).await;
        assert_eq!((answer.unwrap(), attempts), (7, 2));
    }

    /// P14
    #[tokio::test(start_paused = true)]
    async fn a_write_that_may_have_been_done_is_sent_again_under_its_name() {
        let (answer, attempts) =
            scripted(Repeat::Named, vec![Err(Status::deadline_exceeded("late")), Ok(7)]).await;
        assert_eq!((answer.unwrap(), attempts), (7, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_of_which_nobody_says_what_became_of_it_has_an_unknown_outcome() {
        let mut script = vec![Err(Status::deadline_exceeded("late"))];
        script.extend((0..100).map(|_| Err(Status::unavailable("etcdserver: no leader"))));
        let (answer, attempts) = scripted(Repeat::Named, script).await;
        assert!(matches!(answer, Err(Error::OutcomeUnknown { .. })), "{answer:?}");
        assert!(attempts > 2);
    }

    fn too_late() -> Status {
        let mut status = Status::aborted("too late to know");
        status.metadata_mut().insert("weft-known-from", 40.into());
        status
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_no_server_remembers_takes_a_new_name_if_it_was_never_done() {
        let (answer, attempts) = scripted(Repeat::Named, vec![Err(too_late()), Ok(7)]).await;
        assert_eq!((answer.unwrap(), attempts), (7, 2));
        let client = client(&["127.0.0.1:1"]);
        let (first, _) = client.inner.name();
        client.inner.after.fetch_max(40, Ordering::Relaxed);
        let (second, _) = client.inner.name();
        assert_eq!((first.after, second.after, second.seq), (0, 40, first.seq + 1));
    }

    #[tokio::test]
    async fn a_number_counts_as_answered_when_its_call_and_all_before_it_are_over() {
        let client = client(&["127.0.0.1:1"]);
        let name = || client.inner.name();
        let (one, first) = name();
        let (two, second) = name();
        assert_eq!((one.seq, one.answered, two.seq, two.answered), (1, 1, 2, 1));
        drop(second);
        let (three, third) = name();
        assert_eq!(three.answered, 1);
        drop(first);
        assert_eq!(name().0.answered, 3);
        drop(third);
        assert_eq!(name().0.answered, 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_no_server_remembers_and_that_may_have_been_done_stays_unknown() {
        let script = vec![Err(Status::deadline_exceeded("late")), Err(too_late())];
        let (answer, attempts) = scripted(Repeat::Named, script).await;
        assert!(matches!(answer, Err(Error::OutcomeUnknown { .. })), "{answer:?}");
        assert_eq!(attempts, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_the_server_did_not_do_is_repeated_elsewhere() {
        let no_leader = Status::unavailable("etcdserver: no leader");
        let (answer, attempts) = scripted(Repeat::Named, vec![Err(no_leader), Ok(7)]).await;
        assert_eq!((answer.unwrap(), attempts), (7, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_final() {
        let (answer, attempts) =
            scripted(Repeat::Safe, vec![Err(Status::invalid_argument("key is not provided"))]).await;
        assert_eq!(answer.unwrap_err().code(), Some(tonic::Code::InvalidArgument));
        assert_eq!(attempts, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_given_up_after_retry_for_and_names_every_endpoint() {
        let client = client(&["127.0.0.1:1", "127.0.0.1:2"]);
        let started = Instant::now();
        let answer: Result<u32, Error> =
            client.call("test", Repeat::Safe, |_| async { Err(Status::unavailable("no quorum")) }).await;
        let text = answer.unwrap_err().to_string();
        assert!(text.contains("127.0.0.1:1: no quorum") && text.contains("127.0.0.1:2: no quorum"), "{text}");
        assert!(started.elapsed() <= Options::default().retry_for);
    }

    #[tokio::test]
    async fn nobody_listening_is_told_apart_from_an_unknown_outcome() {
        // A port that was free a moment ago: bound, noted and closed again.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let options = Options { retry_for: Duration::ZERO, ..Options::default() };
        let client = Client::connect_with([format!("127.0.0.1:{port}")], options).unwrap();
        let error = client.kv().put("a", "1").await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
        assert!(error.to_string().contains("connection refused"), "{error}");
    }

    #[tokio::test]
    async fn no_endpoints_is_an_error() {
        assert!(matches!(Client::connect(Vec::<String>::new()), Err(Error::NoEndpoints)));
    }
}
