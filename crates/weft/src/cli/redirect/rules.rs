//! What the kernel is told, as text for its tools. Pure.

use std::fmt::Write;

use weft_proxy::proxy_protocol::Network;

/// Of the nftables table. It is ours alone, so replacing it changes nobody else's rules.
pub(super) const TABLE: &str = "weft_redirect";

/// The iptables chains, each with the chain of the kernel that jumps there.
pub(super) const CHAINS: [(&str, &str); 2] = [("OUTPUT", OUT), ("PREROUTING", IN)];
const OUT: &str = "WEFT_REDIRECT";
const IN: &str = "WEFT_REDIRECT_IN";

/// What is redirected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rules {
    /// Connections of this machine: all TCP ones, but for what is excluded and what stays on loopback.
    pub outgoing: Option<Outgoing>,
    /// Connections of others to this machine.
    pub incoming: Option<Incoming>,
}

/// See [`Rules`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outgoing {
    pub ports: Ports,
    /// Users whose connections are left alone.
    pub exclude_uids: Vec<u32>,
    pub exclude_networks: Vec<Network>,
}

/// See [`Rules`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Incoming {
    pub ports: Ports,
    /// From these they are left alone.
    pub exclude_sources: Vec<Network>,
}

/// Which ports are redirected, and to which one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ports {
    pub to: u16,
    pub exclude: Vec<u16>,
    /// If any, only these.
    pub only: Vec<u16>,
}

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    fn of(network: &Network) -> Self {
        if network.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// As nft calls it in front of addresses.
    fn nft(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }
}

impl Rules {
    /// For `nft -f -`: one transaction, which replaces what was there before.
    pub fn nft(&self) -> String {
        let mut text = remove_nft();
        // Writing to a text never fails; so below.
        let _ = writeln!(text, "add table inet {TABLE}");
        let outgoing = self.outgoing.as_ref().map(|rules| ("output", rules.nft()));
        let incoming = self.incoming.as_ref().map(|rules| ("prerouting", rules.nft()));
        for (hook, rules) in [outgoing, incoming].into_iter().flatten() {
            let chain = format!("type nat hook {hook} priority -100; policy accept;");
            let _ = writeln!(text, "add chain inet {TABLE} {hook} {{ {chain} }}");
            for rule in rules {
                let _ = writeln!(text, "add rule inet {TABLE} {hook} {rule}");
            }
        }
        text
    }

    /// For `iptables-restore --noflush` or `ip6tables-restore --noflush`: both chains whole, at once. One that nothing is
    /// asked of is empty.
    pub fn iptables(&self, family: Family) -> String {
        let mut text = format!("*nat\n:{OUT} - [0:0]\n:{IN} - [0:0]\n");
        let outgoing = self.outgoing.as_ref().map(|rules| (OUT, rules.iptables(family)));
        let incoming = self.incoming.as_ref().map(|rules| (IN, rules.iptables(family)));
        for (chain, rules) in [outgoing, incoming].into_iter().flatten() {
            for rule in rules {
                let _ = writeln!(text, "-A {chain} {rule}");
            }
        }
        text.push_str("COMMIT\n");
        text
    }
}

impl Outgoing {
    fn nft(&self) -> Vec<String> {
        let mut rules = Vec::new();
        if !self.exclude_uids.is_empty() {
            rules.push(format!("meta skuid {{ {} }} return", list(&self.exclude_uids)));
        }
        rules.extend(
            self.left_alone().map(|network| format!("{} daddr {network} return", Family::of(&network).nft())),
        );
        rules.extend(self.ports.nft());
        rules
    }

    fn iptables(&self, family: Family) -> Vec<String> {
        let mut rules = Vec::new();
        rules.extend(self.exclude_uids.iter().map(|uid| format!("-m owner --uid-owner {uid} -j RETURN")));
        let networks = self.left_alone().filter(|network| Family::of(network) == family);
        rules.extend(networks.map(|network| format!("-d {network} -j RETURN")));
        rules.extend(self.ports.iptables());
        rules
    }

    /// What stays on this machine is not on its way through the mesh, and the sidecar's own ports are there.
    fn left_alone(&self) -> impl Iterator<Item = Network> {
        let loopback = ["127.0.0.0/8", "::1/128"].map(|text| text.parse().expect("a network"));
        loopback.into_iter().chain(self.exclude_networks.iter().copied())
    }
}

