//! Keys of issuers that a service of the mesh publishes (JWKS, RFC 7517 §5). Each address is fetched by one task of the control
//! runtime, over the endpoints, balancing and TLS of that service, and never by a request.
//!
//! What came last stays until something that can be used comes.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, Limited};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};
use weft_core::backoff::Backoff;
use weft_xds_proto::resource::cluster::Protocol;
use weft_xds_proto::resource::guard::JwksUri;

use crate::cluster::picker::{Ask, Tried};
use crate::cluster::security::Security;
use crate::cluster::state::Cluster;
use crate::http::context::Want;
use crate::limits::{JWKS_FETCH_TIMEOUT, JWKS_RETRY_BASE, JWKS_RETRY_MAX};
use crate::mesh_view::MeshState;
use crate::policy::jwt::{JWKS_BYTES_MAX, Keys};
use crate::telemetry::jwks_metrics::JwksMetrics;
use crate::tls::live::{Certificates, Live};
use crate::tls::secure::Speaks;
use crate::upstream::{connect, once};

/// Endpoints that are asked before it counts as failed.
const ENDPOINTS_ASKED_MAX: usize = 3;

/// Keys at one address.
#[derive(Debug)]
pub(crate) struct Source {
    uri: JwksUri,
    refresh: Duration,
    /// Those that came last.
    pub keys: Arc<Live<Keys>>,
}

/// All that are wanted. Each for as long as somebody holds it.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    wanted: Mutex<HashMap<(JwksUri, Duration), Weak<Source>>>,
    changed: Notify,
}

impl Sources {
    /// The keys at an address, which are fetched again at this interval.
    pub fn source(&self, uri: JwksUri, refresh: Duration, certificates: &Certificates) -> Arc<Source> {
        let mut wanted = self.wanted.lock();
        wanted.retain(|_, source| source.strong_count() > 0);
        if let Some(known) = wanted.get(&(uri.clone(), refresh)).and_then(Weak::upgrade) {
            return known;
        }
        let keys = certificates.given(format!("keys from {uri}"), "they have not been fetched yet");
        let source = Arc::new(Source { uri: uri.clone(), refresh, keys });
        wanted.insert((uri, refresh), Arc::downgrade(&source));
        self.changed.notify_one();
        source
    }

    fn held(&self) -> Vec<((JwksUri, Duration), Weak<Source>)> {
        let wanted = self.wanted.lock();
        wanted.iter().filter(|(_, s)| s.strong_count() > 0).map(|(k, s)| (k.clone(), s.clone())).collect()
    }
}

/// Fetches all of them, until it is aborted; its tasks end with it.
pub(crate) async fn run(
    sources: Arc<Sources>,
    mesh: Arc<MeshState>,
    want: Option<Want>,
    metrics: JwksMetrics,
) {
    let mut tasks = JoinSet::new();
    let mut running = HashMap::<(JwksUri, Duration), (Weak<Source>, AbortHandle)>::new();
    loop {
        let gone: Vec<_> = running.extract_if(|_, (source, _)| source.strong_count() == 0).collect();
        for ((uri, _), (_, task)) in gone {
            task.abort();
            // It may be wanted at another interval.
            if !running.keys().any(|(other, _)| *other == uri) {
                metrics.forget(&uri);
            }
        }
        for (key, source) in sources.held() {
            running.entry(key).or_insert_with_key(|(uri, _)| {
                metrics.wanted(uri);
                let task = tasks.spawn(keep(source.clone(), mesh.clone(), want.clone(), metrics.clone()));
                (source, task)
            });
        }
        tokio::select! {
            () = sources.changed.notified() => {}
            // It was aborted, or nobody wants its keys any more.
            Some(_) = tasks.join_next() => {}
        }
    }
}

async fn keep(source: Weak<Source>, mesh: Arc<MeshState>, want: Option<Want>, metrics: JwksMetrics) {
    let mut backoff = Backoff::new(JWKS_RETRY_BASE, JWKS_RETRY_MAX);
    let mut last: Option<Bytes> = None;
    loop {
        let Some(source) = source.upgrade() else { return };
        let fetched =
            tokio::time::timeout(JWKS_FETCH_TIMEOUT, fetch(&source.uri, &mesh, want.as_ref())).await;
        let fetched = fetched.unwrap_or_else(|_| {
            Err(format!("service {} did not answer within {JWKS_FETCH_TIMEOUT:?}", source.uri.service))
        });
        let fetched = fetched.and_then(|text| Ok((Keys::parse(&text)?, text)));
        metrics.ended(&source.uri, fetched.is_ok(), unix_seconds());
        let wait = match fetched {
            Ok((keys, text)) => {
                backoff.reset();
                if last.as_ref() != Some(&text) {
                    source.keys.give(Ok((keys, Vec::new())));
                    last = Some(text);
                }
                source.refresh
            }
            Err(why) => {
                // What comes next is taken, be it the same, so that nothing is wrong any more.
                last = None;
                source.keys.give(Err(why));
                // Half of it at least: an issuer that is in trouble is not to be asked by all sidecars at once.
                let ceiling = backoff.ceiling();
                (ceiling / 2 + backoff.next(fastrand::f64()) / 2).min(source.refresh)
            }
        };
        drop(source);
        tokio::time::sleep(wait).await;
    }
}

