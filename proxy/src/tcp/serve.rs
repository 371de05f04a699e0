//! Connections whose bytes are passed on as they are: to the service of their listener, or to the one that a TLS client
//! names.
//!
//! The endpoint is connected at once and not when the client has said something: many protocols begin with the server's
//! greeting (P43).

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::far_end::FarEnd;
use super::forward;
use super::relay::Broken;
use super::sni::{self, SniError};
use crate::cluster::endpoint::EndpointState;
use crate::cluster::state::Cluster;
use crate::http::context::Context;
use crate::http::error::RequestError;
use crate::http::target::Target;
use crate::http::{guarded, rescue, resolve, server};
use crate::listener::connection::Connection;
use crate::proxy_protocol::{self, Version};
use crate::telemetry::access_log::Entry;
use crate::telemetry::flag::{Flag, Flags};

/// Why a connection was not passed on, or how it ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TcpError {
    #[error(transparent)]
    Sni(#[from] SniError),
    #[error(transparent)]
    NotForwarded(#[from] RequestError),
    #[error(transparent)]
    Tunnel(#[from] Broken),
}

/// How a connection is passed on.
pub(crate) struct Passing {
    /// Whom the client had connected to.
    pub local: SocketAddr,
    /// Tell the endpoint who the client is.
    pub send_proxy: Option<Version>,
}

/// Bytes for one service.
///
/// # Errors
/// If it cannot be reached, or the tunnel breaks off; the caller closes the connection.
pub(crate) async fn tcp<S>(
    ctx: &Rc<Context>,
    stream: S,
    connection: &Connection,
    service: &str,
    passing: &Passing,
) -> Result<(), TcpError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    connection.becomes_tunnel(ctx.timeouts.tunnel);
    tcp_from(ctx, stream, Vec::new(), connection, service, passing).await
}

/// The same, when its beginning was seen already.
///
/// # Errors
/// As [`tcp`].
pub(crate) async fn tcp_from<S>(
    ctx: &Rc<Context>,
    stream: S,
    seen: Vec<u8>,
    connection: &Connection,
    service: &str,
    passing: &Passing,
) -> Result<(), TcpError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut noted = Noted::begin(ctx, connection.peer, service);
    let passed = async {
        let far_end = open(ctx, connection, Target::service(service)).await?;
        pass(ctx, far_end, stream, seen, connection, passing, noted.as_ref()).await
    };
    let passed = passed.await;
    if let Some(noted) = &mut noted {
        noted.ended(&passed);
    }
    passed
}

/// A connection to the very instance that a client was on its way to, before anything has passed.
pub(crate) struct Begun {
    far_end: FarEnd,
    noted: Option<Noted>,
}

impl Begun {
    /// Connects; `dial` as in [`forward::open_to`].
    ///
    /// # Errors
    /// If a policy or the circuit breaker is against it, or the instance takes no connection.
    pub async fn open(
        ctx: &Rc<Context>,
        connection: &Connection,
        cluster: Arc<Cluster>,
        endpoint: &Arc<EndpointState>,
        dial: impl AsyncFn(SocketAddr) -> io::Result<TcpStream>,
    ) -> Result<Self, TcpError> {
        let mut noted = Noted::begin(ctx, connection.peer, cluster.name());
        let opened = async {
            admit(ctx, connection, &cluster)?;
            forward::open_to(ctx, cluster, endpoint, connection.client(), dial).await
        };
        match opened.await {
            Ok(far_end) => Ok(Self { far_end, noted }),
            Err(error) => {
                server::count(ctx, &error);
                let error = TcpError::from(error);
                if let Some(noted) = &mut noted {
                    noted.failed(&error);
                }
                Err(error)
            }
        }
    }

    /// Completes when the instance has said something, which is kept, or has ended.
    pub async fn speaks(&mut self) -> io::Result<()> {
        // Not whether there is something to read: TLS has messages of its own.
        let mut piece = [0; 4096];
        let read = self.far_end.stream.read(&mut piece).await?;
        self.far_end.seen = Bytes::copy_from_slice(&piece[..read]);
        Ok(())
    }

    /// Passes bytes on until both sides have ended; `seen` came from the client already.
    ///
    /// # Errors
    /// If a side breaks off, or the tunnel is cut.
    pub async fn pass<S>(
        self,
        ctx: &Rc<Context>,
        stream: S,
        seen: Vec<u8>,
        connection: &Connection,
        passing: &Passing,
    ) -> Result<(), TcpError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Self { far_end, mut noted } = self;
        let passed = pass(ctx, far_end, stream, seen, connection, passing, noted.as_ref()).await;
        if let Some(noted) = &mut noted {
            noted.ended(&passed);
        }
        passed
    }
}

