//! Which server to connect to. Pure.

use std::net::SocketAddr;

use weft_gossip::{MemberState, MemberView, Role};

/// The servers to choose from: those given by hand, else those that gossip knows and does not hold for down.
pub fn candidates(given: &[SocketAddr], members: &[MemberView]) -> Vec<SocketAddr> {
    if !given.is_empty() {
        return given.to_vec();
    }
    let of_state = |state| {
        members.iter().filter(move |m| m.state == state).filter_map(|m| match m.member.role {
            Role::Server { grpc_addr, .. } if usable(grpc_addr) => Some(grpc_addr),
            _ => None,
        })
    };
    let alive: Vec<_> = of_state(MemberState::Alive).collect();
    if alive.is_empty() { of_state(MemberState::Suspect).collect() } else { alive }
}

/// One of them at random, so that proxies spread over servers; not the one tried last if there is another.
pub fn choose(candidates: &[SocketAddr], last: Option<SocketAddr>, random: usize) -> Option<SocketAddr> {
    let others: Vec<_> = candidates.iter().copied().filter(|c| Some(*c) != last).collect();
    let pool = if others.is_empty() { candidates } else { &others };
    (!pool.is_empty()).then(|| pool[random % pool.len()])
}

fn usable(addr: SocketAddr) -> bool {
    addr.port() != 0 && !addr.ip().is_unspecified()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use weft_core::id::NodeId;
    use weft_gossip::Member;

    use super::*;

    fn addr(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    fn server(port: u16, state: MemberState) -> MemberView {
        let role = Role::Server { grpc_addr: addr(port), http_addr: addr(1), peer_addr: addr(2) };
        let member = Member {
            id: NodeId(port.into()),
            name: "s".to_owned(),
            role,
            gossip_addr: addr(3),
            incarnation: 1,
        };
        MemberView { member, state, since: Instant::now() }
    }

    #[test]
    fn servers_given_by_hand_are_the_only_ones() {
        assert_eq!(candidates(&[addr(9)], &[server(5, MemberState::Alive)]), [addr(9)]);
    }

    #[test]
    fn suspected_servers_are_tried_only_without_others_and_down_ones_never() {
        let all =
            [server(5, MemberState::Alive), server(6, MemberState::Suspect), server(7, MemberState::Down)];
        assert_eq!(candidates(&[], &all), [addr(5)]);
        assert_eq!(candidates(&[], &all[1..]), [addr(6)]);
        assert_eq!(candidates(&[], &all[2..]), []);
    }

    #[test]
    fn the_server_tried_last_is_avoided_unless_it_is_the_only_one() {
        for random in 0..10 {
            assert_eq!(choose(&[addr(1), addr(2)], Some(addr(1)), random), Some(addr(2)));
        }
        assert_eq!(choose(&[addr(1)], Some(addr(1)), 3), Some(addr(1)));
        assert_eq!(choose(&[], None, 3), None);
    }
}
