//! Connections over links that are cut, and machines that are off.

use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_core::net::Accepted;

use super::*;

const NEAR: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const FAR: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

fn net() -> Net {
    Net::new(Rng::new(1, "net"), Trace::default())
}

fn port() -> SocketAddr {
    SocketAddr::new(FAR, 80)
}

/// Lets time pass for the network and whoever waits for it.
async fn pass(net: &Net, until: u64) {
    let from = net.state.lock().now;
    for now in from + 1..=until {
        net.step(now);
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
    }
}

async fn connected(net: &Net) -> (GivenStream, GivenStream, Listener) {
    let mut listener = net.listen(port());
    let near = tokio::spawn(net.dialer(NEAR).dial(port()));
    pass(net, 10).await;
    let Ok((Accepted::Given(far), _)) = listener.accept().await else { panic!("is given") };
    (near.await.expect("runs").expect("connects"), far, listener)
}

#[tokio::test]
async fn bytes_arrive_in_order_and_the_end_after_them() {
    let net = net();
    let (mut near, mut far, _listener) = connected(&net).await;
    for piece in ["one ", "two ", "three"] {
        near.write_all(piece.as_bytes()).await.expect("written");
    }
    drop(near);
    pass(&net, 20).await;
    let mut text = String::new();
    far.read_to_string(&mut text).await.expect("read");
    assert_eq!(text, "one two three");
}

#[tokio::test]
async fn a_link_cut_one_way_holds_what_is_sent_until_it_is_whole() {
    let net = net();
    let (mut near, mut far, _listener) = connected(&net).await;
    net.set_link(NEAR, FAR, Link { cut: true, ..Link::GOOD });
    near.write_all(b"held").await.expect("written");
    far.write_all(b"back").await.expect("written");
    pass(&net, 100).await;
    let mut bytes = [0; 4];
    near.read_exact(&mut bytes).await.expect("the other way is open");
    let mut early = tokio::task::spawn(async move {
        let mut bytes = [0; 4];
        far.read_exact(&mut bytes).await.map(|_| bytes)
    });
    pass(&net, 200).await;
    assert!(!early.is_finished());
    net.set_link(NEAR, FAR, Link::GOOD);
    pass(&net, 210).await;
    assert_eq!(&(&mut early).await.expect("runs").expect("read"), b"held");
}

#[tokio::test]
async fn a_crashed_machine_resets_or_is_silent_until_it_is_back() {
    for silent in [false, true] {
        let net = net();
        let (mut near, far, _listener) = connected(&net).await;
        net.crash(FAR, silent);
        drop(far);
        let mut read = tokio::spawn(async move { near.read_u8().await.map_err(|error| error.kind()) });
        let dial = tokio::spawn(net.dialer(NEAR).dial(port()));
        pass(&net, 100).await;
        assert_eq!((read.is_finished(), dial.is_finished()), (!silent, !silent));
        net.boot(FAR);
        pass(&net, 200).await;
        assert_eq!((&mut read).await.expect("runs"), Err(io::ErrorKind::ConnectionReset));
        let refused = dial.await.expect("runs").err().map(|error| error.kind());
        assert_eq!(refused, Some(io::ErrorKind::ConnectionRefused));
    }
}