/// TLS for the service that its client names.
///
/// # Errors
/// As [`tcp`]; the client is told in an alert why.
pub(crate) async fn tls<S>(
    ctx: &Rc<Context>,
    mut stream: S,
    connection: &Connection,
    domain: Option<&str>,
    passing: &Passing,
) -> Result<(), TcpError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    connection.becomes_tunnel(ctx.timeouts.tunnel);
    let mut seen = Vec::new();
    let named = match sni::read(&mut stream, &mut seen, ctx.timeouts.head).await {
        Ok(name) => sni::service(&name, domain).ok_or(SniError::NoService(name)),
        Err(error) => Err(error),
    };
    let service = match named {
        Ok(service) => service,
        Err(error) => {
            ctx.metrics.flagged(ctx.direction(), "", error.flag());
            refuse(&mut stream, error.alert()).await;
            return Err(error.into());
        }
    };
    let mut noted = Noted::begin(ctx, connection.peer, &service);
    let passed = match open(ctx, connection, Target::service(&service)).await {
        Ok(far_end) => pass(ctx, far_end, stream, seen, connection, passing, noted.as_ref()).await,
        Err(error) => {
            let unknown = rescue::status(&error).0 == http::StatusCode::NOT_FOUND;
            refuse(&mut stream, if unknown { sni::UNRECOGNIZED_NAME } else { sni::INTERNAL_ERROR }).await;
            Err(error.into())
        }
    };
    if let Some(noted) = &mut noted {
        noted.ended(&passed);
    }
    passed
}

async fn open(ctx: &Rc<Context>, connection: &Connection, target: Target) -> Result<FarEnd, RequestError> {
    let opened = async {
        let cluster = resolve::named(ctx, &target).await?;
        admit(ctx, connection, &cluster)?;
        forward::open(ctx, cluster, connection.client()).await
    };
    opened.await.inspect_err(|error| {
        server::count(ctx, error);
    })
}

fn admit(ctx: &Context, connection: &Connection, cluster: &Cluster) -> Result<(), RequestError> {
    guarded::gate(ctx, cluster).map_or(Ok(()), |gate| guarded::admit_bytes(ctx, connection, cluster, gate))
}

async fn pass<S>(
    ctx: &Rc<Context>,
    mut far_end: FarEnd,
    stream: S,
    seen: Vec<u8>,
    connection: &Connection,
    passing: &Passing,
    noted: Option<&Noted>,
) -> Result<(), TcpError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let to_near = match noted {
        Some(noted) => {
            noted.endpoint.set(Some(far_end.counted.endpoint()));
            &noted.bytes
        }
        None => &Cell::new(0),
    };
    // One head is enough: that of the service, if it has one.
    let service = &far_end.counted.cluster().config.cluster;
    if let Some(version) = passing.send_proxy.filter(|_| service.send_proxy.is_none()) {
        let header = proxy_protocol::write(version, connection.peer, passing.local);
        // It fits into any socket's buffer.
        far_end.stream.write_all(&header).await.map_err(Broken::Io)?;
    }
    Ok(far_end.tunnel(stream, seen, connection, ctx.timeouts.tunnel, to_near).await?)
}

/// What is told of a connection when it is over: a line of the access log, or of whoever looks on.
struct Noted {
    ctx: Rc<Context>,
    started: Instant,
    client: SocketAddr,
    service: String,
    endpoint: Cell<Option<SocketAddr>>,
    /// To the client.
    bytes: Cell<u64>,
    flags: Flags,
}

impl Noted {
    /// None if nobody wants to know.
    fn begin(ctx: &Rc<Context>, client: SocketAddr, service: &str) -> Option<Self> {
        ctx.observers.as_ref().filter(|o| o.any())?;
        Some(Self {
            ctx: ctx.clone(),
            started: Instant::now(),
            client,
            service: service.to_owned(),
            endpoint: Cell::default(),
            bytes: Cell::default(),
            // Unless it says how it ended, the proxy stopped.
            flags: Flags::default().with(Flag::UpstreamReset),
        })
    }

    fn ended(&mut self, how: &Result<(), TcpError>) {
        match how {
            Ok(()) => self.flags = Flags::default(),
            Err(why) => self.failed(why),
        }
    }

    fn failed(&mut self, why: &TcpError) {
        self.flags = Flags::default().with(match why {
            TcpError::NotForwarded(error) => rescue::status(error).1,
            TcpError::Sni(error) => error.flag(),
            TcpError::Tunnel(_) => Flag::UpstreamReset,
        });
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        let Some(observers) = &self.ctx.observers else { return };
        let endpoint = self.endpoint.get();
        observers.tell(&Entry {
            direction: self.ctx.direction(),
            client: self.client,
            method: http::Method::CONNECT,
            host: String::new(),
            path: String::new(),
            protocol: None,
            status: None,
            flags: self.flags,
            bytes: self.bytes.get(),
            took: self.started.elapsed(),
            head: None,
            service: std::mem::take(&mut self.service),
            route: String::new(),
            endpoint,
            tries: u32::from(endpoint.is_some()),
            trace_id: String::new(),
        });
    }
}

/// The client may be gone; there is nothing else to tell it.
async fn refuse<S: AsyncWrite + Unpin>(stream: &mut S, alert: u8) {
    let _ = stream.write_all(&sni::fatal(alert)).await;
    let _ = stream.shutdown().await;
}
