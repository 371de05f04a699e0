//! A request from one service to another: what a sidecar of the one would do with it, and what those of the other make of it.

use std::collections::BTreeSet;
use std::time::SystemTime;

use futures::future::join_all;
use serde_json::{Value, json};
use weft_client::Client;
use weft_client::proto::weft as pb;
use weft_core::tls::spiffe::SpiffeId;
use weft_meshconfig::lower::Lowered;
use weft_meshconfig::{Document, MeshConfig};
use weft_proxy::config_snapshot::ClusterConfig;
use weft_proxy::explain::{self, Caller, Sent};
use weft_proxy::health::SIDECAR_LABEL;
use weft_proxy::tls::mesh::{MeshMode, SPIFFE_LABEL};
use weft_xds_proto::resource::cluster::Cluster;
use weft_xds_proto::resource::endpoint::{Endpoint, EndpointHealth, EndpointSource, unique_by_address};
use weft_xds_proto::resource::labels;

use super::{Question, ask};
use crate::cli::admin::Admin;
use crate::cli::sidecars::{self, Instance};
use crate::failure::Failure;

/// See the module. `named`: the sidecar to ask, whatever the mesh tells of the source.
pub(super) async fn explain(
    client: &Client,
    source: &str,
    named: Option<Admin>,
    question: &Question,
) -> Result<Value, Failure> {
    let identity = match source.starts_with("spiffe:") {
        true => Some(SpiffeId::parse(source).map_err(|why| Failure::new(format!("SRC: {why}")))?),
        false => None,
    };
    let instances = match &identity {
        Some(id) => sidecars::with_identity(client, id).await?,
        // Whoever names the sidecar may call it as he likes.
        None if named.is_some() => sidecars::of(client, source).await.unwrap_or_default(),
        None => sidecars::of(client, source).await?,
    };
    let documents = documents(client).await?;
    let (mut told, instance) = match asked(named, source, &instances, question).await {
        Ok((told, instance)) => (told, instance.or(instances.first())),
        Err((why, known)) => {
            let mut told = by_documents(client, documents.clone(), question).await?;
            told["asked"] = format!("the servers alone: {why}").into();
            told["identity"] = known.into();
            (told, instances.first())
        }
    };
    let advertised = || instance.and_then(|instance| instance.identity.clone());
    let own = told["identity"].as_str().and_then(|text| SpiffeId::parse(text).ok());
    let caller = Caller {
        identity: identity.or(own).or_else(advertised),
        ip: instance.and_then(|instance| Some(instance.address?.ip())),
    };
    let shown = caller.identity.as_ref().map(SpiffeId::as_str);
    told["caller"] = json!({ "source": source, "identity": shown, "address": caller.ip });
    for backend in told["backends"].as_array_mut().into_iter().flatten() {
        backend["admission"] = admission(&documents, backend, &caller);
        if caller.identity.is_none() && backend["admission"]["verdict"] != "DENY" {
            let service = backend["service"].as_str().unwrap_or_default();
            let modes = modes(client, service).await;
            strict(&mut backend["admission"], &modes);
        }
    }
    Ok(told)
}

/// What the first sidecar says that can be asked. Or why none does, and the identity of one that knows too little.
async fn asked<'a>(
    named: Option<Admin>,
    source: &str,
    instances: &'a [Instance],
    question: &Question,
) -> Result<(Value, Option<&'a Instance>), (String, Option<String>)> {
    let of_instance =
        |instance: &'a Instance| (instance.id.clone(), Some(instance), instance.sidecar.clone());
    let all: Vec<_> = match named {
        Some(admin) => vec![(source.to_owned(), None, Ok(admin))],
        None => instances.iter().map(of_instance).collect(),
    };
    let mut why = format!("no instance of {source} tells of itself");
    let mut known = None;
    for (id, instance, admin) in all {
        let answer = match admin {
            Ok(admin) => ask(admin, question).await.map(|told| (admin, told)).map_err(|e| e.to_string()),
            Err(why) => Err(why),
        };
        match answer {
            Err(failed) => why = failed,
            // Which it will know from its first request on.
            Ok((_, told)) if told["verdict"] == "unknown" => {
                why = format!("for the sidecar of {id}, {}", told["why"].as_str().unwrap_or_default());
                known = told["identity"].as_str().map(str::to_owned);
            }
            Ok((admin, mut told)) => {
                told["asked"] = format!("the sidecar of {id} at {}", admin.0).into();
                return Ok((told, instance));
            }
        }
    }
    Err((why, known))
}