/// People compare it with their clocks.
#[allow(clippy::disallowed_methods)]
fn unix_seconds() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}

async fn fetch(uri: &JwksUri, mesh: &MeshState, want: Option<&Want>) -> Result<Bytes, String> {
    if let Some(want) = want {
        want(&uri.service);
    }
    let cluster = known(mesh, &uri.service).await?;
    if uri.tls && matches!(cluster.security(), Security::Plain) {
        return Err(format!(
            "https is wanted, and service {0} has no TLS: give it tls in a TrafficPolicy, or write http://{0}/",
            uri.service
        ));
    }
    let mut tried = Tried::new();
    let mut failed = None;
    while tried.len() < ENDPOINTS_ASKED_MAX {
        let picked = {
            let ask = Ask { key: None, tried: &tried, now: 0 };
            cluster.endpoints.picker().pick_for(ask, &mut fastrand::Rng::new()).map(|state| state.addr())
        };
        let Some(addr) = picked.filter(|addr| !tried.contains(addr)) else { break };
        match ask(&cluster, addr, uri).await {
            Ok(text) => return Ok(text),
            Err(why) => failed = Some(format!("{addr}: {why}")),
        }
        tried.push(addr);
    }
    Err(failed.unwrap_or_else(|| format!("service {} has no endpoint that is ready", uri.service)))
}

/// The service, as soon as it is known.
async fn known(mesh: &MeshState, service: &str) -> Result<Arc<Cluster>, String> {
    let mut changes = mesh.changes();
    loop {
        changes.borrow_and_update();
        let view = mesh.view();
        if let Some(cluster) = view.clusters.get(service) {
            return Ok(cluster.clone());
        }
        if let Some(why) = view.absent.get(service) {
            return Err(why.clone());
        }
        drop(view);
        if changes.changed().await.is_err() {
            return Err(format!("service {service} is not known"));
        }
    }
}

async fn ask(cluster: &Cluster, addr: std::net::SocketAddr, uri: &JwksUri) -> Result<Bytes, String> {
    let place = cluster.place(addr, None)?;
    let protocol = cluster.hop(false);
    let speaks = match protocol {
        Protocol::Http1 => Speaks::Http1,
        Protocol::Http2 => Speaks::Http2,
    };
    let limit = cluster.config.cluster.connect_timeout;
    let stream = connect::open(&place, speaks, limit).await.map_err(|error| error.to_string())?;
    let (answer, _connection) = once::get(stream, protocol, (&uri.service, &uri.path), "weft-jwks").await?;
    if answer.status() != StatusCode::OK {
        return Err(format!("status {}, wanted is 200", answer.status().as_u16()));
    }
    let body = Limited::new(answer.into_body(), JWKS_BYTES_MAX).collect().await;
    body.map(|body| body.to_bytes()).map_err(|error| match error.is::<http_body_util::LengthLimitError>() {
        true => format!("more than {JWKS_BYTES_MAX} bytes of keys"),
        false => format!("its answer breaks off: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use weft_core::metrics::Registry;

    use super::*;
    use crate::cluster::security::ProxyTls;
    use crate::static_routes::StaticRoutes;
    use crate::telemetry::metrics::{Direction, Metrics};

    /// What is fetched comes and goes with policies; its series must not stay.
    #[tokio::test(start_paused = true)]
    async fn series_of_an_address_end_with_the_last_who_wants_it() {
        let (registry, sources, certificates) =
            (Registry::new(), Arc::new(Sources::default()), Certificates::default());
        let metrics = Metrics::new(Registry::new());
        let tls = ProxyTls::default();
        let mesh = MeshState::new(Direction::Outbound, StaticRoutes::default(), metrics, tls);
        let uri = JwksUri { tls: false, service: "login".to_owned(), path: "/keys".to_owned() };
        let (often, seldom) = (Duration::from_secs(20), Duration::from_secs(30));
        let one = sources.source(uri.clone(), often, &certificates);
        let other = sources.source(uri, seldom, &certificates);
        let running = tokio::spawn(run(sources, Arc::new(mesh), None, JwksMetrics::new(&registry)));
        let has = |text: &str| registry.encode().contains(text);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let never = "weft_proxy_jwks_last_success_timestamp_seconds{uri=\"http://login/keys\"} 0";
        assert!(has(never));
        assert!(has("weft_proxy_jwks_fetches_total{uri=\"http://login/keys\",result=\"failure\"} 0"));
        // The service is not known, and waited for.
        tokio::time::sleep(JWKS_FETCH_TIMEOUT).await;
        assert!(has("weft_proxy_jwks_fetches_total{uri=\"http://login/keys\",result=\"failure\"} 2"));
        drop(one);
        tokio::time::sleep(JWKS_FETCH_TIMEOUT + often).await;
        assert!(has(never), "it is wanted at another interval");
        drop(other);
        tokio::time::sleep(JWKS_FETCH_TIMEOUT + seldom).await;
        assert!(!has("http://login/keys"), "{}", registry.encode());
        running.abort();
    }
}
