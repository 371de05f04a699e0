//! A host: a network namespace with one device on the switch.

use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};

use crate::netns::switch::address;
use crate::netns::tun::Tun;

/// A host with the number that its address ends in. Its namespace lives as long as this.
#[derive(Debug)]
pub struct Host {
    number: usize,
    /// A process that does nothing, so that the namespace is there when no server runs; none for this process's own.
    keeper: Option<Child>,
}

impl Host {
    /// A host in a namespace of its own.
    pub fn new(number: usize) -> (Self, Tun) {
        let mut keep = Command::new("unshare");
        keep.args(["--net", "sleep", "infinity"]).stdin(Stdio::null());
        let keeper = keep.spawn().expect("unshare can be started");
        let host = Self { number, keeper: Some(keeper) };
        let tun = Tun::new(&host.device()).expect("a device can be made: it was tried before");
        let pid = host.keeper.as_ref().map_or(0, Child::id).to_string();
        // The keeper is in its namespace only once it is no longer `unshare`.
        while !is_apart(&pid) {
            std::thread::yield_now();
        }
        run(&["ip", "link", "set", &host.device(), "netns", &pid]);
        host.set_up();
        (host, tun)
    }

    /// The namespace of this process as a host: where clients are.
    pub fn own(number: usize) -> (Self, Tun) {
        let host = Self { number, keeper: None };
        let tun = Tun::new(&host.device()).expect("a device can be made: it was tried before");
        host.set_up();
        (host, tun)
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        address(self.number)
    }

    /// The command before a command that makes it run on this host.
    pub fn prefix(&self) -> Vec<String> {
        match &self.keeper {
            Some(keeper) => vec!["nsenter".to_owned(), format!("--net=/proc/{}/ns/net", keeper.id())],
            None => Vec::new(),
        }
    }

    /// Takes the device down, or up again.
    pub fn set_link(&self, up: bool) {
        self.run(&["ip", "link", "set", &self.device(), if up { "up" } else { "down" }]);
        if up {
            // A device that was down has lost its routes.
            self.run(&["ip", "route", "replace", "10.83.0.0/24", "dev", &self.device()]);
        }
    }

    fn set_up(&self) {
        let address = format!("{}/24", self.address());
        self.run(&["ip", "link", "set", "lo", "up"]);
        self.run(&["ip", "addr", "add", &address, "dev", &self.device()]);
        self.run(&["ip", "link", "set", &self.device(), "up"]);
    }

    fn device(&self) -> String {
        format!("weft{}", self.number)
    }

    fn run(&self, command: &[&str]) {
        let prefix = self.prefix();
        run(&prefix.iter().map(String::as_str).chain(command.iter().copied()).collect::<Vec<_>>());
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(keeper) = &mut self.keeper {
            let _ = keeper.kill();
            let _ = keeper.wait();
        }
    }
}

fn is_apart(pid: &str) -> bool {
    let namespace = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/net"));
    match (namespace(pid), namespace("self")) {
        (Ok(theirs), Ok(ours)) => theirs != ours,
        _ => false,
    }
}

fn run(command: &[&str]) {
    let output = Command::new(command[0]).args(&command[1..]).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}", command[0]));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed: {}", words.trim());
}
