//! A shared cache of answers (RFC 9111), one a worker; what changes a target is known to all of them. Pure: time is an argument.
//!
//! ```text
//! request ─▶ lookup ─▶ Hit: answered from here, or 304 if the client has it
//!                 └──▶ Miss: forwarded; its answer is stored if the rules allow it, when it has come whole
//! unsafe request that succeeds ─▶ what is stored of its target goes (§4.4)
//! ```
//! Stored: answers to GET with a status that may be, that say how long they are fresh (or the route does), that are not
//! `private`, `no-store` or `no-cache`, do not vary by `*`, set no cookie, and do not answer an `Authorization` unless
//! they say that they may be shared (§3.5). An answer that is stale is not used: the next request fetches it anew.
//!
//! Bounded by [`BYTES_MAX`] and [`ENTRIES_MAX`]; the least recently used goes first.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{
    AGE, AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, DATE, ETAG, EXPIRES, HeaderMap, HeaderName,
    HeaderValue, IF_NONE_MATCH, RANGE, SET_COOKIE, VARY,
};
use http::{Method, StatusCode, request, response};
use weft_xds_proto::resource::route as ir;

/// Bytes that one worker keeps, heads and keys included.
pub const BYTES_MAX: usize = 32 * 1024 * 1024;

/// Answers that one worker keeps.
pub const ENTRIES_MAX: usize = 10_000;

/// Answers of one target that differ by request fields.
const VARIANTS_MAX: usize = 16;

/// Longest time that an answer is kept.
const FRESH_MAX: Duration = Duration::from_secs(24 * 3600);

/// Of an entry, beside what is counted.
const OVERHEAD_BYTES: usize = 256;

/// How often targets were changed, by whichever worker. Several share a counter: the change of one then costs the others a
/// fetch, and nobody has to tell another worker anything.
#[derive(Debug)]
pub struct Changes(Box<[AtomicU32; CHANGES]>);

/// Counters.
const CHANGES: usize = 1024;

impl Default for Changes {
    fn default() -> Self {
        Self(Box::new([const { AtomicU32::new(0) }; CHANGES]))
    }
}

impl Changes {
    fn counter(&self, key: &str) -> &AtomicU32 {
        &self.0[crc32fast::hash(key.as_bytes()) as usize % CHANGES]
    }

    fn of(&self, key: &str) -> u32 {
        self.counter(key).load(Ordering::Acquire)
    }

    fn note(&self, key: &str) {
        self.counter(key).fetch_add(1, Ordering::AcqRel);
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Cache {
    changes: Arc<Changes>,
    targets: HashMap<Box<str>, Vec<Entry>, foldhash::fast::RandomState>,
    /// Last use to target: the smallest is the oldest. Each entry has a number of its own.
    uses: BTreeMap<u64, Box<str>>,
    clock: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    used: u64,
    /// The route whose answer it is: another one may answer the same target otherwise.
    scope: Box<str>,
    /// Of the target, when the answer was asked for.
    changes: u32,
    /// Fields that choose among answers of one target, and what the request had.
    vary: Vec<(HeaderName, Option<HeaderValue>)>,
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    stored: Instant,
    /// Age that it had when it came.
    age: Duration,
    fresh: Duration,
    bytes: usize,
}

/// What a cache has for a request.
#[derive(Debug)]
pub enum Found {
    /// To be answered so.
    Hit(StatusCode, HeaderMap, Bytes),
    /// Nothing, and the client wants nothing else (`only-if-cached`).
    OnlyIfCached,
    /// Nothing; the answer may be stored with this.
    Miss(Ticket),
    /// Not for a cache.
    Bypass,
}

/// What is needed of a request to store its answer.
#[derive(Debug, Clone)]
pub struct Ticket {
    key: Box<str>,
    scope: Box<str>,
    changes: u32,
    headers: HeaderMap,
    authorized: bool,
}

impl Ticket {
    /// The same where the request had `Authorization`, which is not among its fields any more.
    pub fn authorized(self) -> Self {
        Self { authorized: true, ..self }
    }
}

/// An answer that may be stored once its body has come whole.
#[derive(Debug)]
pub struct Pending {
    ticket: Ticket,
    vary: Vec<(HeaderName, Option<HeaderValue>)>,
    status: StatusCode,
    headers: HeaderMap,
    age: Duration,
    fresh: Duration,
    /// Larger bodies are not stored.
    pub body_bytes_max: usize,
}

/// `Cache-Control` of a request or an answer.
#[derive(Debug, Default)]
struct Directives {
    no_store: bool,
    no_cache: bool,
    private: bool,
    public: bool,
    must_revalidate: bool,
    only_if_cached: bool,
    max_age: Option<Duration>,
    s_maxage: Option<Duration>,
    min_fresh: Option<Duration>,
}

impl Directives {
    fn of(headers: &HeaderMap) -> Self {
        let mut d = Self::default();
        for value in headers.get_all(CACHE_CONTROL) {
            // What cannot be read is taken for the strictest.
            let Ok(text) = value.to_str() else { return Self { no_store: true, ..d } };
            for part in text.split(',') {
                let (name, value) = part.split_once('=').unwrap_or((part, ""));
                let seconds = || {
                    let number = value.trim().trim_matches('"').parse::<u64>();
                    Some(Duration::from_secs(number.unwrap_or(0)).min(FRESH_MAX))
                };
                match name.trim().to_ascii_lowercase().as_str() {
                    "no-store" => d.no_store = true,
                    "no-cache" => d.no_cache = true,
                    "private" => d.private = true,
                    "public" => d.public = true,
                    "must-revalidate" | "proxy-revalidate" => d.must_revalidate = true,
                    "only-if-cached" => d.only_if_cached = true,
                    "max-age" => d.max_age = seconds(),
                    "s-maxage" => d.s_maxage = seconds(),
                    "min-fresh" => d.min_fresh = seconds(),
                    _ => {}
                }
            }
        }
        d
    }
}

impl Cache {
    /// One that has these in common with those of other workers.
    pub fn new(changes: Arc<Changes>) -> Self {
        Self { changes, ..Self::default() }
    }

    /// What it has for a request. `key` names the target: host, path and query; `scope` the route that it takes.
    pub fn lookup(&mut self, key: &str, scope: &str, head: &request::Parts, now: Instant) -> Found {
        if head.method != Method::GET && head.method != Method::HEAD || head.headers.contains_key(RANGE) {
            return Found::Bypass;
        }
        let asked = Directives::of(&head.headers);
        let pragma = !head.headers.contains_key(CACHE_CONTROL)
            && head.headers.get("pragma").is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"no-cache"));
        if asked.no_store {
            return Found::Bypass;
        }
        self.drop_stale(key, now);
        let usable = |entry: &&mut Entry| {
            let age = entry.age_at(now);
            *entry.scope == *scope
                && entry.matches(&head.headers)
                && asked.max_age.is_none_or(|max| age <= max)
                && asked.min_fresh.is_none_or(|min| age + min <= entry.fresh)
        };
        let clock = self.clock + 1;
        let entries = self.targets.get_mut(key).filter(|_| !asked.no_cache && !pragma);
        if let Some(entry) = entries.and_then(|all| all.iter_mut().find(usable)) {
            self.uses.remove(&entry.used);
            self.uses.insert(clock, key.into());
            self.clock = clock;
            entry.used = clock;
            return entry.answer(head, now);
        }
        if asked.only_if_cached {
            return Found::OnlyIfCached;
        }
        if head.method == Method::HEAD {
            return Found::Bypass;
        }
        let authorized = head.headers.contains_key(AUTHORIZATION);
        Found::Miss(Ticket {
            key: key.into(),
            scope: scope.into(),
            changes: self.changes.of(key),
            headers: head.headers.clone(),
            authorized,
        })
    }

