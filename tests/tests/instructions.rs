//! What a request costs a sidecar in instructions, which no noise of the machine changes: so that a costly change of the
//! request path is noticed when it is made. Seconds are measured in `bench/proxy`.

use std::path::Path;

use weft_tests::fake_upstream::FakeUpstream;
use weft_tests::process::{WeftProcess, run_program};

/// Of a keep-alive HTTP/1.1 request and its answer, with the default policies, in an unoptimised build (rustc 1.95): several
/// times what they are in a release, and in proportion to it. A change that is worth more says so in its commit and moves
/// the bounds; so does one that makes it much cheaper.
const ALLOWED: std::ops::RangeInclusive<u64> = 186_000..=228_000;

const FEW: u64 = 200;
const MANY: u64 = 1_200;

#[tokio::test]
async fn a_request_costs_a_sidecar_about_as_many_instructions_as_it_did() {
    let upstream = FakeUpstream::start("upstream").await;
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("weft.yaml");
    let text = format!(
        "name: counted\nworkers: 1\nadmin: 127.0.0.1:0\noutbound: 127.0.0.1:0\n\
         clusters:\n  - {{name: upstream, endpoints: ['{}']}}\n",
        upstream.addr()
    );
    std::fs::write(&config, text).expect("written");
    let out = format!("--callgrind-out-file={}", folder.path().join("out").display());
    let under = ["valgrind", "--quiet", "--tool=callgrind", &out].map(str::to_owned);
    let args = ["proxy", "--config", &config.display().to_string()].map(str::to_owned);
    let sidecar = WeftProcess::start_under("counted", &under, &args).await;
    let at = sidecar.addr("outbound");
    let pid = sidecar.pid().to_string();

    ask(at, FEW).await; // The first ones open connections and make what is made once.
    let mut counted = Vec::new();
    for count in [FEW, MANY] {
        control(&["--zero", &pid]).await;
        ask(at, count).await;
        control(&["--dump", &pid]).await;
        counted.push(total(&folder.path().join(format!("out.{}", counted.len() + 1))));
    }
    let each = (counted[1] - counted[0]) / (MANY - FEW);
    println!("{each} instructions a request");
    assert!(ALLOWED.contains(&each), "{each} instructions a request, {ALLOWED:?} are expected");
}

/// Requests over one connection, which curl keeps.
async fn ask(at: std::net::SocketAddr, count: u64) {
    let url = format!("http://{at}/[1-{count}]");
    let args = ["-s", "-o", "/dev/null", "-w", "%{http_code}\n", "-H", "Host: upstream", &url];
    let answers = run_program("curl", &args, &[], "").await.stdout;
    assert_eq!(answers.lines().filter(|code| *code == "200").count() as u64, count, "{answers}");
}

async fn control(args: &[&str]) {
    let done = run_program("callgrind_control", args, &[], "").await;
    assert_eq!(done.code, 0, "{done:?}");
}

/// What a dump says was counted since the last one.
fn total(dump: &Path) -> u64 {
    let text = std::fs::read_to_string(dump).unwrap_or_else(|error| panic!("{}: {error}", dump.display()));
    let line = text.lines().find_map(|line| line.strip_prefix("totals: ")).expect("a dump has totals");
    line.trim().parse().expect("a number")
}
