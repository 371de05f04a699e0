//! What the access log tells of requests, each cause by its word: in the log, in `x-weft-error` and as a metric.

use std::path::Path;
use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_proxy::telemetry::access_log::{AccessLogConfig, Format, Target};

use crate::support::*;

async fn logged(yaml: &str, file: &Path) -> Proxy {
    let mut config = config(yaml);
    config.access_log = Some(AccessLogConfig { target: Target::File(file.into()), format: Format::Json });
    start(config).await
}

/// The lines, once there are so many.
async fn lines(file: &Path, count: usize) -> Vec<serde_json::Value> {
    for _ in 0..500 {
        let text = std::fs::read_to_string(file).unwrap();
        let lines: Vec<_> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        if lines.len() >= count {
            return lines;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{count} lines expected in {}", std::fs::read_to_string(file).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_is_a_line_that_names_service_route_endpoint_and_cause() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("access.log");
    let upstream = Upstream::start("a").await;
    let closed = closed_port();
    let yaml = format!(
        "clusters:\n  - {{name: orders, endpoints: ['{}']}}\n  - {{name: down, endpoints: ['{closed}']}}\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: web}}\nspec:\n  parentRefs: [{{kind: Service, group: '', name: shop}}]\n  rules:\n    - {{matches: [{{path: {{value: /in}}}}], backendRefs: [{{name: orders}}]}}\n",
        upstream.addr
    );
    let proxy = logged(&yaml, &file).await;
    assert_eq!(get(proxy.outbound, "orders", "/one?x=y").await.status, StatusCode::OK);
    assert_eq!(get(proxy.outbound, "shop", "/in").await.status, StatusCode::OK);
    let no_route = get(proxy.outbound, "shop", "/out").await;
    let down = get(proxy.outbound, "down", "/").await;
    // Of two workers, each writes its own when it is done with the request.
    let lines = lines(&file, 4).await;
    let line = |path: &str| lines.iter().find(|line| line["path"] == path).expect("it has a line");

    let one = line("/one?x=y");
    assert_eq!(
        (&one["method"], &one["path"], &one["host"]),
        (&"GET".into(), &"/one?x=y".into(), &"orders".into())
    );
    assert_eq!((&one["status"], &one["service"], &one["route"]), (&200.into(), &"orders".into(), &"".into()));
    assert_eq!(one["endpoint"], upstream.addr.to_string());
    assert_eq!(
        (&one["tries"], &one["flags"], &one["direction"]),
        (&1.into(), &serde_json::json!([]), &"outbound".into())
    );
    assert!(
        one["bytes"].as_u64() > Some(0) && one["duration_ms"].as_f64() >= one["head_ms"].as_f64(),
        "{one}"
    );
    let routed = line("/in");
    assert!(routed["route"].as_str().unwrap().contains("web") && routed["service"] == "orders", "{routed}");

    for (line, reply, cause) in [(line("/out"), &no_route, "no-route"), (line("/"), &down, "connect-failed")]
    {
        assert_eq!(
            (&line["flags"], &line["status"]),
            (&serde_json::json!([cause]), &reply.status.as_u16().into())
        );
        assert_eq!(reply.header("x-weft-error"), cause);
    }
    assert_eq!(line("/")["endpoint"], closed.to_string());
    let metrics = get(proxy.admin, "admin", "/metrics").await.body;
    for line in [
        "weft_proxy_flagged_requests_total{direction=\"outbound\",service=\"\",flag=\"no-route\"} 1",
        "weft_proxy_flagged_requests_total{direction=\"outbound\",service=\"down\",flag=\"connect-failed\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} not in {metrics}");
    }
    proxy.running.drain_and_shutdown().await;
    assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 4, "nothing is lost or told twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_gone_before_the_end_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("access.log");
    let (addr, _task) = raw_upstream(|mut stream, _| async move {
        let head = read_head(&mut stream).await.unwrap_or_default();
        if head.starts_with("GET /never") {
            let _ = stream.read_u8().await;
        } else if head.starts_with("GET /half") {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await.unwrap();
        } else {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await.unwrap();
            let _ = stream.read_u8().await;
        }
    })
    .await;
    let proxy = logged(&orders(&[addr], ""), &file).await;
    let ask = async |path: &str| {
        let mut stream = TcpStream::connect(proxy.outbound).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: orders\r\n\r\n").as_bytes()).await.unwrap();
        stream
    };
    let mut half = ask("/half").await;
    let mut read = Vec::new();
    let _ = half.read_to_end(&mut read).await;
    let told = lines(&file, 1).await;
    assert_eq!(
        (&told[0]["flags"], &told[0]["bytes"]),
        (&serde_json::json!(["upstream-reset"]), &4.into()),
        "{told:?}"
    );

    let mut slow = ask("/slow").await;
    let mut seen = String::new();
    while !seen.ends_with("half") {
        seen.push(char::from(slow.read_u8().await.unwrap()));
    }
    drop(slow);
    let told = lines(&file, 2).await;
    assert_eq!(
        (&told[1]["flags"], &told[1]["status"]),
        (&serde_json::json!(["client-gone"]), &200.into()),
        "{told:?}"
    );

    let never = ask("/never").await;
    while !get(proxy.admin, "admin", "/clusters").await.body.contains("active 1") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(never);
    let told = lines(&file, 3).await;
    assert_eq!(told[2]["flags"], serde_json::json!(["client-gone"]), "{told:?}");
    assert!(told[2]["status"].is_null(), "{told:?}");
    let metrics = get(proxy.admin, "admin", "/metrics").await.body;
    let counted = "weft_proxy_flagged_requests_total{direction=\"outbound\",service=\"orders\",flag=\"upstream-reset\"} 1";
    assert!(metrics.contains(counted), "{metrics}");
}

/// Each word is in the users' table, and no other.
#[test]
fn the_documentation_lists_every_flag() {
    let docs = include_str!("../../../docs/observe.md");
    for flag in weft_proxy::telemetry::flag::Flag::ALL {
        assert!(docs.contains(&format!("| `{}` |", flag.word())), "{flag:?} is not in docs/observe.md");
    }
    for field in weft_proxy::telemetry::access_log::format::Field::ALL {
        assert!(docs.contains(&format!("`{}`", field.word())), "{field:?} is not in docs/observe.md");
    }
}
