//! All listening sockets of a proxy, a handle for each worker.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::sync::Arc;

use crate::app::ProxyAddrs;
use crate::config::declared::BoundListener;
use crate::config::{Declared, ListenAt, LocalService, ProxyConfig, Takes};
use crate::error::StartError;
use crate::handover::offer::Descriptors;
use crate::handover::take::Inherited;
use crate::handover::wire::What;
use crate::listener::accept::captured::Outgoing;
use crate::listener::accept::captured_inbound::Local;
use crate::listener::accept::{self, Entry};
use crate::listener::socket;
use crate::listener::stream::Socket;
use crate::listener::unix::{self, SocketFile};
use crate::proxy_protocol::Network;

/// From which side connections come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The local app, for one service or for all; by the port of `upstreams` with this number, if it is one of these.
    App { to: Option<String>, upstream: Option<usize> },
    /// Anybody, by the listener of that name in the file; and whom of them to trust.
    Listener { name: String, trusted: Arc<[Network]> },
    /// Peers, for the local service of that name or for all of them.
    Peers { to: Option<String> },
}

/// One address with handles for each worker.
struct Bound {
    name: String,
    at: String,
    /// What each worker that has none yet gets. More than one if a process that was taken over had more workers: all of
    /// its handles must be accepted from.
    shares: Vec<Vec<Socket>>,
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
pub(crate) struct Sockets<'a> {
    /// Of a process that is taken over.
    inherited: &'a mut Inherited,
    bound: Vec<Bound>,
    admin: TcpListener,
    addrs: ProxyAddrs,
    /// Services with an inbound port of their own, and that.
    pub own: Vec<(String, SocketAddr)>,
    pub files: Vec<SocketFile>,
}

