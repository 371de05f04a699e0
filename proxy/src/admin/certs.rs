//! `/certs`: certificates in use, and what they were made of.

use serde_json::{Value, json};

use super::AdminState;

pub(super) fn json(state: &AdminState) -> Value {
    let mesh = state.tls.mesh.as_ref();
    json!({
        "identity": mesh.map(|mesh| mesh.id.as_str()),
        "mesh_mode": mesh.map(|mesh| mesh.mode.as_str()),
        "in_use": state.tls.certificates.show(),
    })
}
