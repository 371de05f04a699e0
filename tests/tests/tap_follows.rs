//! `weft tap SERVICE` while instances come, restart and go.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use weft_tests::fake_upstream::FakeUpstream;
use weft_tests::http_client;
use weft_tests::mesh::Mesh;
use weft_tests::process::{WeftProcess, weft_bin};
use weft_tests::wait::until;

const SOON: Duration = Duration::from_secs(30);

/// A running `weft tap`, with all that it has said.
struct Tap {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
}

impl Tap {
    fn start(args: &[&str]) -> Self {
        let mut command = Command::new(weft_bin());
        command.arg("tap").args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().expect("the binary under test can be started");
        let said = Arc::default();
        keep(child.stdout.take().expect("piped"), &said);
        keep(child.stderr.take().expect("piped"), &said);
        Self { child, said }
    }

    /// Waits for a line with all of these parts.
    async fn says(&self, parts: &[&str]) {
        self.says_meanwhile(parts, async || Ok(())).await;
    }

    /// The same, while something is done again and again.
    async fn says_meanwhile(&self, parts: &[&str], act: impl AsyncFn() -> Result<(), String>) {
        until(&format!("{parts:?} is said"), SOON, async || {
            act().await?;
            let said = self.said.lock().expect("no holder panics");
            let found = said.iter().any(|line| parts.iter().all(|part| line.contains(part)));
            if found { Ok(()) } else { Err(said.join("\n")) }
        })
        .await;
    }

    /// From here on, as if nothing had been said before.
    fn forget(&self) {
        self.said.lock().expect("no holder panics").clear();
    }
}

fn keep(stream: impl AsyncRead + Unpin + Send + 'static, said: &Arc<Mutex<Vec<String>>>) {
    let said = said.clone();
    tokio::spawn(async move {
        let mut lines = BufReader::new(stream).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            said.lock().expect("no holder panics").push(line);
        }
    });
}

/// A request to an instance itself.
async fn call(sidecar: &WeftProcess, path: &str) {
    let answer = http_client::get(sidecar.addr("inbound"), "orders", path).await.expect("it answers");
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_are_seen_that_come_later_restart_and_are_replaced() {
    let mesh = Mesh::with_servers(1).await;
    let server = &mesh.servers[0];
    let join = [server.gossip()];
    let app = FakeUpstream::start("app").await;
    let service = format!("orders={}", app.addr());
    let flags = ["--service", service.as_str()];

    let mut tap = Tap::start(&["orders", "--endpoints", &server.grpc().to_string()]);
    tap.says(&["service \"orders\" is unknown", "waiting for an instance of orders"]).await;
    let one = mesh.proxy("one", &join, &flags).await;
    tap.says(&["seen from now on: one-"]).await;
    call(&one, "/first").await;
    tap.says(&["one-", "inbound GET orders /first → 200"]).await;

    let other_app = FakeUpstream::start("other").await;
    let other = format!("orders={}", other_app.addr());
    let two = mesh.proxy("two", &join, &["--service", &other]).await;
    tap.says(&["seen from now on: two-"]).await;
    call(&two, "/second").await;
    tap.says(&["two-", "inbound GET orders /second → 200"]).await;

    // A crash: it comes back at another port.
    tap.forget();
    one.kill().await;
    tap.says(&["not seen: one-", "broke off"]).await;
    let one = mesh.proxy("one", &join, &flags).await;
    tap.says(&["seen from now on: one-"]).await;
    call(&one, "/third").await;
    tap.says(&["one-", "inbound GET orders /third → 200"]).await;

    // A new version in its place, at the same port.
    tap.forget();
    let new = mesh.proxy("one", &join, &[&flags[..], &["--take-over"]].concat()).await;
    assert_eq!(new.addr("admin"), one.addr("admin"));
    tap.says(&["seen from now on: one-"]).await;
    call(&new, "/fourth").await;
    tap.says(&["one-", "inbound GET orders /fourth → 200"]).await;

    assert_eq!(two.stop().await, 0);
    tap.says(&["gone: two-"]).await;

    tap.child.start_kill().expect("it runs");
    tap.child.wait().await.expect("it ends");
    drop(one);
}
