//! What commands ask of a sidecar's admin port.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::failure::Failure;
use crate::flags::ADMIN;

/// Which sidecar to ask.
#[derive(Debug, Clone, Args)]
pub(crate) struct Sidecar {
    /// Admin port of the sidecar that is asked; default: 127.0.0.1:15000, or that of the service that is named
    #[arg(long, env = "WEFT_ADMIN", value_name = "IP:PORT")]
    admin: Option<SocketAddr>,
}

/// A sidecar that is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Admin(pub(crate) SocketAddr);

/// It is on this machine, or near.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const HEAD_LINES_MAX: usize = 64;
/// The largest answers list all endpoints of a service.
const BODY_BYTES_MAX: u64 = 64 << 20;

impl Sidecar {
    /// The one that is named.
    pub(crate) fn named(&self) -> Option<Admin> {
        self.admin.map(Admin)
    }

    /// The one that is named, else the one on this machine.
    pub(crate) fn beside(&self) -> Admin {
        Admin(self.admin.unwrap_or(ADMIN))
    }
}

impl Admin {
    /// A path with pairs of a query. Answers the body as it comes.
    pub(crate) async fn get(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<BufReader<TcpStream>, Failure> {
        let pairs: Vec<_> = query.iter().map(|(key, value)| format!("{key}={}", escaped(value))).collect();
        // HTTP/1.0: the body ends with the connection.
        let request = format!("GET {path}?{} HTTP/1.0\r\nhost: {}\r\n\r\n", pairs.join("&"), self.0);
        let asked = async {
            let mut stream = BufReader::new(TcpStream::connect(self.0).await?);
            stream.write_all(request.as_bytes()).await?;
            let mut status = String::new();
            stream.read_line(&mut status).await?;
            for _ in 0..HEAD_LINES_MAX {
                let mut line = String::new();
                if stream.read_line(&mut line).await? == 0 || line.trim_end().is_empty() {
                    break;
                }
            }
            Ok::<_, std::io::Error>((status, stream))
        };
        let asked =
            timeout(ANSWER_WITHIN, asked).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        let (status, stream) = asked.map_err(|error| {
            Failure::new(format!(
                "no sidecar answers at {}: {error}; name its admin port with --admin or WEFT_ADMIN",
                self.0
            ))
        })?;
        if status.split_whitespace().nth(1) == Some("200") {
            return Ok(stream);
        }
        let why = whole(stream).await.unwrap_or_default();
        Err(Failure::new(format!("the sidecar at {} refuses: {}", self.0, why.trim_end())))
    }

    /// The same, to its end.
    pub(crate) async fn get_whole(&self, path: &str, query: &[(&str, String)]) -> Result<String, Failure> {
        let stream = self.get(path, query).await?;
        let lost = |error| Failure::new(format!("the sidecar at {} broke off: {error}", self.0));
        whole(stream).await.map_err(lost)
    }
}

async fn whole(stream: BufReader<TcpStream>) -> std::io::Result<String> {
    let mut text = String::new();
    stream.take(BODY_BYTES_MAX).read_to_string(&mut text).await?;
    Ok(text)
}

/// As part of a query.
fn escaped(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~' | b'/' | b':');
    let one = |b: u8| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") };
    text.bytes().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_a_query_are_escaped() {
        assert_eq!(escaped("/a b&c=ä%"), "/a%20b%26c%3D%C3%A4%25");
        assert_eq!(escaped("5xx"), "5xx");
    }
}
