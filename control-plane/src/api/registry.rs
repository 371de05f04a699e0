//! The registry API of the source document: register, heartbeat, deregister, discover.
//!
//! A registration is one log command that stores the record and its lease together, so it is never half
//! there (P28). A heartbeat renews the lease in the leader's memory and never enters the log. Without
//! heartbeats the lease expires through the log, and the record is gone everywhere at one revision.
//!
//! Instance ids are accepted in both spellings of the source document (ruling D9): for an instance
//! registered as `user-service-abc123`, paths may say `abc123`, and the other way round. The exact
//! spelling wins if both exist.
//!
//! With authentication on, whoever registers, beats and deregisters shows a token (`authorization: Bearer …`) of a user
//! who may write `weft/registry/SERVICE/INSTANCE_ID`. Discovery stays open to anyone who reaches the port: DNS and xDS,
//! which tell the same, know no callers.

pub mod ids;
pub mod validate;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response as HttpResponse};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use weft_state::auth::Access;
use weft_state::command::{Command, Register, RegisteredInstance, Response, Revision};
use weft_state::error::StoreError;
use weft_state::machine::{Machine, Registered};

use super::caller::{Asking, permitted};
use super::problem::ApiError;
use super::read::{Reader, Wanted};
use crate::catalog::{self, Catalog, CatalogEndpoint, Source, names};
use crate::meshconfig::{Balancing, Routes};
use crate::raft::{Coordinator, LeaseError, Proposed};

/// Largest body of a registration: 64 entries of metadata at their largest, and their quotes.
pub const BODY_BYTES_MAX: usize = 128 * 1024;

/// A client is told to beat this many times within its TTL, so that two lost beats do no harm.
const BEATS_PER_TTL: f64 = 3.0;

/// Says how far an answer can be relied on (design: guarantees).
pub const CONSISTENCY_HEADER: HeaderName = HeaderName::from_static("x-weft-consistency");

/// What the handlers need.
#[derive(Clone)]
pub struct RegistryApi {
    /// Writes and renewals.
    pub coordinator: Coordinator,
    /// Reads.
    pub reader: Reader,
    /// Gossip's half, and names to suggest.
    pub catalog: Catalog,
    /// What policies say.
    pub routes: Arc<Routes>,
}

/// `POST /register`.
pub async fn register(
    State(api): State<RegistryApi>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<axum::Json<Value>, ApiError> {
    let asking = Asking::of(&api.coordinator, &headers).await?;
    let body = body.map_err(|e| match e.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("body exceeds {BODY_BYTES_MAX} bytes"))
                .with("field", "body")
                .with("allowed", format!("at most {BODY_BYTES_MAX} bytes"))
        }
        status => ApiError::new(status, e.body_text()),
    })?;
    let instance = validate::registration(&body).map_err(|p| ApiError::invalid(&p))?;
    let (lease, revision) = store(&api.coordinator, &asking, &instance).await?;
    let ttl = instance.ttl_secs;
    let mut answer = record(&instance);
    answer["lease"] = format!("{lease:x}").into();
    answer["revision"] = revision.into();
    answer["ttl"] = format!("{ttl}s").into();
    answer["ttl_secs"] = ttl.into();
    answer["heartbeat_interval_secs"] = heartbeat_interval(ttl).into();
    answer["heartbeat"] = format!("PUT /heartbeat/{}/{}", instance.service, instance.instance_id).into();
    Ok(axum::Json(answer))
}

/// Registers under a fresh lease id, which only matters if the instance is new.
async fn store(
    coordinator: &Coordinator,
    asking: &Asking,
    instance: &RegisteredInstance,
) -> Result<(i64, Revision), ApiError> {
    loop {
        let register = Register {
            instance: instance.clone(),
            lease: fastrand::i64(1..=i64::MAX),
            ttl_secs: instance.ttl_secs,
        };
        let Proposed { revision, response, .. } =
            propose(coordinator, asking, Command::Register(register)).await?;
        match response {
            Ok(Response::Register { lease }) => return Ok((lease, revision)),
            // One chance in 2^63 for each lease there is; another number will do.
            Err(StoreError::LeaseExists { .. }) => {}
            Err(error) => return Err(error.into()),
            Ok(other) => return Err(unexpected(&other)),
        }
    }
}

/// Has a command of that caller carried out, unless the caller may not.
async fn propose(coordinator: &Coordinator, asking: &Asking, command: Command) -> Result<Proposed, ApiError> {
    asking.admit(coordinator, &command).await?;
    Ok(coordinator.propose(asking.enclose(command)).await?)
}

fn unexpected(response: &Response) -> ApiError {
    tracing::error!(?response, "a command was answered with another command's response");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the state machine answered another command")
}

