//! What the kernel is told, as text for its tools. Pure.

use std::fmt::Write;
use std::net::IpAddr;

/// Of the nftables table. It is ours alone, so replacing it changes nobody else's rules.
pub(super) const TABLE: &str = "weft_redirect";

/// Of the iptables chain.
pub(super) const CHAIN: &str = "WEFT_REDIRECT";

/// Which connections of this machine are redirected: all TCP ones, but for what is excluded and what stays on loopback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rules {
    pub to_port: u16,
    /// Users whose connections are left alone.
    pub exclude_uids: Vec<u32>,
    pub exclude_ports: Vec<u16>,
    pub exclude_networks: Vec<Network>,
    /// If any, only these ports are redirected.
    pub only_ports: Vec<u16>,
}

/// Addresses that begin alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Network {
    pub base: IpAddr,
    pub bits: u8,
}

impl std::str::FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no IP or IP/BITS, such as 10.0.0.0/8 or fd00::/8");
        let (base, bits) = match text.split_once('/') {
            Some((base, bits)) => (base, Some(bits)),
            None => (text, None),
        };
        let base: IpAddr = base.parse().map_err(|_| wrong())?;
        let most = if base.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= most).ok_or_else(wrong)?,
        };
        Ok(Self { base, bits })
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.base, self.bits)
    }
}

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Rules {
    /// For `nft -f -`: one transaction, which replaces what was there before.
    pub fn nft(&self) -> String {
        let mut text = remove_nft();
        let chain = "type nat hook output priority -100; policy accept;";
        // Writing to a text never fails; so below.
        let _ = writeln!(text, "add table inet {TABLE}\nadd chain inet {TABLE} output {{ {chain} }}");
        let mut rule = |words: &str| {
            let _ = writeln!(text, "add rule inet {TABLE} output {words}");
        };
        if !self.exclude_uids.is_empty() {
            rule(&format!("meta skuid {{ {} }} return", list(&self.exclude_uids)));
        }
        for network in self.left_alone() {
            let family = if network.base.is_ipv4() { "ip" } else { "ip6" };
            rule(&format!("{family} daddr {network} return"));
        }
        if !self.exclude_ports.is_empty() {
            rule(&format!("tcp dport {{ {} }} return", list(&self.exclude_ports)));
        }
        let to = format!("redirect to :{}", self.to_port);
        match self.only_ports.as_slice() {
            [] => rule(&format!("meta l4proto tcp {to}")),
            ports => rule(&format!("tcp dport {{ {} }} {to}", list(ports))),
        }
        text
    }

    /// For `iptables-restore --noflush` or `ip6tables-restore --noflush`: the whole chain at once.
    pub fn iptables(&self, family: Family) -> String {
        let mut text = format!("*nat\n:{CHAIN} - [0:0]\n");
        let mut rule = |words: &str| {
            let _ = writeln!(text, "-A {CHAIN} {words}");
        };
        for uid in &self.exclude_uids {
            rule(&format!("-m owner --uid-owner {uid} -j RETURN"));
        }
        for network in self.left_alone().filter(|n| n.base.is_ipv4() == (family == Family::V4)) {
            rule(&format!("-d {network} -j RETURN"));
        }
        for port in &self.exclude_ports {
            rule(&format!("-p tcp --dport {port} -j RETURN"));
        }
        let to = format!("-j REDIRECT --to-ports {}", self.to_port);
        match self.only_ports.as_slice() {
            [] => rule(&format!("-p tcp {to}")),
            ports => ports.iter().for_each(|port| rule(&format!("-p tcp --dport {port} {to}"))),
        }
        text.push_str("COMMIT\n");
        text
    }

    /// What stays on this machine is not on its way through the mesh, and the sidecar's own ports are there.
    fn left_alone(&self) -> impl Iterator<Item = Network> {
        let loopback = ["127.0.0.0/8", "::1/128"].map(|text| text.parse().expect("a network"));
        loopback.into_iter().chain(self.exclude_networks.iter().copied())
    }
}

/// For `nft -f -`, whether there is something to remove or not.
pub(super) fn remove_nft() -> String {
    format!("add table inet {TABLE}\ndelete table inet {TABLE}\n")
}

fn list<T: ToString>(all: &[T]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules {
            to_port: 15002,
            exclude_uids: vec![1337],
            exclude_ports: vec![22, 2379],
            exclude_networks: vec!["10.1.0.0/16".parse().unwrap(), "fd00::7".parse().unwrap()],
            only_ports: Vec::new(),
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
";
        assert_eq!(rules().nft(), expected);
        let only = Rules { only_ports: vec![80, 443], ..rules() };
        assert!(only.nft().ends_with("output tcp dport { 80, 443 } redirect to :15002\n"));
    }

    #[test]
    fn iptables_get_a_chain_of_their_own_for_each_family() {
        let expected = "\
*nat
:WEFT_REDIRECT - [0:0]
-A WEFT_REDIRECT -m owner --uid-owner 1337 -j RETURN
-A WEFT_REDIRECT -d 127.0.0.0/8 -j RETURN
-A WEFT_REDIRECT -d 10.1.0.0/16 -j RETURN
-A WEFT_REDIRECT -p tcp --dport 22 -j RETURN
-A WEFT_REDIRECT -p tcp --dport 2379 -j RETURN
-A WEFT_REDIRECT -p tcp -j REDIRECT --to-ports 15002
COMMIT
";
        assert_eq!(rules().iptables(Family::V4), expected);
        let six = rules().iptables(Family::V6);
        assert!(
            six.contains("-d ::1/128") && six.contains("-d fd00::7/128") && !six.contains("10.1"),
            "{six}"
        );
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