/// What only passes through this machine is for the same port of another one.
impl Incoming {
    fn nft(&self) -> Vec<String> {
        let mut rules = vec!["iifname \"lo\" return".to_owned(), "fib daddr type != local return".to_owned()];
        let sources = self.exclude_sources.iter();
        rules.extend(sources.map(|network| format!("{} saddr {network} return", Family::of(network).nft())));
        rules.extend(self.ports.nft());
        rules
    }

    fn iptables(&self, family: Family) -> Vec<String> {
        let mut rules =
            vec!["-i lo -j RETURN".to_owned(), "-m addrtype ! --dst-type LOCAL -j RETURN".to_owned()];
        let sources = self.exclude_sources.iter().filter(|network| Family::of(network) == family);
        rules.extend(sources.map(|network| format!("-s {network} -j RETURN")));
        rules.extend(self.ports.iptables());
        rules
    }
}

impl Ports {
    fn nft(&self) -> Vec<String> {
        let mut rules = Vec::new();
        if !self.exclude.is_empty() {
            rules.push(format!("tcp dport {{ {} }} return", list(&self.exclude)));
        }
        let to = format!("redirect to :{}", self.to);
        rules.push(match self.only.as_slice() {
            [] => format!("meta l4proto tcp {to}"),
            ports => format!("tcp dport {{ {} }} {to}", list(ports)),
        });
        rules
    }

    fn iptables(&self) -> Vec<String> {
        let exclude = self.exclude.iter().map(|port| format!("-p tcp --dport {port} -j RETURN"));
        let mut rules: Vec<_> = exclude.collect();
        let to = format!("-j REDIRECT --to-ports {}", self.to);
        match self.only.as_slice() {
            [] => rules.push(format!("-p tcp {to}")),
            ports => rules.extend(ports.iter().map(|port| format!("-p tcp --dport {port} {to}"))),
        }
        rules
    }
}

/// For `nft -f -`, whether there is something to remove or not.
pub(super) fn remove_nft() -> String {
    format!("add table inet {TABLE}\ndelete table inet {TABLE}\n")
}

