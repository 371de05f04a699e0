//! etcd's JSON gateway, as `curl` uses it: HTTP/1.1 and HTTP/2 on the port that gRPC is on.

use std::net::SocketAddr;

use http::{Method, Request, StatusCode, Version};
use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use weft_control_plane::app;
use weft_xds_proto::etcdserverpb as pb;

use super::harness::{Answer, PATIENCE, TestServer, config, http_with, until};

async fn send(server: &TestServer, path: &str, body: &str, headers: &[(&str, &str)]) -> Answer {
    http_with(server.server().addrs().grpc, Method::POST, path, body, headers).await
}

/// A call that succeeds.
async fn call(server: &TestServer, path: &str, body: Value) -> Value {
    let answer = send(server, path, &body.to_string(), &[]).await;
    assert_eq!(answer.status, StatusCode::OK, "{path} {body}: {answer:?}");
    assert_eq!(answer.headers["content-type"], "application/json");
    answer.json()
}

/// A stream that is sent to and listened to.
struct Stream {
    input: Option<mpsc::Sender<Result<String, std::io::Error>>>,
    output: hyper::body::Incoming,
    read: String,
}

impl Stream {
    async fn open(addr: SocketAddr, path: &str) -> Self {
        let stream = TcpStream::connect(addr).await.expect("it listens");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(connection);
        let (input, body) = mpsc::channel(4);
        let body = axum::body::Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(body));
        let request = Request::post(path).header("host", "weft").body(body).expect("a request");
        let first = input.clone();
        first.send(Ok(" \n".to_owned())).await.expect("room");
        let asked = tokio::spawn(async move { sender.send_request(request).await });
        // The answer begins once the first message is there.
        Self { input: Some(input), output: Self::begun(asked, &first).await, read: String::new() }
    }

    async fn begun(
        asked: tokio::task::JoinHandle<hyper::Result<http::Response<hyper::body::Incoming>>>,
        first: &mpsc::Sender<Result<String, std::io::Error>>,
    ) -> hyper::body::Incoming {
        let create =
            json!({ "create_request": { "key": "YQ==", "range_end": "Yg==", "start_revision": "1" } });
        first.send(Ok(create.to_string())).await.expect("room");
        let answer = asked.await.expect("no panic").expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK);
        answer.into_body()
    }

    async fn say(&self, text: &str) {
        self.input.as_ref().expect("open").send(Ok(text.to_owned())).await.expect("the stream is open");
    }

    /// The next line; none at the end.
    async fn line(&mut self) -> Option<Value> {
        let next = async {
            loop {
                if let Some((line, rest)) = self.read.split_once('\n') {
                    let line = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
                    self.read = rest.to_owned();
                    return Some(line);
                }
                let frame = self.output.frame().await?.expect("a frame");
                if let Ok(data) = frame.into_data() {
                    self.read.push_str(std::str::from_utf8(&data).expect("text"));
                }
            }
        };
        tokio::time::timeout(PATIENCE, next).await.expect("a line in time")
    }
}

