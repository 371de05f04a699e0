//! One active check of one endpoint.

use std::net::SocketAddr;
use std::time::Duration;

use http::Response;
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use weft_xds_proto::resource::cluster::{CheckBy, Protocol};
use weft_xds_proto::resource::labels::{self, ReportedLoad};

use super::security::Security;
use crate::limits::HEALTH_BODY_BYTES_MAX;
use crate::proxy_protocol::{Announced, Version};
use crate::tls::secure::Speaks;
use crate::upstream::connect::{self, Place};
use crate::upstream::once;
use crate::upstream::stream::UpstreamStream;

pub(crate) mod grpc;

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Where.
    pub addr: SocketAddr,
    /// What for.
    pub by: CheckBy,
    /// For the `Host` field: sidecars route by it.
    pub host: String,
    /// What is spoken there.
    pub protocol: Protocol,
    /// How the connection is protected.
    pub link: Link,
    /// The PROXY protocol says that it is this proxy's own.
    pub send_proxy: Option<Version>,
    /// For all of it.
    pub timeout: Duration,
}

/// How a check's connection is protected.
#[derive(Debug, Clone, Default)]
pub struct Link {
    /// As requests to the service are.
    pub security: Security,
    /// TLS is agreed on also where a connection alone is enough: for endpoints that failed there.
    pub handshake: bool,
    /// Where, again: what is equal is so for this endpoint.
    addr: Option<SocketAddr>,
}

impl Link {
    /// To an endpoint.
    pub fn new(security: Security, addr: SocketAddr, handshake: bool) -> Self {
        // Of clusters for which certificates are made there are few, and of what is wrong with these a check is to tell.
        let handshake = handshake || matches!(security, Security::Originate(_));
        Self { security, handshake, addr: Some(addr) }
    }
}

impl PartialEq for Link {
    fn eq(&self, other: &Self) -> bool {
        (self.addr, self.handshake) == (other.addr, other.handshake)
            && self.addr.is_none_or(|addr| self.security.is_same_for(&other.security, addr))
    }
}

impl Eq for Link {}

/// Why a check did not pass.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// Not well, for people.
    #[error("{0}")]
    Failed(String),
    /// It could not be done, which says nothing of what was to be checked.
    #[error("cannot check: {0}")]
    Shortage(String),
}

impl<T: Into<String>> From<T> for ProbeError {
    fn from(why: T) -> Self {
        Self::Failed(why.into())
    }
}

impl Probe {
    /// Runs it. Answers what the endpoint says of its load, if it does.
    ///
    /// # Errors
    /// Why it failed.
    pub async fn run(&self) -> Result<Option<ReportedLoad>, ProbeError> {
        let limit = self.timeout;
        tokio::time::timeout(limit, self.run_to_end())
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {limit:?}").into()))
    }

    async fn run_to_end(&self) -> Result<Option<ReportedLoad>, ProbeError> {
        let place =
            self.link.security.place(self.addr).map_err(|why| match self.link.security.is_usable() {
                true => ProbeError::Failed(why),
                false => ProbeError::Shortage(why),
            })?;
        let announced = self.send_proxy.map(|version| Announced { version, client: None });
        let place = match &self.by {
            CheckBy::Connect if !self.link.handshake => Place { secure: None, announced, ..place },
            _ => Place { announced, ..place },
        };
        let speaks = match (&self.by, self.protocol) {
            (CheckBy::Grpc(_), _) | (CheckBy::Get(_), Protocol::Http2) => Speaks::Http2,
            (CheckBy::Get(_), Protocol::Http1) => Speaks::Http1,
            (CheckBy::Connect, _) => Speaks::Raw,
        };
        // Its time is that of the whole check.
        let stream = connect::open(&place, speaks, self.timeout).await.map_err(|error| {
            let why = format!("connect: {error}");
            if error.is_shortage() { ProbeError::Shortage(why) } else { ProbeError::Failed(why) }
        })?;
        match &self.by {
            CheckBy::Connect => Ok(None),
            CheckBy::Get(path) => Ok(self.get(stream, path).await?),
            CheckBy::Grpc(service) => {
                grpc::check(stream, &self.host, service).await?;
                Ok(None)
            }
        }
    }

    async fn get(&self, stream: UpstreamStream, path: &str) -> Result<Option<ReportedLoad>, String> {
        let (answer, _connection) =
            once::get(stream, self.protocol, (&self.host, path), "weft-health").await?;
        judge(answer).await
    }
}