    /// Takes in an answer whose body has come whole.
    pub fn store(&mut self, pending: Pending, body: Bytes, now: Instant) {
        let Pending { ticket, vary, status, mut headers, age, fresh, body_bytes_max } = pending;
        // What was asked for before the target has changed may be how it was.
        if body.len() > body_bytes_max || ticket.changes != self.changes.of(&ticket.key) {
            return;
        }
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        let fields: usize = headers.iter().map(|(n, v)| n.as_str().len() + v.len()).sum();
        let bytes = OVERHEAD_BYTES + 2 * ticket.key.len() + fields + body.len();
        if bytes > BYTES_MAX / 8 {
            return;
        }
        self.take_out(&ticket.key, |entry| entry.vary == vary && entry.scope == ticket.scope);
        if self.targets.get(&ticket.key).is_some_and(|all| all.len() >= VARIANTS_MAX) {
            let oldest = self.targets[&ticket.key].iter().map(|e| e.used).min().unwrap_or_default();
            self.take_out(&ticket.key, |entry| entry.used == oldest);
        }
        while !self.uses.is_empty() && (self.bytes + bytes > BYTES_MAX || self.uses.len() >= ENTRIES_MAX) {
            self.take_out_oldest();
        }
        self.clock += 1;
        let used = self.clock;
        self.uses.insert(used, ticket.key.clone());
        self.bytes += bytes;
        let (scope, changes) = (ticket.scope, ticket.changes);
        let entry =
            Entry { used, scope, changes, vary, status, headers, body, stored: now, age, fresh, bytes };
        self.targets.entry(ticket.key).or_default().push(entry);
    }

    /// A request that may have changed a target succeeded: what is stored of it goes, here and on all other workers (§4.4).
    pub fn invalidate(&mut self, key: &str) {
        self.changes.note(key);
        self.take_out(key, |_| true);
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn drop_stale(&mut self, key: &str, now: Instant) {
        let changes = self.changes.of(key);
        self.take_out(key, |entry| entry.age_at(now) >= entry.fresh || entry.changes != changes);
    }

    fn take_out_oldest(&mut self) {
        if let Some((used, key)) = self.uses.first_key_value().map(|(used, key)| (*used, key.clone())) {
            self.take_out(&key, |entry| entry.used == used);
        }
    }

    fn take_out(&mut self, key: &str, which: impl Fn(&Entry) -> bool) {
        let Some(entries) = self.targets.get_mut(key) else { return };
        entries.retain(|entry| {
            let goes = which(entry);
            if goes {
                self.bytes -= entry.bytes;
                self.uses.remove(&entry.used);
            }
            !goes
        });
        if entries.is_empty() {
            self.targets.remove(key);
        }
    }
}

impl Entry {
    fn age_at(&self, now: Instant) -> Duration {
        self.age + now.saturating_duration_since(self.stored)
    }

