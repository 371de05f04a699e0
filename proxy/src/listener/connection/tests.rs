use super::*;
use crate::limits::{DOWNSTREAM_IDLE_TIMEOUT, HEAD_TIMEOUT, STALL_TIMEOUT};

fn peer() -> SocketAddr {
    "127.0.0.1:1".parse().unwrap()
}

#[test]
fn a_connection_that_stands_still_is_closed_and_one_that_moves_is_not() {
    let all = Rc::new(Connections::default());
    let (still, moves) = (all.open(peer(), false), all.open(peer(), false));
    for _ in 0..=ticks(DOWNSTREAM_IDLE_TIMEOUT) {
        all.sweep();
        moves.shared().moved();
    }
    assert!(still.shared().is_closing());
    assert!(!moves.shared().is_closing());
}

#[test]
fn a_slow_head_is_late_even_if_bytes_keep_coming() {
    let all = Rc::new(Connections::default());
    let slow = all.open(peer(), false);
    for _ in 0..=ticks(HEAD_TIMEOUT) {
        slow.shared().at(Position::Head);
        slow.shared().moved();
        assert!(!slow.shared().take_head_late());
        all.sweep();
    }
    assert!(slow.shared().take_head_late());
    assert!(!slow.shared().take_head_late(), "asked once");
}

#[test]
fn a_client_that_takes_nothing_is_cut_and_one_that_waits_is_not() {
    let all = Rc::new(Connections::default());
    let (takes_nothing, waits) = (all.open(peer(), false), all.open(peer(), false));
    let _waiting = waits.shared().begin();
    let _taking = takes_nothing.shared().begin();
    takes_nothing.shared().takes(false);
    for _ in 0..=2 * ticks(DOWNSTREAM_IDLE_TIMEOUT) {
        all.sweep();
        // What it sends is no excuse.
        takes_nothing.shared().moved();
        takes_nothing.shared().takes(false);
    }
    assert!(takes_nothing.shared().is_cut());
    assert!(!waits.shared().is_cut() && !waits.shared().is_closing());
    let slow = all.open(peer(), false);
    for _ in 0..=2 * ticks(STALL_TIMEOUT) {
        slow.shared().takes(false);
        all.sweep();
        slow.shared().takes(true);
    }
    assert!(!slow.shared().is_cut());
}

#[test]
fn an_http2_connection_is_idle_without_requests_and_cut_if_it_does_not_answer_its_end() {
    let all = Rc::new(Connections::default());
    let one = all.open(peer(), false);
    one.shared().speaks_http2();
    let busy = one.shared().begin();
    for _ in 0..=ticks(DOWNSTREAM_IDLE_TIMEOUT) {
        all.sweep();
        one.shared().moved();
    }
    assert!(!one.shared().is_closing());
    drop(busy);
    for _ in 0..=ticks(DOWNSTREAM_IDLE_TIMEOUT) {
        all.sweep();
        one.shared().moved();
    }
    assert!(one.shared().is_closing() && !one.shared().is_cut());
    for _ in 0..=ticks(H2_PING_TIMEOUT) {
        all.sweep();
    }
    assert!(one.shared().is_cut());
}

#[test]
fn requests_that_are_taken_back_at_once_cut_the_connection_if_they_are_most() {
    let all = Rc::new(Connections::default());
    let (rapid, slow, some) = (all.open(peer(), false), all.open(peer(), false), all.open(peer(), false));
    for one in [&rapid, &slow, &some] {
        one.shared().speaks_http2();
    }
    for i in 0..H2_RESETS_MIN * 2 {
        drop(rapid.shared().begin());
        let mut begun = some.shared().begin();
        if i % 2 == 0 {
            begun.answered();
        }
    }
    assert!(rapid.shared().is_cut());
    assert!(!some.shared().is_cut(), "half of them were answered");
    for _ in 0..H2_RESETS_MIN {
        let begun = slow.shared().begin();
        all.sweep();
        all.sweep();
        slow.shared().moved();
        drop(begun);
    }
    assert!(!slow.shared().is_cut(), "the client lost patience, as clients do");
}

#[test]
fn a_tunnel_ends_when_nothing_moves_for_long_and_in_a_drain_when_it_is_quiet() {
    let all = Rc::new(Connections::default());
    let (moves, still) = (all.open(peer(), false), all.open(peer(), false));
    for tunnel in [&moves, &still] {
        tunnel.shared().becomes_tunnel(limits::TUNNEL_IDLE_TIMEOUT);
        // A pause of whoever reads is no reason to end it.
        tunnel.shared().takes(false);
    }
    for _ in 0..=ticks(limits::TUNNEL_IDLE_TIMEOUT) {
        moves.shared().moved();
        all.sweep();
    }
    assert!(still.shared().is_cut() && !moves.shared().is_cut());
    all.close_all();
    for _ in 0..=2 * ticks(limits::TUNNEL_QUIET) {
        moves.shared().moved();
        all.sweep();
    }
    assert!(!moves.shared().is_cut(), "it is in the middle of something");
    for _ in 0..=ticks(limits::TUNNEL_QUIET) {
        all.sweep();
    }
    assert!(moves.shared().is_cut());
}

#[test]
fn slots_are_used_again_and_new_connections_of_a_draining_worker_close() {
    let all = Rc::new(Connections::default());
    let first = all.open(peer(), false);
    drop(all.open(peer(), false));
    let _third = all.open(peer(), false);
    assert_eq!((all.count(), all.open.borrow().len()), (2, 2));
    all.close_all();
    assert!(first.shared().is_closing());
    assert!(all.open(peer(), true).shared().is_closing());
}