async fn judge(answer: Response<Incoming>) -> Result<Option<ReportedLoad>, String> {
    let (head, body) = answer.into_parts();
    if !head.status.is_success() {
        return Err(format!("status {}", head.status.as_u16()));
    }
    if body.is_end_stream() {
        return Ok(None);
    }
    // A body that is too long or breaks off is no statement on health.
    let body =
        Limited::new(body, HEALTH_BODY_BYTES_MAX).collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    judge_body(&body)
}

/// A body such as `{"status":"DOWN"}` contradicts a status of 200, and wins. `current_load` and `capacity` beside it are
/// the load.
fn judge_body(body: &[u8]) -> Result<Option<ReportedLoad>, String> {
    let Ok(json) = serde_json::from_slice::<serde_json::Value>(body) else { return Ok(None) };
    let number = |key: &str| json.get(key).and_then(serde_json::Value::as_f64).filter(|n| *n >= 0.0);
    let load = || {
        let capacity = number(labels::CAPACITY).filter(|capacity| *capacity > 0.0)?;
        Some(ReportedLoad { load: number(labels::CURRENT_LOAD)?, capacity })
    };
    match json.get("status").and_then(|s| s.as_str()) {
        Some(status) if DOWN.iter().any(|d| status.eq_ignore_ascii_case(d)) => {
            Err(format!("its body says status {status:?}"))
        }
        _ => Ok(load()),
    }
}

const DOWN: [&str; 5] = ["DOWN", "OUT_OF_SERVICE", "FAIL", "FAILING", "CRITICAL"];

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn probe(answer: &'static str, path: Option<&str>) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let probe = Probe {
            addr: listener.local_addr().unwrap(),
            by: CheckBy::path(path.map(Into::into)),
            host: "orders".into(),
            protocol: Protocol::Http1,
            link: Link::default(),
            send_proxy: None,
            timeout: Duration::from_millis(500),
        };
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut seen = vec![0; 1024];
            let n = stream.read(&mut seen).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            if answer.is_empty() {
                std::future::pending::<()>().await;
            }
            String::from_utf8_lossy(&seen[..n]).into_owned()
        });
        let result = probe.run().await.map(|_| ()).map_err(|e| e.to_string());
        if path.is_some() && !answer.is_empty() {
            let seen = server.await.unwrap().to_lowercase();
            assert!(seen.starts_with("get /health http/1.1") && seen.contains("host: orders"), "{seen}");
        } else {
            server.abort();
        }
        result
    }

    #[tokio::test]
    async fn a_2xx_passes_and_others_fail() {
        let health = Some("/health");
        probe("HTTP/1.1 204 No Content\r\n\r\n", health).await.unwrap();
        probe("HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{\"status\":\"UP\"}", health).await.unwrap();
        assert_eq!(
            probe("HTTP/1.1 503 Bad\r\ncontent-length: 0\r\n\r\n", health).await.unwrap_err(),
            "status 503"
        );
        let down = "HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\n{\"status\":\"DOWN\"}";
        assert!(probe(down, health).await.unwrap_err().contains("DOWN"));
    }

    #[tokio::test]
    async fn a_connection_is_enough_without_a_path_and_silence_fails_with_one() {
        probe("", None).await.unwrap();
        assert!(probe("", Some("/health")).await.unwrap_err().contains("within"));
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let probe = Probe {
            addr: closed,
            by: CheckBy::Connect,
            host: String::new(),
            protocol: Protocol::Http1,
            link: Link::default(),
            send_proxy: None,
            timeout: Duration::from_secs(1),
        };
        assert!(probe.run().await.unwrap_err().to_string().contains("refused"));
    }

    #[test]
    fn only_a_status_word_that_means_down_counts() {
        for fine in
            ["", "hello", "{}", "[1]", "{\"status\":3}", "{\"status\":\"ok\"}", "{\"status\":\"degraded\"}"]
        {
            assert_eq!(judge_body(fine.as_bytes()), Ok(None));
        }
        judge_body(br#"{"status":"down","checks":[]}"#).unwrap_err();
    }

    #[test]
    fn a_body_with_load_and_capacity_reports_both() {
        let load = |body: &str| judge_body(body.as_bytes()).unwrap();
        let reported = Some(ReportedLoad { load: 45.0, capacity: 100.0 });
        assert_eq!(load(r#"{"status":"UP","current_load":45,"capacity":100}"#), reported);
        for nothing in [
            r#"{"current_load":45}"#,
            r#"{"current_load":-1,"capacity":9}"#,
            r#"{"current_load":1,"capacity":0}"#,
        ] {
            assert_eq!(load(nothing), None, "{nothing}");
        }
    }
}