fn heartbeat_interval(ttl_secs: i64) -> f64 {
    // Seconds with one decimal: a TTL of 2 s asks for a beat every 0.6 s.
    (ttl_secs as f64 / BEATS_PER_TTL * 10.0).floor() / 10.0
}

fn record(instance: &RegisteredInstance) -> Value {
    json!({
        "service": instance.service,
        "instance_id": instance.instance_id,
        "host": instance.host,
        "port": instance.port,
        "metadata": instance.metadata,
        "check": instance.health_path.as_ref().map(|path| json!({ "path": path })),
    })
}

/// `PUT /heartbeat/{service}/{id}`.
pub async fn heartbeat(
    State(api): State<RegistryApi>,
    headers: HeaderMap,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<axum::Json<Value>, ApiError> {
    let asking = Asking::of(&api.coordinator, &headers).await?;
    let (service, id) = instance_path(path)?;
    // What this server has is enough if it is there: the leader decides about the lease. Only a miss is
    // worth a barrier, since the registration may have been answered by another server just now.
    let mut found = api.coordinator.read(|m| ids::find(m, &service, &id));
    if found.is_none() {
        let read = |m: &Machine| ids::find(m, &service, &id);
        found = api.reader.read(Wanted::Linearizable, read).await?.0;
    }
    let Some(found) = found else {
        return Err(not_registered(&api, &service, &id));
    };
    let renewable = |m: &Machine| m.permits_lease(&asking.caller, Access::Write, found.lease);
    permitted(&api.coordinator, renewable).await?;
    match api.coordinator.lease_renew(found.lease).await {
        Ok(ttl) => Ok(axum::Json(json!({
            "service": service,
            "instance_id": found.instance.instance_id,
            "ttl": format!("{ttl}s"),
            "ttl_secs": ttl,
            "heartbeat_interval_secs": heartbeat_interval(ttl),
        }))),
        Err(LeaseError::Store(StoreError::LeaseNotFound { .. })) => Err(not_registered(&api, &service, &id)),
        Err(error) => Err(error.into()),
    }
}

/// `DELETE /deregister/{service}/{id}`.
pub async fn deregister(
    State(api): State<RegistryApi>,
    headers: HeaderMap,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<axum::Json<Value>, ApiError> {
    let asking = Asking::of(&api.coordinator, &headers).await?;
    let (service, id) = instance_path(path)?;
    let read = |m: &Machine| ids::find(m, &service, &id);
    let Some(found) = api.reader.read(Wanted::Linearizable, read).await?.0 else {
        return Err(not_registered(&api, &service, &id));
    };
    let instance_id = found.instance.instance_id.clone();
    let command = Command::Deregister { service: service.clone(), instance_id: instance_id.clone() };
    let Proposed { revision, response, .. } = propose(&api.coordinator, &asking, command).await?;
    match response? {
        Response::Deregister { lease: Some(_) } => Ok(axum::Json(json!({
            "service": service,
            "instance_id": instance_id,
            "deregistered": true,
            "revision": revision,
        }))),
        // Somebody else was faster.
        Response::Deregister { lease: None } => Err(not_registered(&api, &service, &id)),
        other => Err(unexpected(&other)),
    }
}

fn instance_path(path: Result<Path<(String, String)>, PathRejection>) -> Result<(String, String), ApiError> {
    let Path((service, id)) = path.map_err(|e| ApiError::new(e.status(), e.body_text()))?;
    let problems: Vec<_> = [validate::service_name_text(&service), validate::instance_id_text(&id)]
        .into_iter()
        .filter_map(Result::err)
        .collect();
    if problems.is_empty() { Ok((service, id)) } else { Err(ApiError::invalid(&problems)) }
}

/// 404 that says what would help: register (again), or whom to ask.
fn not_registered(api: &RegistryApi, service: &str, id: &str) -> ApiError {
    let spellings = ids::spellings(service, id);
    let by_gossip = api.catalog.endpoints(service).into_iter().find_map(|e| match e.source {
        Source::Gossip { member_name, .. } if spellings.contains(&e.instance_id) => Some(member_name),
        _ => None,
    });
    let why = match by_gossip {
        Some(member) => format!(
            "instance {id} of service {service} is advertised by member {member} over gossip, not registered: \
             it goes when that sidecar withdraws it"
        ),
        None => format!(
            "instance {id} of service {service} is not registered; it may have expired or been deregistered: \
             POST /register again"
        ),
    };
    let known = api.coordinator.read(|m| m.registered(Some(service)));
    let known: Vec<Value> =
        known.iter().take(KNOWN_SHOWN_MAX).map(|r| r.instance.instance_id.clone().into()).collect();
    ApiError::new(StatusCode::NOT_FOUND, why).with("registered", known)
}

/// Most names in an answer about an unknown one.
const KNOWN_SHOWN_MAX: usize = 20;

/// Query of the reading calls.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadQuery {
    consistency: Option<String>,
}

fn wanted(query: Result<Query<ReadQuery>, QueryRejection>) -> Result<Wanted, ApiError> {
    const ALLOWED: &str = "linearizable, serializable; without it: linearizable if a quorum answers in time";
    let Query(query) = query.map_err(|e| {
        ApiError::new(StatusCode::BAD_REQUEST, e.body_text())
            .with("field", "consistency")
            .with("allowed", ALLOWED)
    })?;
    match query.consistency.as_deref() {
        None => Ok(Wanted::Best),
        Some("linearizable") => Ok(Wanted::Linearizable),
        Some("serializable") => Ok(Wanted::Serializable),
        Some(other) => Err(ApiError::new(StatusCode::BAD_REQUEST, format!("consistency is {other:?}"))
            .with("field", "consistency")
            .with("allowed", ALLOWED)),
    }
}

/// `GET /discover/{service}`: the healthy instances.
pub async fn discover(
    State(api): State<RegistryApi>,
    path: Result<Path<String>, PathRejection>,
    query: Result<Query<ReadQuery>, QueryRejection>,
) -> Result<HttpResponse, ApiError> {
    let Path(service) = path.map_err(|e| ApiError::new(e.status(), e.body_text()))?;
    let wanted = wanted(query)?;
    let read = |m: &Machine| m.registered(Some(&service));
    let (registered, label): (Vec<Registered>, _) = api.reader.read(wanted, read).await?;
    let all = api.catalog.merged_with(&service, &registered);
    if all.is_empty() {
        return Err(unknown_service(&api.catalog, &service));
    }
    let healthy = catalog::healthy(&all);
    let gossip_age =
        healthy.iter().filter(|e| matches!(e.source, Source::Gossip { .. })).map(|e| e.age).max();
    let label = consistency(label.to_string(), gossip_age);
    let body = json!({
        "service": service,
        "consistency": label,
        "healthy": healthy.len(),
        "total": all.len(),
        "instances": healthy.iter().map(|e| instance(e)).collect::<Vec<_>>(),
    });
    Ok(labelled(&label, body))
}

/// The label of the registry's half, and of gossip's if it has a part in the answer.
fn consistency(registry: String, gossip_age: Option<Duration>) -> String {
    match gossip_age {
        Some(age) => format!("{registry}, gossip({}ms)", age.as_millis()),
        None => registry,
    }
}

fn instance(e: &CatalogEndpoint) -> Value {
    json!({
        "instance_id": e.instance_id,
        "host": e.host,
        "port": e.port,
        "health": e.health.as_str(),
        "metadata": e.metadata,
        "source": e.source.as_str(),
        "owner": e.source.owner(),
        "age_ms": u64::try_from(e.age.as_millis()).unwrap_or(u64::MAX),
    })
}

fn labelled(label: &str, body: Value) -> HttpResponse {
    let mut response = axum::Json(body).into_response();
    if let Ok(value) = HeaderValue::from_str(label) {
        response.headers_mut().insert(CONSISTENCY_HEADER, value);
    }
    response
}

/// 404 that names the service and what resembles it, or what there is.
fn unknown_service(catalog: &Catalog, service: &str) -> ApiError {
    let known = catalog.service_names();
    let near = names::near(service, known.iter().map(String::as_str), KNOWN_SHOWN_MAX);
    let hint = match (near.as_slice(), known.len()) {
        ([], 0) => "no service is registered".to_owned(),
        ([], n) => format!("{n} services are known"),
        (near, _) => format!("did you mean {}", near.join(", ")),
    };
    let shown: Vec<Value> = known.iter().take(KNOWN_SHOWN_MAX).map(|n| n.as_str().into()).collect();
    let near: Vec<Value> = near.into_iter().map(Into::into).collect();
    ApiError::new(StatusCode::NOT_FOUND, format!("service {service} is unknown; {hint}"))
        .with("service", service)
        .with("near", near)
        .with("known", shown)
}

/// `GET /services`: a line for each service, from this server's view.
pub async fn services(
    State(api): State<RegistryApi>,
    query: Result<Query<ReadQuery>, QueryRejection>,
) -> Result<HttpResponse, ApiError> {
    let wanted = wanted(query)?;
    let ((), label) = api.reader.read(wanted, |_| ()).await?;
    let config = api.routes.lowered();
    let all: Vec<Value> = api
        .catalog
        .services()
        .into_iter()
        .map(|s| {
            let balancing = Balancing::of(&config, &s.name, s.load_balancing);
            json!({
                "name": s.name,
                "healthy": s.healthy,
                "total": s.total,
                "load_balancing": balancing.policy.to_string(),
                "sources": s.sources,
            })
        })
        .collect();
    let label = label.to_string();
    Ok(labelled(&label, json!({ "services": all, "consistency": label })))
}
