//! `/admission`: what this sidecar would make of a request that comes in, without anybody sending it. The gate that is asked
//! is the one that requests pass: with the policies of the mesh and of the file, and the keys that this sidecar holds.

use std::net::IpAddr;

use http::{StatusCode, request};
use serde_json::{Value, json};
use weft_core::tls::spiffe::SpiffeId;

use super::AdminState;
use crate::explain::admission::judged;
use crate::explain::{self, Caller, Sent};
use crate::http::error::RequestError;
use crate::http::guarded::unix_seconds;
use crate::http::{rescue, resolve, target};
use crate::mesh_view::MeshView;
use crate::route::path;
use crate::tls::mesh::{MeshMode, MeshTls};

/// The answer, or what is wrong with the question: that of `/explain`, with `identity=SPIFFE_ID` and `address=IP` of the caller.
pub(super) fn json(state: &AdminState, query: &str) -> Result<Value, (StatusCode, String)> {
    let (caller, head) = question(query).map_err(|why| (StatusCode::BAD_REQUEST, format!("{why}\n")))?;
    if state.config.inbound.is_none() {
        let why = "no requests come in here: this sidecar has no --inbound\n";
        return Err((StatusCode::NOT_FOUND, why.to_owned()));
    }
    let mesh = state.tls.mesh.as_deref();
    let mut told = match seen(mesh, caller) {
        Err(why) => json!({ "verdict": "DENY", "why": why }),
        Ok((caller, note)) => {
            let only = state.config.only_service();
            let told = of_request(&state.inbound.view(), only, &head, &caller);
            let mut told = told.unwrap_or_else(|error| {
                let (status, _) = rescue::status(&error);
                json!({ "verdict": "DENY", "status": status.as_u16(), "why": error.to_string() })
            });
            let tls = "its inbound port takes TLS alone (--inbound-cert)".to_owned();
            let tls = state.config.inbound_tls.as_ref().map(|_| tls);
            let notes: Vec<_> = note.into_iter().chain(tls).collect();
            told["note"] = Some(notes.join("; ")).filter(|notes| !notes.is_empty()).into();
            told
        }
    };
    told["identity"] = mesh.map(|mesh| mesh.id.as_str()).into();
    told["mesh_mode"] = mesh.map(|mesh| mesh.mode.as_str()).into();
    Ok(told)
}

fn question(query: &str) -> Result<(Caller, request::Parts), String> {
    let mut caller = Caller::default();
    let mut others = Vec::new();
    for pair in super::pairs(query) {
        let (key, value) = pair?;
        match key.as_str() {
            "identity" => {
                caller.identity = Some(SpiffeId::parse(&value).map_err(|why| format!("identity: {why}"))?);
            }
            "address" => {
                let allowed = |_| format!("address: {value:?}; allowed is an IP address");
                caller.ip = Some(value.parse::<IpAddr>().map_err(allowed)?);
            }
            _ => others.push((key, value)),
        }
    }
    Ok((caller, explain::question(others, &["identity", "address"])?))
}

/// Who a caller is for this sidecar, with what is to be said of it. Or why it gets no connection.
fn seen(mesh: Option<&MeshTls>, caller: Caller) -> Result<(Caller, Option<String>), String> {
    let nobody = Caller { identity: None, ..caller };
    let Some(mesh) = mesh else {
        let note = "this sidecar speaks no TLS with others, so it does not know who calls".to_owned();
        return Ok((nobody, caller.identity.map(|_| note)));
    };
    let own = mesh.id.trust_domain();
    let stranger = match caller.identity {
        Some(id) if id.trust_domain() == own => return Ok((Caller { identity: Some(id), ..nobody }, None)),
        Some(id) => Some(format!("{id} is not of the trust domain {own}")),
        None => None,
    };
    match mesh.mode {
        MeshMode::Permissive => {
            Ok((nobody, stranger.map(|why| format!("{why}: in plaintext, the caller is nobody here"))))
        }
        MeshMode::Strict => {
            let why = stranger.unwrap_or("a caller without a certificate".to_owned());
            Err(format!("mesh-mode strict: {why} gets no connection"))
        }
    }
}

/// As [`crate::http::guarded`] asks.
fn of_request(
    view: &MeshView,
    only: Option<&str>,
    head: &request::Parts,
    caller: &Caller,
) -> Result<Value, RequestError> {
    let target = target::of(head)?;
    let cluster = resolve::local(view, only, &target)?;
    let gate = cluster.gate.as_deref();
    let path = match path::normalise(head.uri.path()) {
        Ok(path) => path,
        Err(why) if gate.is_some_and(|gate| gate.policies.looks_at_paths()) => {
            return Err(RequestError::BadPath(why));
        }
        Err(_) => head.uri.path().into(),
    };
    let guard = cluster.config.cluster.guard.as_ref();
    let sent = Sent::of(head, target.host, &path);
    let mut told = judged(gate.zip(guard), caller, &sent, unix_seconds());
    told["service"] = cluster.name().into();
    Ok(told)
}