async fn documents(client: &Client) -> Result<Lowered, Failure> {
    let mut config = MeshConfig::default();
    for held in client.config().list("", "").await? {
        let document = Document::from_bytes(&held.json).map_err(|problems| {
            let why: Vec<_> = problems.iter().map(ToString::to_string).collect();
            Failure::new(format!("{} {} is not understood here: {}", held.kind, held.name, why.join("; ")))
        })?;
        config.insert(document, held.create_revision);
    }
    Ok(config.lowered())
}

/// What a sidecar would do that knows what servers know.
async fn by_documents(client: &Client, documents: Lowered, question: &Question) -> Result<Value, Failure> {
    let pairs = question.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
    let head = explain::question(pairs).map_err(Failure::new)?;
    let told = explain::by_documents(documents.clone(), Vec::new(), &head);
    let services = client.mesh().services().await?;
    let backends = told["backends"].as_array().into_iter().flatten();
    let names: BTreeSet<_> = backends.filter_map(|backend| backend["service"].as_str()).collect();
    let mut clusters = Vec::new();
    let mut ages = Vec::new();
    for service in services.iter().filter(|service| names.contains(service.name.as_str())) {
        let known = client.mesh().endpoints(&service.name).await?;
        ages.extend(known.iter().map(|endpoint| (endpoint.address.clone(), endpoint.age_ms / 1000)));
        let mut cluster = Cluster::with_defaults(&service.name);
        if let Ok(policy) = service.load_balancing.parse() {
            cluster.lb_policy = policy;
        }
        if let Some(policy) = documents.policies.get(&service.name) {
            policy.spec.apply(&mut cluster);
        }
        let endpoints = unique_by_address(known.iter().filter_map(endpoint).collect());
        clusters.push(ClusterConfig { cluster, endpoints, version: "as servers have it".to_owned() });
    }
    let mut told = explain::by_documents(documents, clusters, &head);
    for backend in told["backends"].as_array_mut().into_iter().flatten() {
        for endpoint in backend["cluster"]["endpoints"].as_array_mut().into_iter().flatten() {
            let age = ages.iter().find(|(address, _)| endpoint["address"] == **address);
            endpoint["age_secs"] = age.map(|(_, secs)| *secs).into();
        }
    }
    if told["verdict"] == "unknown" {
        told["verdict"] = "not found".into();
        told["why"] = "servers know no service of this name".into();
    }
    Ok(told)
}

fn endpoint(known: &pb::Endpoint) -> Option<Endpoint> {
    let metadata = known.metadata.clone().into_iter().collect();
    Some(Endpoint {
        address: known.address.parse().ok().filter(|address: &std::net::SocketAddr| address.port() != 0)?,
        instance_id: known.instance_id.clone(),
        health: match known.health.as_str() {
            "passing" => EndpointHealth::Healthy,
            "suspect" => EndpointHealth::Degraded,
            _ => EndpointHealth::Unhealthy,
        },
        weight: labels::weight(&metadata),
        source: if known.source == "gossip" { EndpointSource::Gossip } else { EndpointSource::Registry },
        owner: known.owner.clone(),
        metadata,
    })
}

/// Whether the sidecars of a service let the caller in.
fn admission(documents: &Lowered, backend: &Value, caller: &Caller) -> Value {
    let service = backend["service"].as_str().unwrap_or_default();
    let endpoints: Vec<_> = backend["cluster"]["endpoints"].as_array().into_iter().flatten().collect();
    let labelled = |label: &str| endpoints.iter().filter(|e| e["metadata"][label].is_string()).count();
    let (all, behind, named) = (endpoints.len(), labelled(SIDECAR_LABEL), labelled(SPIFFE_LABEL));
    if behind == 0 && all > 0 {
        return json!({ "verdict": "ALLOW", "why": format!("no instance of {service} is behind a sidecar that could refuse it") });
    }
    let Ok(sent) = serde_json::from_value::<Sent>(backend["sent"].clone()) else {
        return json!({ "verdict": "DENY", "why": "the route makes no usable request of it" });
    };
    // A certificate is shown to those that ask for one.
    let anonymous = Caller { identity: None, ..caller.clone() };
    let seen = if named > 0 { caller } else { &anonymous };
    let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let mut told = explain::admission(documents.guard(service).as_ref(), seen, &sent, now);
    if behind < all {
        told["note"] =
            format!("{behind} of {all} instances are behind a sidecar; the others refuse nobody").into();
    } else if named == 0 && caller.identity.is_some() {
        told["note"] = "its sidecars speak no TLS with others, so they do not know who calls".into();
    } else if named < all {
        told["note"] =
            format!("{named} of {all} sidecars speak TLS; to the others the caller is nobody").into();
    }
    told
}

