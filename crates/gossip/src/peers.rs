//! Whom to call when the pool looks smaller than it should (G05): seeds, and members known from before.
//!
//! SWIM alone never recovers a member that has lost sight of all others. This does, and after a partition it also
//! brings together members that have forgotten each other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use weft_core::id::NodeId;

/// Former members that are remembered. More do not help: any one that answers tells all the others.
pub(crate) const PEERS_MAX: usize = 256;
/// Seeds, of any kind.
pub(crate) const SEEDS_MAX: usize = 64;
/// Addresses that a seed's name may stand for.
const SEED_ADDRESSES_MAX: usize = 16;
/// Addresses of members that are reached by another one than they advertise.
const ALIASES_MAX: usize = 512;
/// Calls without an answer, while other members are seen, after which a former member is forgotten. Three calls go out
/// each ten seconds, so that is about half an hour for a single one.
const UNANSWERED_MAX: u32 = 200;
/// Addresses called at once.
const CALLS: usize = 3;

/// A former member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) addr: SocketAddr,
    pub(crate) name: String,
    unanswered: u32,
}

/// Seeds and former members.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    seeds: BTreeMap<String, Vec<SocketAddr>>,
    known: BTreeMap<NodeId, Peer>,
    /// Who answered at an address.
    aliases: BTreeMap<SocketAddr, NodeId>,
    own: BTreeSet<SocketAddr>,
    dirty: bool,
}

impl Peers {
    pub(crate) fn new(seeds: impl IntoIterator<Item = String>) -> Self {
        let seeds = seeds.into_iter().take(SEEDS_MAX).map(|seed| (seed, Vec::new())).collect();
        Self { seeds, ..Self::default() }
    }

    /// False at the limit.
    pub(crate) fn add_seed(&mut self, seed: String) -> bool {
        if self.seeds.len() >= SEEDS_MAX && !self.seeds.contains_key(&seed) {
            return false;
        }
        self.seeds.entry(seed).or_default();
        true
    }

    pub(crate) fn seeds(&self) -> impl Iterator<Item = &str> {
        self.seeds.keys().map(String::as_str)
    }

    pub(crate) fn resolved(&mut self, seed: &str, mut addrs: Vec<SocketAddr>) {
        // A failed look-up keeps the former addresses: they may still be right.
        if let Some(known) = self.seeds.get_mut(seed)
            && !addrs.is_empty()
        {
            addrs.truncate(SEED_ADDRESSES_MAX);
            *known = addrs;
        }
    }

    /// Someone answered at this address.
    pub(crate) fn answered(&mut self, addr: SocketAddr, id: NodeId) {
        if self.aliases.len() >= ALIASES_MAX && !self.aliases.contains_key(&addr) {
            self.aliases.clear();
        }
        self.aliases.insert(addr, id);
    }

    /// This address is our own; it is not called again.
    pub(crate) fn is_own(&mut self, addr: SocketAddr) {
        if self.own.len() < SEEDS_MAX * SEED_ADDRESSES_MAX {
            self.own.insert(addr);
        }
    }

    /// A member was seen up.
    pub(crate) fn seen(&mut self, id: NodeId, addr: SocketAddr, name: &str) {
        match self.known.get_mut(&id) {
            Some(peer) if peer.addr == addr && peer.name == name => peer.unanswered = 0,
            Some(peer) => {
                *peer = Peer { addr, name: name.to_owned(), unanswered: 0 };
                self.dirty = true;
            }
            None => {
                if self.known.len() >= PEERS_MAX {
                    // The one that has been silent longest makes room; if all answer, they are enough.
                    let silent = self.known.iter().max_by_key(|(_, p)| p.unanswered);
                    match silent.map(|(id, p)| (*id, p.unanswered)) {
                        Some((silent, 1..)) => self.known.remove(&silent),
                        _ => return,
                    };
                }
                self.known.insert(id, Peer { addr, name: name.to_owned(), unanswered: 0 });
                self.dirty = true;
            }
        }
    }