impl<'a> Sockets<'a> {
    /// Binds all that a configuration names, but for what is inherited. All of them listen on return.
    ///
    /// # Errors
    /// The first that cannot be had.
    pub fn bind(config: &ProxyConfig, inherited: &'a mut Inherited) -> Result<Self, StartError> {
        let admin = match inherited.admin(config.admin) {
            Some(socket) => socket,
            None => {
                let (_, mut sockets) = socket::bind("admin", config.admin, 1)?;
                sockets.pop().expect("bind gives as many sockets as asked for")
            }
        };
        let refused = |source| StartError::Bind { what: "admin".to_owned(), addr: config.admin, source };
        let addr = admin.local_addr().map_err(refused)?;
        let mut all = Self {
            inherited,
            bound: Vec::new(),
            admin,
            addrs: ProxyAddrs::new(addr),
            own: Vec::new(),
            files: Vec::new(),
        };
        let workers = config.workers;
        let outgoing: Arc<Outgoing> = Arc::default();
        if let Some(addr) = config.outbound {
            let app = Origin::App { to: None, upstream: None };
            all.addrs.outbound = Some(all.tcp("outbound", addr, workers, Entry::http(), app)?);
        }
        if let Some(addr) = config.inbound {
            let entry = http_of_peers(config);
            all.addrs.inbound = Some(all.tcp("inbound", addr, workers, entry, Origin::Peers { to: None })?);
        }
        for (name, addr, networks, trusted) in
            config.static_config.iter().flat_map(|s| s.listener_addresses())
        {
            let entry = Entry { accept_proxy: networks.into(), ..Entry::http() };
            let anybody = Origin::Listener { name: name.clone(), trusted: trusted.into() };
            let addr = all.tcp(&format!("listener {name}"), addr, workers, entry, anybody)?;
            all.addrs.outbound.get_or_insert(addr);
            all.addrs.listeners.push((name, addr));
        }
        for addr in &config.captures {
            let takes = accept::Takes::Captured(outgoing.clone());
            let entry = Entry { takes, ..Entry::http() };
            let app = Origin::App { to: None, upstream: None };
            let addr = all.tcp("capture", *addr, workers, entry, app)?;
            all.addrs.captures.push(addr);
        }
        for (number, one) in config.upstreams.iter().enumerate() {
            let bound = all.declared(number, one, workers)?;
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
        let local: Arc<[Local]> = config.services.iter().map(|service| local(config, service)).collect();
        for addr in &config.inbound_captures {
            let takes = accept::Takes::CapturedInbound(local.clone());
            let entry = Entry { takes, ..Entry::http() };
            let addr = all.tcp("capture-inbound", *addr, workers, entry, Origin::Peers { to: None })?;
            all.addrs.inbound_captures.push(addr);
        }
        Ok(all)
    }

    fn declared(
        &mut self,
        number: usize,
        one: &Declared,
        workers: usize,
    ) -> Result<BoundListener, StartError> {
        let to = match &one.takes {
            Takes::Http(service) | Takes::Tcp(service) => Some(service.clone()),
            Takes::Tls { .. } => None,
        };
        let what = format!("upstream of {}", one.service());
        let from = Origin::App { to, upstream: Some(number) };
        match &one.at {
            ListenAt::Tcp(addr) => {
                let addr = self.tcp(&what, *addr, workers, entry(one), from)?;
                Ok(bound(addr.to_string(), one))
            }
            ListenAt::Unix { path, mode } => {
                let refused =
                    |source| StartError::BindUnix { what: what.clone(), path: path.clone(), source };
                let (file, sockets) = match self.inherited.unix(path) {
                    Some(sockets) => {
                        let mode = std::os::unix::fs::PermissionsExt::from_mode(*mode);
                        let inherited =
                            std::fs::set_permissions(path, mode).and_then(|()| SocketFile::inherit(path));
                        (inherited.map_err(refused)?, sockets)
                    }
                    None => unix::bind(path, *mode, workers).map_err(refused)?,
                };
                self.files.push(file);
                let shares =
                    share(sockets.into_iter().map(Socket::Unix).collect(), workers).map_err(refused)?;
                let at = path.display().to_string();
                self.bound.push(Bound { name: what, at, shares, entry: entry(one), from });
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
        let (addr, sockets) = match self.inherited.tcp(what, addr) {
            Some(inherited) => inherited,
            None => socket::bind(what, addr, workers)?,
        };
        let shares = share(sockets.into_iter().map(Socket::Tcp).collect(), workers)
            .map_err(|source| StartError::Bind { what: what.to_owned(), addr, source })?;
        self.bound.push(Bound { name: what.to_owned(), at: addr.to_string(), shares, entry, from });
        Ok(addr)
    }

    /// Further handles on all of them, for a process that takes over.
    ///
    /// # Errors
    /// If there are no more descriptors.
    pub fn offer(&self) -> io::Result<Descriptors> {
        let mut all = vec![(What::Admin, self.admin.as_fd().try_clone_to_owned()?)];
        for bound in &self.bound {
            for socket in bound.shares.iter().flatten() {
                let what = What::Listener { name: bound.name.clone(), at: bound.at.clone() };
                all.push((what, socket.share()?));
            }
        }
        Ok(all)
    }

    /// Where they listen.
    pub fn addrs(&self) -> &ProxyAddrs {
        &self.addrs
    }

    /// The handles of one worker; each call gives another set.
    pub fn take(&mut self) -> Vec<Handle> {
        let handles = |bound: &mut Bound| {
            let share = bound.shares.pop().unwrap_or_default();
            let (entry, from) = (bound.entry.clone(), bound.from.clone());
            share.into_iter().map(move |socket| Handle { socket, entry: entry.clone(), from: from.clone() })
        };
        self.bound.iter_mut().flat_map(handles).collect()
    }

    /// The admin port, and the files that live as long as the proxy.
    pub fn finish(self) -> (TcpListener, Vec<SocketFile>) {
        (self.admin, self.files)
    }
}

/// Something for each worker. Handles on one listener are equal, so that there may be more of them than were given.
fn share(sockets: Vec<Socket>, workers: usize) -> io::Result<Vec<Vec<Socket>>> {
    let given = sockets.len();
    let mut shares: Vec<Vec<Socket>> = (0..workers).map(|_| Vec::new()).collect();
    for worker in given..workers {
        let again = sockets[worker % given].share()?;
        shares[worker].push(match &sockets[worker % given] {
            Socket::Tcp(_) => Socket::Tcp(again.into()),
            Socket::Unix(_) => Socket::Unix(again.into()),
        });
    }
    for (i, socket) in sockets.into_iter().enumerate() {
        shares[i % workers].push(socket);
    }
    Ok(shares)
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

/// As what comes to the port of this service that peers are told of.
fn local(config: &ProxyConfig, service: &LocalService) -> Local {
    let own = config.inbound_tcp.iter().find(|one| one.service() == service.name);
    let entry = match own {
        Some(own) => entry(own),
        None if service.is_tcp() => {
            Entry { takes: accept::Takes::Tcp(service.name.clone()), ..Entry::http() }
        }
        None => http_of_peers(config),
    };
    Local { service: service.name.clone(), addr: service.addr, entry }
}

fn http_of_peers(config: &ProxyConfig) -> Entry {
    Entry { accept_proxy: config.inbound_accept_proxy.clone().into(), ..Entry::http() }
}

fn bound(address: String, one: &Declared) -> BoundListener {
    BoundListener { address, service: one.service().to_owned(), protocol: one.protocol() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(count: usize) -> Vec<Socket> {
        let (_, sockets) = socket::bind("test", "127.0.0.1:0".parse().unwrap(), count).unwrap();
        sockets.into_iter().map(Socket::Tcp).collect()
    }

    /// What waits in the queue of a handle that nobody accepts from is never answered.
    #[test]
    fn every_worker_has_a_handle_and_every_handle_a_worker() {
        for (given, workers) in [(1, 1), (2, 2), (1, 3), (2, 3), (5, 2), (3, 1)] {
            let shares = share(tcp(given), workers).unwrap();
            assert_eq!(shares.len(), workers);
            assert!(shares.iter().all(|share| !share.is_empty()), "{given} for {workers}");
            assert_eq!(shares.iter().map(Vec::len).sum::<usize>(), given.max(workers));
        }
    }
}
