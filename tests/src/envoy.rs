//! A real Envoy that has its clusters and routes from a Weft server. `tests/envoy/run` says which one by `WEFT_ENVOY`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::http_client;
use crate::mesh::Mesh;
use crate::wait::until;

/// How long it may take to do as it was told.
const PATIENCE: Duration = Duration::from_secs(30);

/// An Envoy with one listener, whose routes are those of the service `shop`. Dropping it kills it.
pub struct Envoy {
    listener: SocketAddr,
    _process: Child,
}

impl Envoy {
    /// Starts it on free ports. `dialect` is Envoy's word for how it asks: `DELTA_GRPC` or `GRPC`.
    pub async fn start(mesh: &Mesh, dialect: &str) -> Self {
        let program =
            std::env::var_os("WEFT_ENVOY").expect("WEFT_ENVOY names Envoy's binary: tests/envoy/run");
        let (config, at) = (mesh.folder("envoy.json"), mesh.folder("envoy-admin"));
        std::fs::write(&config, bootstrap(mesh.servers[0].grpc(), dialect).to_string()).expect("our folder");
        let log = std::fs::File::create(mesh.folder("envoy.log")).expect("our folder");
        let process = Command::new(program)
            .args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"])
            .args([PathBuf::from("--config-path"), config])
            .args([PathBuf::from("--admin-address-path"), at.clone()])
            .stdin(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("Envoy can be started");
        let admin = until("Envoy's admin port", PATIENCE, || async {
            let text = std::fs::read_to_string(&at).map_err(|e| e.to_string())?;
            text.trim().parse::<SocketAddr>().map_err(|e| e.to_string())
        })
        .await;
        let listener = until("Envoy is ready", PATIENCE, || async {
            let ready = http_client::get(admin, "admin", "/ready").await?;
            let all = http_client::get(admin, "admin", "/listeners?format=json").await?.body;
            let all: Value = serde_json::from_str(&all).map_err(|e| e.to_string())?;
            let socket = &all["listener_statuses"][0]["local_address"]["socket_address"];
            let port = socket["port_value"].as_u64().filter(|_| ready.status == StatusCode::OK);
            Ok(SocketAddr::from(([127, 0, 0, 1], port.ok_or(ready.body)? as u16)))
        })
        .await;
        Self { listener, _process: process }
    }

    /// Asks for something of `shop`, with a header field or none.
    pub async fn get(&self, field: Option<(&str, &str)>) -> Result<(StatusCode, String), String> {
        let stream = tokio::net::TcpStream::connect(self.listener).await.map_err(|e| e.to_string())?;
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(io).await.map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        let mut request = Request::builder().uri("/x").header("host", "shop");
        if let Some((name, value)) = field {
            request = request.header(name, value);
        }
        let request = request.body(Empty::<bytes::Bytes>::new()).expect("a plain request");
        let answer = tokio::time::timeout(PATIENCE, sender.send_request(request)).await;
        let (head, body) = answer.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?.into_parts();
        let body = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
        Ok((head.status, String::from_utf8_lossy(&body).trim().to_owned()))
    }

    /// Which bodies so many requests are answered with.
    pub async fn answers(
        &self,
        requests: usize,
        field: Option<(&str, &str)>,
    ) -> Result<BTreeSet<String>, String> {
        let mut seen = BTreeSet::new();
        for _ in 0..requests {
            seen.insert(self.get(field).await?.1);
        }
        Ok(seen)
    }

    /// Waits until twelve requests are answered by these and nobody else.
    pub async fn until_only(&self, names: &[&str], field: Option<(&str, &str)>) {
        until(&format!("only {names:?} answer"), PATIENCE, || async {
            let seen = self.answers(12, field).await?;
            if seen.iter().eq(names) { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
    }
}

fn bootstrap(server: SocketAddr, dialect: &str) -> Value {
    const TYPE: &str = "type.googleapis.com/envoy.extensions";
    let address =
        |at: SocketAddr| json!({"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}});
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    let ads = json!({"ads": {}, "resource_api_version": "V3"});
    let filter = |name: &str, kind: &str, more: Value| {
        let mut config = more;
        config["@type"] = json!(format!("{TYPE}.filters.http.{kind}"));
        json!({"name": format!("envoy.filters.http.{name}"), "typed_config": config})
    };
    let manager = json!({
        "@type": format!("{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "shop",
        "rds": {"route_config_name": "shop", "config_source": ads},
        "http_filters": [
            filter("cors", "cors.v3.Cors", json!({})),
            filter("fault", "fault.v3.HTTPFault", json!({})),
            filter("local_ratelimit", "local_ratelimit.v3.LocalRateLimit", json!({"stat_prefix": "shop"})),
            filter("router", "router.v3.Router", json!({})),
        ],
    });
    let http2 = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": format!("{TYPE}.upstreams.http.v3.HttpProtocolOptions"),
        "explicit_http_config": {"http2_protocol_options": {}},
    }});
    json!({
        "node": {"id": "envoy", "cluster": "envoy", "locality": {"zone": "a"}},
        "admin": {"address": address(free)},
        "dynamic_resources": {
            "ads_config": {
                "api_type": dialect, "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "weft"}}],
            },
            "cds_config": ads,
        },
        "static_resources": {
            "clusters": [{
                "name": "weft", "type": "STATIC", "connect_timeout": "5s",
                "typed_extension_protocol_options": http2,
                "load_assignment": {"cluster_name": "weft", "endpoints": [
                    {"lb_endpoints": [{"endpoint": {"address": address(server)}}]},
                ]},
            }],
            "listeners": [{
                "name": "shop", "address": address(free),
                "filter_chains": [{"filters": [{
                    "name": "envoy.filters.network.http_connection_manager", "typed_config": manager,
                }]}],
            }],
        },
    })
}
