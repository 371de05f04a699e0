//! TLS to the servers.

use std::io;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint as Transport, Uri};
use weft_core::tls::{Dialling, Trust};

use crate::error::Error;

/// How servers that speak TLS are trusted.
pub(crate) struct Secure {
    /// Said to be trusted, and so used wherever no scheme says otherwise.
    asked_for: bool,
    /// Made at the first use: only those who need the system's CAs read them.
    dialling: Mutex<Option<Arc<Dialling>>>,
}

impl Secure {
    /// # Errors
    /// `Tls`: a file is unusable.
    pub(crate) fn new(trust: Option<Trust>) -> Result<Self, Error> {
        let asked_for = trust.is_some();
        let dialling = trust.map(load).transpose()?;
        Ok(Self { asked_for, dialling: Mutex::new(dialling) })
    }

    pub(crate) fn is_asked_for(&self) -> bool {
        self.asked_for
    }

    /// A connection to a server whose certificate is for `host`, made at first use.
    pub(crate) fn channel(
        &self,
        transport: &Transport,
        host: &str,
        authority: &str,
    ) -> Result<Channel, Error> {
        let dialling = {
            let mut known = self.dialling.lock();
            match &*known {
                Some(dialling) => dialling.clone(),
                None => known.insert(load(Trust::default())?).clone(),
            }
        };
        let (host, authority) = (host.to_owned(), authority.to_owned());
        let connect = move |_: Uri| {
            let (dialling, host, authority) = (dialling.clone(), host.clone(), authority.clone());
            async move {
                let stream = TcpStream::connect(authority).await?;
                stream.set_nodelay(true)?;
                io::Result::Ok(TokioIo::new(dialling.over(stream, &host).await?))
            }
        };
        Ok(transport.connect_with_connector_lazy(tower::service_fn(connect)))
    }
}

fn load(trust: Trust) -> Result<Arc<Dialling>, Error> {
    Dialling::load(trust).map(Arc::new).map_err(|error| Error::Tls { why: error.to_string() })
}