#[tokio::test]
async fn keys_are_put_read_compared_deleted_and_compacted_in_etcds_json() {
    let mut server = TestServer::start().await;
    let put = call(&server, "/v3/kv/put", json!({ "key": "YQ==", "value": "MQ==" })).await;
    assert_eq!(put["header"]["revision"], "2", "64-bit numbers are text: {put}");
    assert!(put["header"]["cluster_id"].is_string() && put["header"]["member_id"].is_string(), "{put}");
    let put = call(&server, "/v3/kv/put", json!({ "key": "YQ==", "value": "Mg==", "prevKv": true })).await;
    assert_eq!(put["prev_kv"]["value"], "MQ==", "camelCase is read, snake_case written: {put}");

    let range = call(&server, "/v3/kv/range", json!({ "key": "YQ==", "sort_order": "DESCEND" })).await;
    let kv = json!({ "key": "YQ==", "create_revision": "2", "mod_revision": "3", "version": "2", "value": "Mg==" });
    assert_eq!((&range["kvs"], &range["count"]), (&json!([kv]), &json!("1")), "{range}");
    let none = call(&server, "/v3/kv/range", json!({ "key": "eA==" })).await;
    assert_eq!((none.get("kvs"), none.get("count")), (None, None), "defaults are left out: {none}");

    let txn = json!({
        "compare": [{ "target": "VALUE", "key": "YQ==", "value": "Mg==" }],
        "success": [{ "requestPut": { "key": "Yg==", "value": "Mw==" } }, { "request_range": { "key": "YQ==" } }],
        "failure": [{ "request_delete_range": { "key": "YQ==" } }],
    });
    let done = call(&server, "/v3/kv/txn", txn).await;
    assert_eq!(done["succeeded"], true, "{done}");
    assert_eq!(done["responses"][1]["response_range"]["kvs"][0]["value"], "Mg==", "{done}");

    let deleted = call(&server, "/v3/kv/deleterange", json!({ "key": "AA==", "range_end": "AA==" })).await;
    assert_eq!(deleted["deleted"], "2", "{deleted}");
    call(&server, "/v3/kv/compaction", json!({ "revision": 3 })).await;
    let gone = send(&server, "/v3/kv/range", r#"{"key":"YQ==","revision":"2"}"#, &[]).await;
    assert_eq!(gone.status, StatusCode::BAD_REQUEST);
    let text = "etcdserver: mvcc: required revision has been compacted";
    assert_eq!(gone.json(), json!({ "error": text, "message": text, "code": 11 }));
    assert!(gone.headers.contains_key("grpc-metadata-weft-detail"), "what was asked and allowed: {gone:?}");
    server.stop().await;
}

#[tokio::test]
async fn leases_members_and_maintenance_answer() {
    let mut server = TestServer::start().await;
    let granted = call(&server, "/v3/lease/grant", json!({ "TTL": 60, "ID": "7587848943" })).await;
    assert_eq!((&granted["ID"], &granted["TTL"]), (&json!("7587848943"), &json!("60")), "{granted}");
    let lease = json!({ "ID": "7587848943" });
    // A stream: the answer is a line for each request, and ends with them.
    let kept = send(&server, "/v3/lease/keepalive", r#"{"ID":7587848943}{"ID":"1"}"#, &[]).await;
    let lines: Vec<Value> = kept.body.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines[0]["result"]["TTL"], "60", "{kept:?}");
    assert_eq!(
        (lines.len(), lines[1]["result"].get("TTL")),
        (2, None),
        "an unknown lease has TTL 0: {kept:?}"
    );
    for path in ["/v3/lease/timetolive", "/v3/kv/lease/timetolive"] {
        let told = call(&server, path, json!({ "ID": "7587848943", "keys": true })).await;
        assert_eq!(told["grantedTTL"], "60", "{told}");
    }
    assert_eq!(call(&server, "/v3/lease/leases", json!({})).await["leases"], json!([lease]));
    call(&server, "/v3/kv/lease/revoke", lease).await;

    let members = call(&server, "/v3/cluster/member/list", json!({})).await;
    assert!(members["members"][0]["clientURLs"][0].is_string(), "{members}");
    let status = call(&server, "/v3/maintenance/status", json!({})).await;
    assert_eq!(status["leader"], members["members"][0]["ID"], "{status}");
    // A body of nothing is a message without fields, as `curl -X POST` sends it.
    let alarms = send(&server, "/v3/maintenance/alarm", "", &[]).await;
    assert_eq!(alarms.status, StatusCode::OK, "{alarms:?}");
    let snapshot = send(&server, "/v3/maintenance/snapshot", "{}", &[]).await;
    let last: Value = serde_json::from_str(snapshot.body.lines().last().expect("a line")).expect("JSON");
    assert!(last["result"]["blob"].is_string(), "{last}");
    server.stop().await;
}

#[tokio::test]
async fn a_watch_is_a_line_an_answer_and_goes_on_after_the_requests_have_ended() {
    let mut server = TestServer::start().await;
    call(&server, "/v3/kv/put", json!({ "key": "YQ==", "value": "MQ==" })).await;
    let mut watch = Stream::open(server.server().addrs().grpc, "/v3/watch").await;
    let created = watch.line().await.expect("goes on");
    assert_eq!(created["result"]["created"], true, "{created}");
    let event = watch.line().await.expect("goes on");
    assert_eq!(event["result"]["events"][0]["kv"]["value"], "MQ==", "{event}");
    watch.say(r#"{"progress_request":{}}"#).await;
    let progress = watch.line().await.expect("goes on");
    assert_eq!(progress["result"]["watch_id"], "-1", "{progress}");
    watch.input = None;
    call(&server, "/v3/kv/deleterange", json!({ "key": "YQ==" })).await;
    let event = watch.line().await.expect("goes on");
    assert_eq!(event["result"]["events"][0]["type"], "DELETE", "{event}");
    server.stop().await;
    // How it ends is a line too.
    let ended = watch.line().await.expect("is told");
    assert_eq!(
        (&ended["error"]["http_code"], &ended["error"]["grpc_code"]),
        (&json!(503), &json!(14)),
        "{ended}"
    );
    assert_eq!(watch.line().await, None);
}

#[tokio::test]
async fn a_message_within_a_stream_that_is_none_ends_it_with_the_reason() {
    let mut server = TestServer::start().await;
    let mut watch = Stream::open(server.server().addrs().grpc, "/v3/watch").await;
    assert_eq!(watch.line().await.expect("goes on")["result"]["created"], true);
    watch.say(r#"{"create_reqest":{}}"#).await;
    let ended = watch.line().await.expect("is told");
    assert!(ended["error"]["message"].as_str().is_some_and(|text| text.contains("create_reqest")), "{ended}");
    assert_eq!(watch.line().await, None);
    let empty = send(&server, "/v3/watch", " ", &[]).await;
    assert!(empty.status == StatusCode::BAD_REQUEST && empty.body.contains("the body is empty"), "{empty:?}");
    server.stop().await;
}

/// Path, body, headers; HTTP status, gRPC code, and what the text says.
type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], u16, i64, &'a str);

#[tokio::test]
async fn bad_requests_have_the_gateways_statuses_and_change_nothing() {
    let mut server = TestServer::start().await;
    let large = format!(r#"{{"key":"YQ==","value":"{}"}}"#, "A".repeat(2 * 1024 * 1024 + 64 * 1024));
    let too_large = format!(r#"{{"key":"YQ==","value":"{}"}}"#, "A".repeat(3 * 1024 * 1024));
    let nested = r#"{"success":[{"request_txn":"#.repeat(5000);
    let cases: [Case<'_>; 17] = [
        ("/v3/kv/put", r#"{"value":"MQ=="}"#, &[], 400, 3, "etcdserver: key is not provided"),
        (
            "/v3/kv/put",
            r#"{"key":"YQ==","lease":"99"}"#,
            &[],
            404,
            5,
            "etcdserver: requested lease not found",
        ),
        ("/v3/kv/put", r#"{"key":"d2VmdC94"}"#, &[], 403, 7, "written by Weft's own APIs only"),
        ("/v3/kv/put", r#"{"key":"YQ==","valeu":"MQ=="}"#, &[], 400, 3, "valeu"),
        ("/v3/kv/put", r#"{"key":"not base64!"}"#, &[], 400, 3, "line 1 column"),
        ("/v3/kv/put", r#"{"key":"YQ=="}{}"#, &[], 400, 3, "trailing characters"),
        ("/v3/kv/put", r#"{"key":"YQ=="#, &[], 400, 3, "EOF"),
        ("/v3/kv/put", "key=YQ==", &[], 400, 3, "PutRequest"),
        ("/v3/kv/put", &large, &[], 400, 3, "etcdserver: request is too large"),
        ("/v3/kv/put", &too_large, &[], 413, 8, "exceeds the limit of 3145728 bytes"),
        ("/v3/kv/put", "{}", &[("content-encoding", "gzip")], 415, 3, "send the JSON as it is"),
        ("/v3/kv/txn", &nested, &[], 400, 3, "recursion limit"),
        ("/v3/kv/range", r#"{"key":"YQ==","sort_order":9}"#, &[], 400, 3, "invalid sort option"),
        ("/v3/kv/nothing", "{}", &[], 404, 5, "there is no /v3/kv/nothing"),
        ("/v3/lock/lock", "{}", &[], 501, 12, "use `weft lock`"),
        ("/", "", &[], 404, 5, "this port has gRPC, /v3/"),
        ("/etcdserverpb.KV/Put", "", &[("content-type", "application/grpc")], 505, 12, "it needs HTTP/2"),
    ];
    for (path, body, headers, status, code, text) in cases {
        let answer = send(&server, path, body, headers).await;
        let shown = &body[..body.len().min(80)];
        assert_eq!(answer.status.as_u16(), status, "{path} {shown}: {answer:?}");
        let json = answer.json();
        assert_eq!(
            (&json["code"], &json["error"]),
            (&json!(code), &json["message"]),
            "{path} {shown}: {json}"
        );
        assert!(json["message"].as_str().is_some_and(|said| said.contains(text)), "{path} {shown}: {json}");
    }
    let addr = server.server().addrs().grpc;
    for (method, path, allow) in [(Method::GET, "/v3/kv/range", "POST"), (Method::POST, "/health", "GET")] {
        let answer = http_with(addr, method, path, "", &[]).await;
        assert_eq!(
            (answer.status, &answer.headers["allow"]),
            (StatusCode::METHOD_NOT_ALLOWED, &allow.parse().expect("a value"))
        );
        assert!(answer.json()["message"].as_str().is_some_and(|said| said.contains(allow)), "{answer:?}");
    }
    let all = call(&server, "/v3/kv/range", json!({ "key": "AA==", "range_end": "AA==" })).await;
    assert_eq!(all["header"]["revision"], "1", "nothing was written: {all}");
    let metrics = server.get("/metrics").await.body;
    assert!(metrics.contains(r#"weft_http_requests_total{route="/v3/kv/put",status="400"} 7"#), "{metrics}");
    assert!(metrics.contains(r#"weft_http_requests_total{route="unknown",status="404"} 2"#), "{metrics}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_auth_on_the_authorization_header_carries_the_token() {
    let mut server = TestServer::start().await;
    for (path, body) in [
        ("/v3/auth/user/add", json!({ "name": "root", "password": "rootpw" })),
        ("/v3/auth/user/grant", json!({ "user": "root", "role": "root" })),
        ("/v3/auth/user/add", json!({ "name": "app", "password": "apppw" })),
        ("/v3/auth/role/add", json!({ "name": "app" })),
        (
            "/v3/auth/role/grant",
            json!({ "name": "app", "perm": { "permType": "READWRITE", "key": "YQ==", "range_end": "Yg==" } }),
        ),
        ("/v3/auth/user/grant", json!({ "user": "app", "role": "app" })),
        ("/v3/auth/enable", json!({})),
    ] {
        call(&server, path, body).await;
    }
    let wrong = send(&server, "/v3/auth/authenticate", r#"{"name":"app","password":"x"}"#, &[]).await;
    assert_eq!(wrong.status, StatusCode::BAD_REQUEST, "{wrong:?}");
    let login = call(&server, "/v3/auth/authenticate", json!({ "name": "app", "password": "apppw" })).await;
    let token = login["token"].as_str().expect("a token");
    let put = r#"{"key":"YQ==","value":"MQ=="}"#;
    let own = send(&server, "/v3/kv/put", put, &[("authorization", token)]).await;
    assert_eq!(own.status, StatusCode::OK, "{own:?}");
    let bearer = format!("Bearer {token}");
    let own = send(&server, "/v3/kv/put", put, &[("authorization", &bearer)]).await;
    assert_eq!(own.status, StatusCode::OK, "{own:?}");
    let foreign = send(&server, "/v3/kv/put", r#"{"key":"Yw=="}"#, &[("authorization", token)]).await;
    assert_eq!((foreign.status, &foreign.json()["code"]), (StatusCode::FORBIDDEN, &json!(7)), "{foreign:?}");
    let nobody = send(&server, "/v3/kv/put", put, &[]).await;
    assert_eq!(nobody.json()["message"], "etcdserver: user name is empty", "{nobody:?}");
    let invalid = send(&server, "/v3/kv/put", put, &[("authorization", "x.y")]).await;
    assert_eq!(
        (invalid.status, &invalid.json()["code"]),
        (StatusCode::UNAUTHORIZED, &json!(16)),
        "{invalid:?}"
    );
    let watch =
        send(&server, "/v3/watch", r#"{"create_request":{"key":"Yw=="}}"#, &[("authorization", token)]).await;
    assert!(watch.body.contains("permission denied"), "{watch:?}");
    // How a server does is told to anybody, as in etcd.
    let health = http_with(server.server().addrs().grpc, Method::GET, "/health", "", &[]).await;
    assert_eq!(health.json(), json!({ "health": "true", "reason": "" }));
    server.stop().await;
}

#[tokio::test]
async fn over_http2_json_and_grpc_share_one_connection() {
    let mut server = TestServer::start().await;
    let stream = TcpStream::connect(server.server().addrs().grpc).await.expect("it listens");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("HTTP/2");
    tokio::spawn(connection);
    let post = |path: &str, kind: &str, body: Vec<u8>| {
        Request::post(format!("http://weft{path}"))
            .version(Version::HTTP_2)
            .header("content-type", kind)
            .body(axum::body::Body::from(body))
            .expect("a request")
    };
    let put =
        post("/v3/kv/put", "application/x-www-form-urlencoded", br#"{"key":"YQ==","value":"MQ=="}"#.to_vec());
    let answer = sender.send_request(put).await.expect("an answer");
    assert_eq!((answer.status(), answer.version()), (StatusCode::OK, Version::HTTP_2));
    let range = prost::Message::encode_to_vec(&pb::RangeRequest { key: "a".into(), ..Default::default() });
    let framed = [&[0, 0, 0, 0, range.len() as u8][..], &range].concat();
    let answer = sender.send_request(post("/etcdserverpb.KV/Range", "application/grpc", framed)).await;
    let mut body = answer.expect("an answer").into_body();
    let frame = body.frame().await.expect("a frame").expect("whole").into_data().expect("data");
    let range: pb::RangeResponse = prost::Message::decode(&frame[5..]).expect("decodes");
    assert_eq!((range.count, &range.kvs[0].value[..]), (1, &b"1"[..]));
    server.stop().await;
}

#[tokio::test]
async fn health_says_why_a_server_cannot_serve_and_version_what_is_spoken() {
    let mut server = TestServer::start().await;
    let get = async |addr, path: &str| http_with(addr, Method::GET, path, "", &[]).await;
    let addr = server.server().addrs().grpc;
    let version = get(addr, "/version").await;
    assert_eq!(version.json(), json!({ "etcdserver": "3.6.0", "etcdcluster": "3.6.0" }));
    let metrics = get(addr, "/metrics").await;
    assert!(
        metrics.body.contains("\nprocess_resident_memory_bytes "),
        "which etcdctl reads here: {metrics:?}"
    );
    let healthy = get(addr, "/health").await;
    assert_eq!((healthy.status, healthy.json()), (StatusCode::OK, json!({ "health": "true", "reason": "" })));

    let dir = tempfile::tempdir().expect("a folder");
    let mut config = config(dir.path());
    config.join = vec!["127.0.0.1:9".to_owned()];
    let alone = app::start(config).await.expect("it starts");
    let addr = alone.addrs().grpc;
    for path in ["/health", "/health?serializable=true"] {
        let answer = get(addr, path).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
        let said = answer.json();
        assert_eq!(said["health"], "false");
        assert!(said["reason"].as_str().is_some_and(|why| why.contains("waiting to be taken in")), "{said}");
    }
    let refused = http_with(addr, Method::POST, "/v3/kv/range", r#"{"key":"YQ=="}"#, &[]).await;
    assert_eq!((refused.status, &refused.json()["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!(14)));
    alone.shutdown().await;

    // A server whose majority is gone still has what it has.
    let mut second = TestServer::named("s2", &[&server]).await;
    let addr = second.server().addrs().grpc;
    server.stop().await;
    until("the loss is noticed", async || {
        let health = get(addr, "/health").await;
        if health.status == StatusCode::SERVICE_UNAVAILABLE { Ok(()) } else { Err(format!("{health:?}")) }
    })
    .await;
    assert_eq!(get(addr, "/health?serializable=true").await.status, StatusCode::OK);
    second.stop().await;
}
