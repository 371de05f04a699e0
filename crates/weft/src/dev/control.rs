//! The port on which an instance is stopped and started: `POST /hello-2/stop`, `POST /hello-2/start`,
//! and `GET /` for the list.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::sync::Mutex;

use super::http::{json, text};
use super::instance::Instance;

/// All instances. The lock is held over a start or a stop, so that two of them never overlap.
pub(crate) type Instances = Arc<Mutex<Vec<Instance>>>;

/// Answers one request.
pub(crate) async fn answer(request: Request<Incoming>, instances: Instances) -> Response<Full<Bytes>> {
    let path = request.uri().path().trim_matches('/').to_owned();
    let mut instances = instances.lock().await;
    let words: Vec<&str> = path.split('/').filter(|word| !word.is_empty()).collect();
    match (request.method(), words.as_slice()) {
        (&Method::GET, []) => json(StatusCode::OK, list(&instances)),
        (&Method::POST, [id, action @ ("start" | "stop")]) => {
            let known = instances.iter().map(Instance::id).collect::<Vec<_>>().join(", ");
            let Some(instance) = instances.iter_mut().find(|instance| instance.id() == *id) else {
                return text(StatusCode::NOT_FOUND, format!("no instance {id:?}; there are {known}\n"));
            };
            if *action == "stop" {
                instance.stop().await;
                return text(StatusCode::OK, format!("{id} is stopped, as if it had crashed\n"));
            }
            match instance.start().await {
                Ok(()) => text(StatusCode::OK, format!("{id} runs at {}\n", instance.address())),
                Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            }
        }
        _ => text(
            StatusCode::NOT_FOUND,
            "GET / lists the instances; POST /INSTANCE/stop and POST /INSTANCE/start stop and start one\n",
        ),
    }
}

fn list(instances: &[Instance]) -> String {
    let all: Vec<_> = instances
        .iter()
        .map(|instance| {
            serde_json::json!({
                "instance": instance.id(), "address": instance.address(), "running": instance.is_running(),
            })
        })
        .collect();
    crate::output::json(&serde_json::json!({ "instances": all }))
}
