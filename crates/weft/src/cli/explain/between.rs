//! A request from one service to another: what a sidecar of the one would do with it, and what those of the other make of it.

use std::collections::BTreeSet;
use std::pin::pin;

use futures::{StreamExt, stream};
use serde_json::{Value, json};
use weft_client::Client;
use weft_client::proto::weft as pb;
use weft_core::tls::spiffe::SpiffeId;
use weft_meshconfig::lower::Lowered;
use weft_meshconfig::{Document, MeshConfig};
use weft_proxy::config_snapshot::ClusterConfig;
use weft_proxy::explain::{self, Caller};
use weft_xds_proto::resource::cluster::Cluster;
use weft_xds_proto::resource::endpoint::{Endpoint, EndpointHealth, EndpointSource, unique_by_address};
use weft_xds_proto::resource::labels;

use super::{Question, admitted, ask};
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
        backend["admission"] = admitted::admission(client, &documents, backend, &caller).await;
    }
    Ok(told)
}

/// Sidecars of the caller; the first of them that can tell is enough.
const ASKED_AT_ONCE: usize = 8;

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
    let asking = all.into_iter().map(async |(id, instance, admin)| match admin {
        Ok(admin) => {
            let answer = ask(admin, question).await.map_err(|why| why.to_string());
            (id, instance, answer.map(|told| (admin, told)))
        }
        Err(why) => (id, instance, Err(why)),
    });
    let mut why = format!("no instance of {source} tells of itself");
    let mut known = None;
    // In their order, and one that is slow to answer keeps nobody waiting for the next.
    let mut answers = pin!(stream::iter(asking).buffered(ASKED_AT_ONCE));
    while let Some((id, instance, answer)) = answers.next().await {
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
    let head = explain::question(pairs, &[]).map_err(Failure::new)?;
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