    fn matches(&self, headers: &HeaderMap) -> bool {
        self.vary.iter().all(|(name, value)| joined(headers, name) == *value)
    }

    fn answer(&self, head: &request::Parts, now: Instant) -> Found {
        let mut headers = self.headers.clone();
        headers.insert(AGE, HeaderValue::from(self.age_at(now).as_secs()));
        let has_it = head.headers.get(IF_NONE_MATCH).and_then(|v| v.to_str().ok()).is_some_and(|asked| {
            // Compared weakly (RFC 9110 §13.1.2).
            let etag = headers.get(ETAG).and_then(|v| v.to_str().ok()).map(|t| t.trim_start_matches("W/"));
            asked.trim() == "*" || asked.split(',').any(|t| Some(t.trim().trim_start_matches("W/")) == etag)
        });
        if has_it && self.status == StatusCode::OK {
            headers.remove(CONTENT_LENGTH);
            return Found::Hit(StatusCode::NOT_MODIFIED, headers, Bytes::new());
        }
        let body = if head.method == Method::HEAD { Bytes::new() } else { self.body.clone() };
        Found::Hit(self.status, headers, body)
    }
}

/// A field's values as one; none if it is not there.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?.clone();
    let rest: Vec<_> = values.collect();
    if rest.is_empty() {
        return Some(first);
    }
    let mut all = first.as_bytes().to_vec();
    for value in rest {
        all.push(b',');
        all.extend_from_slice(value.as_bytes());
    }
    HeaderValue::from_bytes(&all).ok()
}

/// Whether an answer may be stored (RFC 9111 §3), and for how long it is fresh (§4.2.1). Hop-by-hop fields are gone
/// already.
pub fn judge(policy: &ir::CachePolicy, ticket: &Ticket, head: &response::Parts) -> Option<Pending> {
    let said = Directives::of(&head.headers);
    let heuristically =
        matches!(head.status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501);
    let shared = said.public || said.s_maxage.is_some() || said.must_revalidate;
    if !heuristically
        || said.no_store
        || said.private
        || said.no_cache
        || ticket.authorized && !shared
        || head.headers.contains_key(SET_COOKIE)
    {
        return None;
    }
    let length = head.headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    // More than that is not kept, so it is not collected either.
    let body_bytes_max = (policy.body_bytes_max as usize).min(BYTES_MAX / 8);
    if length.is_some_and(|n| n > body_bytes_max as u64) {
        return None;
    }
    let fresh = said.s_maxage.or(said.max_age).or_else(|| expires(&head.headers)).or(policy.ttl_default)?;
    let age = head
        .headers
        .get(AGE)
        .and_then(|v| v.to_str().ok()?.parse().ok())
        .map_or(Duration::ZERO, Duration::from_secs);
    if fresh <= age {
        return None;
    }
    let mut vary = Vec::new();
    for value in head.headers.get_all(VARY) {
        for name in value.to_str().ok()?.split(',').map(str::trim).filter(|n| !n.is_empty()) {
            if name == "*" {
                return None;
            }
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            let value = joined(&ticket.headers, &name);
            vary.push((name, value));
        }
    }
    Some(Pending {
        ticket: ticket.clone(),
        vary,
        status: head.status,
        headers: head.headers.clone(),
        age,
        fresh: fresh.min(FRESH_MAX),
        body_bytes_max,
    })
}

/// `Expires` counted from `Date`. A date that cannot be read is in the past.
fn expires(headers: &HeaderMap) -> Option<Duration> {
    let expires = headers.get(EXPIRES)?;
    let date = |value: &HeaderValue| date_seconds(value.to_str().ok()?);
    let span = headers.get(DATE).and_then(date).zip(date(expires)).map(|(from, to)| to.saturating_sub(from));
    Some(Duration::from_secs(span.unwrap_or(0)))
}

/// Seconds of an IMF-fixdate (RFC 9110 §5.6.7) since 1970.
fn date_seconds(text: &str) -> Option<u64> {
    let rest = text.split_once(", ")?.1.strip_suffix(" GMT")?;
    let mut parts = rest.split(' ');
    let day: u64 = parts.next()?.parse().ok()?;
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let name = parts.next()?;
    let month = months.iter().position(|m| *m == name)? as u64 + 1;
    let year: u64 = parts.next()?.parse().ok().filter(|y| (1970..=9999).contains(y))?;
    let mut time = parts.next()?.split(':').map(|n| n.parse::<u64>().ok());
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    if !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days from the civil calendar, with years that begin in March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1;
    // 0000-03-01 to 1970-01-01.
    Some((days - 719_468) * 86_400 + hour * 3_600 + minute * 60 + second)
}

#[cfg(test)]
mod tests;
