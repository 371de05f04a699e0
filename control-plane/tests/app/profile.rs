//! `GET /profile`: off unless asked for, bounded, for administrators.

use http::{Method, StatusCode};
use weft_control_plane::app::{self, RunningServer};
use weft_control_plane::profile::Profiler;

use super::harness::{TestServer, config, http_with};

async fn profiled(dir: &std::path::Path) -> RunningServer {
    let mut config = config(dir);
    config.profile = true;
    let server = app::start(config).await.expect("it starts");
    server.ready().await;
    server
}

#[tokio::test]
async fn it_is_off_unless_the_server_was_told() {
    let mut server = TestServer::start().await;
    let answer = server.get("/profile").await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert!(answer.body.contains("start the server with --profile"), "{answer:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_process_has_folded_stacks_or_it_is_said_why_there_are_none() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = profiled(dir.path()).await;
    let get = async |query: &str| {
        http_with(server.addrs().http, Method::GET, &format!("/profile{query}"), "", &[]).await
    };
    for query in ["?seconds=0", "?seconds=31", "?frequency=9"] {
        let answer = get(query).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{answer:?}");
    }
    let busy = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let spins = busy.clone();
    let spinning = std::thread::Builder::new().name("spinning".to_owned()).spawn(move || {
        while spins.load(std::sync::atomic::Ordering::Relaxed) {
            std::hint::spin_loop();
        }
    });
    let (first, second) = tokio::join!(get("?seconds=2"), get("?seconds=2"));
    busy.store(false, std::sync::atomic::Ordering::Relaxed);
    spinning.expect("starts").join().expect("ends");
    let answers = [first, second];
    let installed = std::process::Command::new("perf").arg("--version").output().is_ok();
    if installed {
        let taken =
            answers.iter().find(|answer| answer.status == StatusCode::OK).expect("one of them is taken");
        let line = taken.body.lines().find(|line| line.starts_with("spinning")).expect("the thread is seen");
        assert!(line.rsplit(' ').next().is_some_and(|n| n.parse::<u64>().is_ok()), "{line}");
        let refused = answers.iter().find(|answer| answer.status != StatusCode::OK).expect("one at a time");
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS, "{refused:?}");
    } else {
        assert!(answers.iter().all(|answer| answer.status == StatusCode::NOT_IMPLEMENTED), "{answers:?}");
        assert!(answers[0].body.contains("install it"), "{answers:?}");
    }
    server.shutdown().await;
}

/// As a client that goes away does.
#[tokio::test]
async fn a_profile_that_nobody_waits_for_gives_up_its_turn() {
    let profiler = Profiler::default();
    let taken = tokio::time::timeout(std::time::Duration::from_millis(50), profiler.take(30)).await;
    if taken.is_err() {
        let again = tokio::time::timeout(std::time::Duration::from_millis(50), profiler.take(30)).await;
        assert!(again.is_err(), "it is its turn, and it would go on: {again:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_auth_on_only_administrators_get_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = profiled(dir.path()).await;
    let (grpc, http) = (server.addrs().grpc, server.addrs().http);
    let call = async |path: &str, body: &str| {
        let answer = http_with(grpc, Method::POST, path, body, &[]).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        answer.json()
    };
    call("/v3/auth/user/add", r#"{"name":"root","password":"rootpw"}"#).await;
    call("/v3/auth/user/grant", r#"{"user":"root","role":"root"}"#).await;
    call("/v3/auth/user/add", r#"{"name":"app","password":"apppw"}"#).await;
    call("/v3/auth/enable", "{}").await;
    let login = call("/v3/auth/authenticate", r#"{"name":"app","password":"apppw"}"#).await;
    let token = format!("Bearer {}", login["token"].as_str().expect("a token"));
    let user = http_with(http, Method::GET, "/profile?seconds=1", "", &[("authorization", &token)]).await;
    assert_eq!(user.status, StatusCode::FORBIDDEN, "{user:?}");
    let nobody = http_with(http, Method::GET, "/profile?seconds=1", "", &[]).await;
    assert!(nobody.status.is_client_error(), "{nobody:?}");
    server.shutdown().await;
}