    /// Addresses that no active member is known to have, which are worth a call.
    fn missing(&self, active: &BTreeMap<NodeId, SocketAddr>) -> Vec<SocketAddr> {
        let active_addrs: BTreeSet<&SocketAddr> = active.values().collect();
        let present = |addr: &SocketAddr| {
            self.own.contains(addr)
                || active_addrs.contains(addr)
                || self.aliases.get(addr).is_some_and(|id| active.contains_key(id))
        };
        let seeds = self.seeds.values().flatten().copied();
        let known = self.known.iter().filter(|(id, _)| !active.contains_key(id)).map(|(_, p)| p.addr);
        let missing: BTreeSet<SocketAddr> = seeds.chain(known).filter(|addr| !present(addr)).collect();
        missing.into_iter().collect()
    }

    /// Whom to call now. `shuffle` is given all candidates.
    pub(crate) fn calls(
        &mut self,
        active: &BTreeMap<NodeId, SocketAddr>,
        shuffle: impl FnOnce(&mut [SocketAddr]),
    ) -> Vec<SocketAddr> {
        let mut missing = self.missing(active);
        shuffle(&mut missing);
        missing.truncate(CALLS);
        if !active.is_empty() {
            // Alone, silence says nothing about the other side.
            let before = self.known.len();
            for (_, peer) in self.known.iter_mut().filter(|(_, p)| missing.contains(&p.addr)) {
                peer.unanswered += 1;
            }
            self.known.retain(|_, peer| peer.unanswered < UNANSWERED_MAX);
            self.dirty |= self.known.len() != before;
        }
        missing
    }

    /// The addresses of a seed that are worth a call as soon as its name is resolved.
    pub(crate) fn calls_to_seed(&self, seed: &str, active: &BTreeMap<NodeId, SocketAddr>) -> Vec<SocketAddr> {
        let missing = self.missing(active);
        let addrs = self.seeds.get(seed).into_iter().flatten();
        addrs.filter(|addr| missing.contains(addr)).take(CALLS).copied().collect()
    }

    /// Whether the known members changed since the last call.
    pub(crate) fn take_dirty(&mut self) -> bool {
        std::mem::take(&mut self.dirty)
    }

    /// As kept on disk: one member a line, `ADDRESS ID NAME`.
    pub(crate) fn to_text(&self) -> String {
        let mut text =
            String::from("# Members of the pool when last seen; used to find it again. Safe to delete.\n");
        for (id, peer) in &self.known {
            // Names are what others call themselves: a line end in one must not begin another member.
            let name = peer.name.replace(char::is_control, " ");
            text.push_str(&format!("{} {id} {name}\n", peer.addr));
        }
        text
    }

