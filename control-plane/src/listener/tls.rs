//! TLS on the ports of clients.

use std::{io, path::PathBuf, pin::Pin, sync::Arc, task, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use weft_core::{
    net::GivenStream,
    reload::Reloading,
    tls::{self, ClientCerts, Identity, TlsError},
};

use super::{HEAD_MAX, PREFACE};

/// The files, from `--tls-cert`, `--tls-key` and `--tls-client-ca`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// What clients are shown.
    pub identity: Identity,
    /// Signs the certificates that clients must show.
    pub client_ca: Option<PathBuf>,
}

/// TLS of one port, made anew when its files change.
#[derive(Debug)]
pub struct PortTls {
    config: Reloading<Arc<rustls::ServerConfig>>,
}

/// Says of a request that its client showed a certificate of the CA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShownCertificate(pub bool);

/// First byte of a TLS handshake (RFC 8446 §5.1).
const TLS_HANDSHAKE: u8 = 22;

const PLAINTEXT: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n\
    this port speaks TLS: use https:// and, if its CA is not one of the system's, name it (--cacert)\n";

/// How long what a refused client still sends is read, so that the answer arrives.
const DRAIN_MAX: Duration = Duration::from_secs(1);
const DRAINED_BYTES_MAX: u64 = 64 * 1024;

impl PortTls {
    /// Reads the files.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn load(identity: Identity, clients: ClientCerts) -> Result<Self, TlsError> {
        let mut files = vec![identity.cert.clone(), identity.key.clone()];
        if let ClientCerts::Asked(ca) | ClientCerts::Required(ca) = &clients {
            files.push(ca.clone());
        }
        let load = move || tls::server_config_asking(&identity, &clients, &[b"h2", b"http/1.1"]);
        Ok(Self { config: Reloading::new("TLS of the clients' ports", files, load)? })
    }

    /// The connection inside TLS once its client has begun to speak, which it has to do soon.
    pub(super) async fn accept(&self, mut stream: TcpStream) -> io::Result<(GivenStream, ShownCertificate)> {
        let accepted = timeout(HEAD_MAX, async {
            let mut first = [0];
            if stream.peek(&mut first).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if first[0] != TLS_HANDSHAKE {
                refuse(&mut stream).await;
                return Err(io::Error::other("a client speaks no TLS on a port that does"));
            }
            let accepted = TlsAcceptor::from(self.config.current()).accept(stream).into_fallible().await;
            let mut stream = match accepted {
                Ok(stream) => stream,
                Err((error, mut stream)) => {
                    // The alert that says why is on its way.
                    finish(&mut stream).await;
                    return Err(tls::explain(&error).map_or(error, io::Error::other));
                }
            };
            let shown = stream.get_ref().1.peer_certificates().is_some_and(|chain| !chain.is_empty());
            let said = opening(&mut stream).await?;
            let stream: GivenStream = Box::new(Rewound { said, taken: 0, stream });
            Ok((stream, ShownCertificate(shown)))
        });
        accepted.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

async fn refuse(stream: &mut TcpStream) {
    if stream.write_all(PLAINTEXT).await.is_ok() {
        finish(stream).await;
    }
}

/// Ends a connection so that what was said last arrives: unread bytes would reset it.
async fn finish(stream: &mut TcpStream) {
    let finished = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(DRAINED_BYTES_MAX), &mut tokio::io::sink()).await
    };
    let _ = timeout(DRAIN_MAX, finished).await;
}

/// All of HTTP/2's opening words, or what else the client begins with: hyper would wait for them for ever.
async fn opening<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Vec<u8>> {
    let mut said = Vec::with_capacity(PREFACE.len());
    while said.len() < PREFACE.len() && PREFACE.starts_with(&said) {
        let left = (PREFACE.len() - said.len()) as u64;
        if (&mut *stream).take(left).read_buf(&mut said).await? == 0 {
            break;
        }
    }
    Ok(said)
}

/// A stream with what was read of it already before the rest.
struct Rewound<S> {
    said: Vec<u8>,
    taken: usize,
    stream: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> task::Poll<io::Result<()>> {
        let left = &self.said[self.taken..];
        if left.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, into);
        }
        let length = left.len().min(into.remaining());
        into.put_slice(&left[..length]);
        self.taken += length;
        task::Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        bytes: &[u8],
    ) -> task::Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> task::Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> task::Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> task::Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_read_to_look_at_is_read_again() {
        for said in
            [[PREFACE, b"frames"].concat(), b"GET / HTTP/1.1\r\n\r\n".to_vec(), b"PRI".to_vec(), Vec::new()]
        {
            let (mut client, mut stream) = tokio::io::duplex(256);
            client.write_all(&said).await.expect("written");
            client.shutdown().await.expect("ends");
            let opening = opening(&mut stream).await.expect("read");
            assert!(opening.len() <= PREFACE.len());
            let mut again = Vec::new();
            let mut rewound = Rewound { said: opening, taken: 0, stream };
            rewound.read_to_end(&mut again).await.expect("read");
            assert_eq!(again, said);
        }
    }
}
