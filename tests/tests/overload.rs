//! A sidecar that gets no time to work refuses a part of it, and takes everything again once it has time.

use std::time::Duration;

use http::StatusCode;
use rustix::process::Signal;
use weft_tests::fake_upstream::FakeUpstream;
use weft_tests::http_client;
use weft_tests::process::WeftProcess;
use weft_tests::wait::until;

const SOON: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_comes_too_late_to_its_work_refuses_some_until_it_is_in_time_again() {
    let upstream = FakeUpstream::start("a").await;
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("edge.yaml");
    let text = format!(
        "name: edge\nadmin: 127.0.0.1:0\noutbound: 127.0.0.1:0\nworkers: 1\nmax-queue-time: 40ms\n\
         clusters: [{{name: shop, endpoints: ['{}']}}]\n",
        upstream.addr()
    );
    std::fs::write(&file, text).expect("the folder is ours");
    let args = ["proxy", "--config", &file.display().to_string()].map(str::to_owned);
    let proxy = WeftProcess::start("edge", &args).await;
    let outbound = proxy.addr("outbound");
    let in_time = http_client::get(outbound, "shop", "/x").await.expect("it is answered");
    assert_eq!(in_time.status, StatusCode::OK, "{in_time:?}");

    // As under a CPU quota that is far too small: whatever is due every 20 ms comes 100 ms late. A client looks on.
    let starved = async {
        loop {
            proxy.signal(Signal::STOP);
            tokio::time::sleep(Duration::from_millis(120)).await;
            proxy.signal(Signal::CONT);
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    };
    let refused = async {
        until("a request is refused", SOON, || async {
            let answer = http_client::get(outbound, "shop", "/x").await?;
            let why = answer.headers.get("x-weft-error").cloned();
            match (answer.status, why.as_ref().and_then(|why| why.to_str().ok())) {
                (StatusCode::SERVICE_UNAVAILABLE, Some("overloaded")) => {
                    assert_eq!(answer.headers["retry-after"], "1");
                    Ok(())
                }
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    };
    tokio::select! {
        () = refused => {}
        () = starved => unreachable!("it goes on until it is dropped"),
    }
    proxy.signal(Signal::CONT);
    until("all are taken again", SOON, || async {
        for _ in 0..50 {
            let answer = http_client::get(outbound, "shop", "/x").await?;
            if answer.status != StatusCode::OK {
                return Err(format!("{answer:?}"));
            }
        }
        Ok(())
    })
    .await;
    let metrics =
        http_client::get(proxy.addr("admin"), "admin", "/metrics").await.expect("it is answered").body;
    assert!(metrics.contains("flag=\"overloaded\"}"), "{metrics}");
}