pub(super) fn list<T: ToString>(all: &[T]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outgoing() -> Outgoing {
        Outgoing {
            ports: Ports { to: 15002, exclude: vec![22, 2379], only: Vec::new() },
            exclude_uids: vec![1337],
            exclude_networks: vec!["10.1.0.0/16".parse().unwrap(), "fd00::7".parse().unwrap()],
        }
    }

    fn incoming() -> Incoming {
        Incoming {
            ports: Ports { to: 15007, exclude: Vec::new(), only: vec![8080, 5432] },
            exclude_sources: vec!["10.2.0.1".parse().unwrap(), "fd00::9".parse().unwrap()],
        }
    }

    #[test]
    fn nftables_get_one_transaction_in_a_table_of_their_own() {
        let expected = "\
add table inet weft_redirect
delete table inet weft_redirect
add table inet weft_redirect
add chain inet weft_redirect output { type nat hook output priority -100; policy accept; }
add rule inet weft_redirect output meta skuid { 1337 } return
add rule inet weft_redirect output ip daddr 127.0.0.0/8 return
add rule inet weft_redirect output ip6 daddr ::1/128 return
add rule inet weft_redirect output ip daddr 10.1.0.0/16 return
add rule inet weft_redirect output ip6 daddr fd00::7/128 return
add rule inet weft_redirect output tcp dport { 22, 2379 } return
add rule inet weft_redirect output meta l4proto tcp redirect to :15002
add chain inet weft_redirect prerouting { type nat hook prerouting priority -100; policy accept; }
add rule inet weft_redirect prerouting iifname \"lo\" return
add rule inet weft_redirect prerouting fib daddr type != local return
add rule inet weft_redirect prerouting ip saddr 10.2.0.1/32 return
add rule inet weft_redirect prerouting ip6 saddr fd00::9/128 return
add rule inet weft_redirect prerouting tcp dport { 8080, 5432 } redirect to :15007
";
        let both = Rules { outgoing: Some(outgoing()), incoming: Some(incoming()) };
        assert_eq!(both.nft(), expected);
        let only = Ports { only: vec![80, 443], ..outgoing().ports };
        let only = Outgoing { ports: only, ..outgoing() };
        let only = Rules { outgoing: Some(only), incoming: None }.nft();
        assert!(only.ends_with("output tcp dport { 80, 443 } redirect to :15002\n"), "{only}");
        assert!(!Rules { outgoing: None, incoming: Some(incoming()) }.nft().contains(" output "));
    }

    #[test]
    fn iptables_get_chains_of_their_own_for_each_family() {
        let expected = "\
*nat
:WEFT_REDIRECT - [0:0]
:WEFT_REDIRECT_IN - [0:0]
-A WEFT_REDIRECT -m owner --uid-owner 1337 -j RETURN
-A WEFT_REDIRECT -d 127.0.0.0/8 -j RETURN
-A WEFT_REDIRECT -d 10.1.0.0/16 -j RETURN
-A WEFT_REDIRECT -p tcp --dport 22 -j RETURN
-A WEFT_REDIRECT -p tcp --dport 2379 -j RETURN
-A WEFT_REDIRECT -p tcp -j REDIRECT --to-ports 15002
-A WEFT_REDIRECT_IN -i lo -j RETURN
-A WEFT_REDIRECT_IN -m addrtype ! --dst-type LOCAL -j RETURN
-A WEFT_REDIRECT_IN -s 10.2.0.1/32 -j RETURN
-A WEFT_REDIRECT_IN -p tcp --dport 8080 -j REDIRECT --to-ports 15007
-A WEFT_REDIRECT_IN -p tcp --dport 5432 -j REDIRECT --to-ports 15007
COMMIT
";
        let both = Rules { outgoing: Some(outgoing()), incoming: Some(incoming()) };
        assert_eq!(both.iptables(Family::V4), expected);
        let six = both.iptables(Family::V6);
        for part in ["-d ::1/128", "-d fd00::7/128", "-s fd00::9/128"] {
            assert!(six.contains(part), "{six}");
        }
        assert!(!six.contains("10."), "{six}");
        // What an earlier call has redirected is no more.
        let none = "*nat\n:WEFT_REDIRECT - [0:0]\n:WEFT_REDIRECT_IN - [0:0]\nCOMMIT\n";
        assert_eq!(Rules::default().iptables(Family::V4), none);
    }

    #[test]
    fn all_ports_of_this_machine_are_all_but_those_that_are_excluded() {
        let ports = Ports { to: 15007, exclude: vec![22, 15007], only: Vec::new() };
        let all = Rules { outgoing: None, incoming: Some(Incoming { ports, exclude_sources: Vec::new() }) };
        let nft = "\
add rule inet weft_redirect prerouting fib daddr type != local return
add rule inet weft_redirect prerouting tcp dport { 22, 15007 } return
add rule inet weft_redirect prerouting meta l4proto tcp redirect to :15007
";
        assert!(all.nft().ends_with(nft), "{}", all.nft());
        let iptables = "\
-A WEFT_REDIRECT_IN -m addrtype ! --dst-type LOCAL -j RETURN
-A WEFT_REDIRECT_IN -p tcp --dport 22 -j RETURN
-A WEFT_REDIRECT_IN -p tcp --dport 15007 -j RETURN
-A WEFT_REDIRECT_IN -p tcp -j REDIRECT --to-ports 15007
COMMIT
";
        for family in [Family::V4, Family::V6] {
            assert!(all.iptables(family).ends_with(iptables), "{}", all.iptables(family));
        }
    }

    #[test]
    fn networks_are_addresses_with_bits() {
        for (text, shown) in
            [("10.0.0.0/8", "10.0.0.0/8"), ("10.0.0.1", "10.0.0.1/32"), ("fd00::/8", "fd00::/8")]
        {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), shown);
        }
        for bad in ["", "10.0.0.0/33", "fd00::/129", "ten", "10.0.0.0/-1", "10.0.0.0/8/8", "10.0.0.0/8; drop"]
        {
            assert!(bad.parse::<Network>().unwrap_err().contains("IP/BITS"), "{bad}");
        }
    }
}