    /// Reads what [`Self::to_text`] wrote. Returns how many lines made no sense: they are left out, for the file is
    /// only a help.
    pub(crate) fn load_text(&mut self, text: &str) -> usize {
        let mut bad = 0;
        for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            let mut words = line.splitn(3, ' ');
            let addr = words.next().and_then(|w| w.parse().ok());
            let id = words.next().and_then(|w| u64::from_str_radix(w, 16).ok()).filter(|id| *id != 0);
            match (addr, id) {
                (Some(addr), Some(id)) if self.known.len() < PEERS_MAX => {
                    let name = words.next().unwrap_or_default().to_owned();
                    self.known.insert(NodeId(id), Peer { addr, name, unanswered: 0 });
                }
                _ => bad += 1,
            }
        }
        bad
    }

    #[cfg(test)]
    pub(crate) fn known_len(&self) -> usize {
        self.known.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn active(ids: &[u16]) -> BTreeMap<NodeId, SocketAddr> {
        ids.iter().map(|id| (NodeId(u64::from(*id)), addr(*id))).collect()
    }

    fn peers() -> Peers {
        let mut peers = Peers::new(["seed:1".to_owned()]);
        peers.resolved("seed:1", vec![addr(1)]);
        for id in 2..=4u16 {
            peers.seen(NodeId(id.into()), addr(id), "n");
        }
        peers
    }

    #[test]
    fn only_missing_ones_are_called() {
        let mut peers = peers();
        assert_eq!(peers.calls(&active(&[1, 2, 3]), |_| {}), [addr(4)]);
        assert_eq!(peers.calls(&active(&[1, 2, 3, 4]), |_| {}), []);
        assert_eq!(peers.calls(&active(&[]), |_| {}).len(), CALLS);
    }

    #[test]
    fn a_seed_that_answers_under_another_address_is_not_called_again() {
        let mut peers = peers();
        peers.answered(addr(1), NodeId(2));
        assert_eq!(peers.calls(&active(&[2, 3, 4]), |_| {}), []);
        assert_eq!(peers.calls(&active(&[3, 4]), |_| {}), [addr(1), addr(2)]);
    }

    #[test]
    fn our_own_address_among_the_seeds_is_not_called_again() {
        let mut peers = peers();
        peers.is_own(addr(1));
        assert_eq!(peers.calls(&active(&[2, 3, 4]), |_| {}), []);
    }

    #[test]
    fn a_failed_look_up_keeps_the_former_addresses() {
        let mut peers = peers();
        peers.resolved("seed:1", vec![]);
        assert_eq!(peers.calls_to_seed("seed:1", &active(&[])), [addr(1)]);
        peers.resolved("seed:1", vec![addr(9)]);
        assert_eq!(peers.calls_to_seed("seed:1", &active(&[])), [addr(9)]);
        assert_eq!(peers.calls_to_seed("seed:1", &active(&[9])), []);
    }

    /// G05: alone, nobody is ever given up.
    #[test]
    fn silent_peers_are_forgotten_only_while_others_are_seen() {
        let mut peers = peers();
        for _ in 0..UNANSWERED_MAX * 4 {
            peers.calls(&active(&[]), |_| {});
        }
        assert_eq!(peers.known_len(), 3);
        for _ in 0..UNANSWERED_MAX {
            peers.calls(&active(&[1, 2, 3]), |_| {});
        }
        assert_eq!(peers.known_len(), 2);
    }

    #[test]
    fn tables_are_bounded() {
        let mut peers = Peers::default();
        for i in 1..=2_000u32 {
            peers.seen(NodeId(i.into()), addr(1), "n");
            peers.answered(SocketAddr::from((i.to_be_bytes(), 1)), NodeId(1));
            peers.add_seed(format!("s{i}:1"));
        }
        assert_eq!(peers.known_len(), PEERS_MAX);
        assert!(peers.aliases.len() <= ALIASES_MAX);
        assert_eq!(peers.seeds.len(), SEEDS_MAX);
    }

    #[test]
    fn what_was_written_is_read_back_and_nonsense_is_skipped() {
        let mut peers = peers();
        assert!(peers.take_dirty());
        assert!(!peers.take_dirty());
        let text = peers.to_text();
        let mut read = Peers::default();
        assert_eq!(read.load_text(&text), 0);
        assert_eq!(read.known, peers.known);
        let mut read = Peers::default();
        assert_eq!(read.load_text("nonsense\n127.0.0.1:1 0 zero\n127.0.0.1:5 0a name with spaces\n"), 2);
        assert_eq!(read.known[&NodeId(10)].name, "name with spaces");
    }

    #[test]
    fn a_name_of_several_lines_adds_no_members() {
        let mut peers = Peers::default();
        peers.seen(NodeId(7), addr(7), "a\n10.0.0.1:1 9 b");
        let mut read = Peers::default();
        assert_eq!(read.load_text(&peers.to_text()), 0);
        assert_eq!(read.known.keys().collect::<Vec<_>>(), [&NodeId(7)]);
    }
}