/// Of each instance of a service that is behind a sidecar: whether that is strict, or why it cannot be asked.
async fn modes(client: &Client, service: &str) -> Vec<(String, Result<bool, String>)> {
    // A service that nobody knows any more has no sidecars.
    let mut endpoints = client.mesh().endpoints(service).await.unwrap_or_default();
    endpoints.retain(|endpoint| endpoint.metadata.contains_key(SIDECAR_LABEL));
    let asked = endpoints.iter().map(Instance::from).map(async |Instance { id, sidecar, .. }| {
        let strict = match sidecar {
            Ok(admin) => is_strict(admin).await.map_err(|why| why.to_string()),
            Err(why) => Err(why),
        };
        (id, strict)
    });
    join_all(asked).await
}

async fn is_strict(admin: Admin) -> Result<bool, Failure> {
    let told: Value = serde_json::from_str(&admin.get_whole("/certs", &[]).await?).map_err(|error| {
        Failure::new(format!("the answer of the sidecar at {} cannot be read: {error}", admin.0))
    })?;
    Ok(told["mesh_mode"] == MeshMode::Strict.as_str())
}

/// Strict sidecars take no connection of a caller without a certificate, whatever policies say.
fn strict(told: &mut Value, modes: &[(String, Result<bool, String>)]) {
    let strict: Vec<_> = modes.iter().filter(|(_, is)| *is == Ok(true)).map(|(id, _)| id.as_str()).collect();
    let names = strict.join(", ");
    let note = match modes.iter().find_map(|(_, is)| is.as_ref().err()) {
        _ if !strict.is_empty() && strict.len() == modes.len() => {
            let why =
                format!("mesh-mode strict of {names}: a caller without a certificate gets no connection");
            *told = json!({ "verdict": "DENY", "why": why });
            return;
        }
        _ if !strict.is_empty() => {
            format!(
                "of {} sidecars {names} are strict: a caller without a certificate gets no connection there",
                modes.len()
            )
        }
        Some(why) => format!("whether a sidecar is strict is not known of all of them: {why}"),
        None => return,
    };
    let before = told["note"].as_str().map(|before| format!("{before}; ")).unwrap_or_default();
    told["note"] = format!("{before}{note}").into();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(modes: &[(&str, Result<bool, &str>)]) -> Value {
        let modes: Vec<_> =
            modes.iter().map(|(id, is)| ((*id).to_owned(), is.map_err(str::to_owned))).collect();
        let mut told = json!({ "verdict": "ALLOW", "note": "a note" });
        strict(&mut told, &modes);
        told
    }

    #[test]
    fn a_caller_without_a_certificate_is_denied_where_all_sidecars_are_strict_and_else_told_of_those() {
        let all = told(&[("one", Ok(true)), ("two", Ok(true))]);
        assert_eq!(all["verdict"], "DENY");
        assert!(all["why"].as_str().is_some_and(|why| why.contains("strict of one, two")), "{all}");
        for (modes, part) in [
            (&[("one", Ok(true)), ("two", Ok(false))][..], "a note; of 2 sidecars one are strict"),
            (&[("one", Ok(true)), ("two", Err("deaf"))], "a note; of 2 sidecars one are strict"),
            (&[("one", Ok(false)), ("two", Err("deaf"))], "a note; whether a sidecar is strict is not known"),
            (&[("one", Ok(false))], "a note"),
            (&[], "a note"),
        ] {
            let told = told(modes);
            assert_eq!(told["verdict"], "ALLOW");
            assert!(told["note"].as_str().is_some_and(|note| note.starts_with(part)), "{part} not in {told}");
        }
    }
}
