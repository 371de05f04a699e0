//! All listening sockets of a proxy, a handle for each worker.

use std::net::{SocketAddr, TcpListener};

use crate::app::ProxyAddrs;
use crate::config::declared::BoundListener;
use crate::config::{Declared, ListenAt, ProxyConfig, Takes};
use crate::error::StartError;
use crate::listener::accept::{self, Entry};
use crate::listener::socket;
use crate::listener::stream::Socket;
use crate::listener::unix::{self, SocketFile};

/// From which side connections come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The local app, for one service or for all.
    App { to: Option<String> },
    /// Peers, for the local service of that name or for all of them.
    Peers { to: Option<String> },
}

/// One address with a handle for each worker.
struct Bound {
    sockets: Vec<Socket>,
    entry: Entry,
    from: Origin,
}

/// One worker's handle.
pub(crate) struct Handle {
    pub socket: Socket,
    pub entry: Entry,
    pub from: Origin,
}

/// See the module.
pub(crate) struct Sockets {
    bound: Vec<Bound>,
    admin: TcpListener,
    addrs: ProxyAddrs,
    /// Services with an inbound port of their own, and that.
    pub own: Vec<(String, SocketAddr)>,
    pub files: Vec<SocketFile>,
}

impl Sockets {
    /// Binds all that a configuration names. All of them listen on return.
    ///
    /// # Errors
    /// The first that cannot be had.
    pub fn bind(config: &ProxyConfig) -> Result<Self, StartError> {
        let (admin, mut admin_sockets) = socket::bind("admin", config.admin, 1)?;
        let mut all = Self {
            bound: Vec::new(),
            admin: admin_sockets.pop().expect("bind gives as many sockets as asked for"),
            addrs: ProxyAddrs::new(admin),
            own: Vec::new(),
            files: Vec::new(),
        };
        let workers = config.workers;
        if let Some(addr) = config.outbound {
            let app = Origin::App { to: None };
            all.addrs.outbound = Some(all.tcp("outbound", addr, workers, Entry::http(), app)?);
        }
        if let Some(addr) = config.inbound {
            let entry = Entry { accept_proxy: config.inbound_accept_proxy.clone().into(), ..Entry::http() };
            all.addrs.inbound = Some(all.tcp("inbound", addr, workers, entry, Origin::Peers { to: None })?);
        }
        for (name, addr, networks) in config.static_config.iter().flat_map(|s| s.listener_addresses()) {
            let entry = Entry { accept_proxy: networks.into(), ..Entry::http() };
            let app = Origin::App { to: None };
            let addr = all.tcp(&format!("listener {name}"), addr, workers, entry, app)?;
            all.addrs.outbound.get_or_insert(addr);
            all.addrs.listeners.push((name, addr));
        }
        for one in &config.upstreams {
            let bound = all.declared("upstream", one, workers)?;
            all.addrs.upstreams.push(bound);
        }
        for one in &config.inbound_tcp {
            let ListenAt::Tcp(addr) = one.at else { continue };
            let peers = Origin::Peers { to: Some(one.service().to_owned()) };
            let what = format!("inbound-tcp of {}", one.service());
            let addr = all.tcp(&what, addr, workers, entry(one), peers)?;
            all.own.push((one.service().to_owned(), addr));
            all.addrs.inbound_tcp.push(bound(addr.to_string(), one));
        }
        Ok(all)
    }

    fn declared(&mut self, what: &str, one: &Declared, workers: usize) -> Result<BoundListener, StartError> {
        let to = match &one.takes {
            Takes::Http(service) | Takes::Tcp(service) => Some(service.clone()),
            Takes::Tls { .. } => None,
        };
        let what = format!("{what} of {}", one.service());
        let from = Origin::App { to };
        match &one.at {
            ListenAt::Tcp(addr) => {
                let addr = self.tcp(&what, *addr, workers, entry(one), from)?;
                Ok(bound(addr.to_string(), one))
            }
            ListenAt::Unix { path, mode } => {
                let refused = |source| StartError::BindUnix { what, path: path.clone(), source };
                let (file, sockets) = unix::bind(path, *mode, workers).map_err(refused)?;
                self.files.push(file);
                let sockets = sockets.into_iter().map(Socket::Unix).collect();
                self.bound.push(Bound { sockets, entry: entry(one), from });
                Ok(bound(one.at.to_string(), one))
            }
        }
    }

    fn tcp(
        &mut self,
        what: &str,
        addr: SocketAddr,
        workers: usize,
        entry: Entry,
        from: Origin,
    ) -> Result<SocketAddr, StartError> {
        let (addr, sockets) = socket::bind(what, addr, workers)?;
        let sockets = sockets.into_iter().map(Socket::Tcp).collect();
        self.bound.push(Bound { sockets, entry, from });
        Ok(addr)
    }

    /// Where they listen.
    pub fn addrs(&self) -> &ProxyAddrs {
        &self.addrs
    }

    /// The handles of one worker; each call gives another set.
    pub fn take(&mut self) -> Vec<Handle> {
        let handle = |bound: &mut Bound| {
            let socket = bound.sockets.pop()?;
            Some(Handle { socket, entry: bound.entry.clone(), from: bound.from.clone() })
        };
        self.bound.iter_mut().filter_map(handle).collect()
    }

    /// The admin port, and the files that live as long as the proxy.
    pub fn finish(self) -> (TcpListener, Vec<SocketFile>) {
        (self.admin, self.files)
    }
}

fn entry(one: &Declared) -> Entry {
    Entry {
        takes: match &one.takes {
            Takes::Http(_) => accept::Takes::Http,
            Takes::Tcp(service) => accept::Takes::Tcp(service.clone()),
            Takes::Tls { domain } => accept::Takes::Tls(domain.clone()),
        },
        accept_proxy: one.accept_proxy.clone().into(),
        send_proxy: one.send_proxy,
    }
}

fn bound(address: String, one: &Declared) -> BoundListener {
    BoundListener { address, service: one.service().to_owned(), protocol: one.protocol() }
}
