//! By HTTP/2.

use std::net::SocketAddr;
use std::time::Duration;

use crate::wire::*;
use crate::{IN_USE, MIB, Scene, get};

/// Sends the same thing again and again, without reading.
async fn flood(to: SocketAddr, first: Vec<u8>, again: Vec<u8>, times: usize) -> Wire {
    let mut wire = Wire::open(to).await;
    wire.send(&first).await;
    for _ in 0..times {
        // Where nobody takes it any more, it waits in the kernel; where the connection has ended, there is nobody.
        match tokio::time::timeout(Duration::from_secs(1), wire.send(&again)).await {
            Ok(true) => {}
            Ok(false) | Err(_) => break,
        }
    }
    wire
}

/// Waits until the connection has ended.
async fn cut_off(mut wire: Wire) {
    while wire.frame().await.is_some() {}
}

/// CVE-2023-44487.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_resets_are_cut_off_and_leave_nothing_behind() {
    let scene = Scene::new(&[]).await;
    let attack = scene.attack(20, |to, _| async move {
        let mut wire = Wire::open(to).await;
        for i in 0..4000 {
            let ask = frame(HEADERS, END_STREAM | END_HEADERS, 2 * i + 1, &get("silent"));
            let reset = frame(RST_STREAM, 0, 2 * i + 1, &[0, 0, 0, 8]);
            if !wire.send(&[ask, reset].concat()).await {
                break;
            }
        }
        cut_off(wire).await;
    });
    attack.await;
    scene.endured("rapid resets", IN_USE).await;
}

/// CVE-2024-27316.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_go_on_for_ever_are_cut_off_before_they_are_large() {
    let scene = Scene::new(&[]).await;
    for (what, again) in [
        ("empty continuations", frame(CONTINUATION, 0, 1, &[]).repeat(100)),
        ("full continuations", frame(CONTINUATION, 0, 1, &field(b"x", &[b'a'; 16_000]))),
    ] {
        let head = frame(HEADERS, END_STREAM, 1, &get("shop"));
        let attack = scene.attack(50, |to, _| {
            let flood = flood(to, head.clone(), again.clone(), 1000);
            async { cut_off(flood.await).await }
        });
        attack.await;
        scene.endured(what, IN_USE).await;
    }
}

/// CVE-2019-9512, CVE-2019-9515, CVE-2019-9518: whoever does not read what it made the sidecar say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_pings_settings_and_empty_frames_make_no_queue() {
    let scene = Scene::new(&[]).await;
    for (what, again) in [
        ("pings", frame(PING, 0, 0, &[0; 8])),
        ("settings", setting(4, 65_535)),
        ("empty data", frame(DATA, 0, 1, &[])),
        ("priorities", frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])),
    ] {
        let first = frame(HEADERS, END_HEADERS, 1, &get("silent"));
        let held = scene.attack(20, |to, _| flood(to, first.clone(), again.repeat(1000), 200)).await;
        scene.endured(what, IN_USE).await;
        drop(held);
    }
}

/// CVE-2019-9511, CVE-2019-9517: large answers to a client that takes a byte of each, or nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_takes_are_not_collected() {
    const CONNECTIONS: u64 = 4;
    const STREAMS: u32 = 50;
    let scene = Scene::new(&[]).await;
    let held = scene.attack(CONNECTIONS as usize, |to, number| async move {
        let mut wire = Wire::open(to).await;
        // Without any window, with a byte of it, and with one of the connection alone.
        wire.send(&setting(4, [0, 1, 0x7fff_ffff][number % 3])).await;
        for i in 0..STREAMS {
            wire.send(&frame(HEADERS, END_STREAM | END_HEADERS, 2 * i + 1, &get("endless"))).await;
        }
        // All of them have begun.
        let mut heads = 0;
        while heads < STREAMS {
            let (kind, ..) = wire.frame().await.expect("it goes on");
            heads += u32::from(kind == HEADERS);
        }
        wire
    });
    let held = held.await;
    // What one stream may have waiting to be sent.
    scene.endured("answers", IN_USE + CONNECTIONS * u64::from(STREAMS) * 64 * 1024).await;
    drop(held);
}

/// Windows are filled to the last byte for an endpoint that takes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_nobody_takes_are_not_collected() {
    const CONNECTIONS: u64 = 20;
    const STREAMS: u32 = 20;
    let scene = Scene::new(&[]).await;
    let held = scene.attack(CONNECTIONS as usize, |to, _| fill(to, STREAMS)).await;
    let sent: Vec<_> = held.iter().map(|(_, sent)| *sent).collect();
    assert!(sent.iter().all(|sent| *sent >= MIB), "windows are opened, and filled: {sent:?}");
    // The window of a connection, and what is on its way to endpoints.
    scene.endured("bodies", IN_USE + CONNECTIONS * (MIB + u64::from(STREAMS) * 64 * 1024)).await;
    drop(held);
}

/// Sends bodies on so many streams, as much of each as its window and that of the connection let it. Tells how much it was.
async fn fill(to: SocketAddr, streams: u32) -> (Wire, u64) {
    let post =
        fields(&[(":method", b"POST"), (":scheme", b"http"), (":path", b"/"), (":authority", b"silent")]);
    let mut wire = Wire::open(to).await;
    for i in 0..streams {
        wire.send(&frame(HEADERS, END_HEADERS, 2 * i + 1, &post)).await;
    }
    // RFC 9113 §6.9.2: what windows are before anybody says something else. The first one is that of the connection.
    let (mut windows, mut initial, mut sent) = (vec![65_535_i64; streams as usize + 1], 65_535, 0);
    while let Ok(frame_of) = tokio::time::timeout(Duration::from_millis(500), wire.frame()).await {
        let (kind, stream, payload) = frame_of.expect("it goes on");
        match kind {
            SETTINGS => {
                for one in payload.chunks(6).filter(|one| one.starts_with(&[0, 4])) {
                    let now = i64::from(number(&one[2..]));
                    windows[1..].iter_mut().for_each(|window| *window += now - initial);
                    initial = now;
                    // It holds from then on (§6.5.3).
                    wire.send(&frame(SETTINGS, ACK, 0, &[])).await;
                }
            }
            WINDOW_UPDATE => windows[stream.div_ceil(2) as usize] += i64::from(number(&payload)),
            _ => panic!("of the kind {kind}, on stream {stream}: {payload:?}"),
        }
        for i in 0..streams {
            loop {
                let room = windows[0].min(windows[i as usize + 1]).min(16 * 1024);
                if room <= 0 {
                    break;
                }
                wire.send(&frame(DATA, 0, 2 * i + 1, &vec![b'x'; room as usize])).await;
                windows[0] -= room;
                windows[i as usize + 1] -= room;
                sent += room as u64;
            }
        }
    }
    (wire, sent)
}

/// As many streams as are allowed, none of which ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_never_end_are_bounded() {
    const CONNECTIONS: u64 = 4;
    let scene = Scene::new(&[]).await;
    let held = scene.attack(CONNECTIONS as usize, |to, _| async move {
        let mut wire = Wire::open(to).await;
        for i in 0..2000 {
            if !wire.send(&frame(HEADERS, END_HEADERS, 2 * i + 1, &get("silent"))).await {
                break;
            }
        }
        wire
    });
    let held = held.await;
    // Each has a connection of its own to an endpoint that speaks HTTP/1.1.
    scene.endured("streams", IN_USE + CONNECTIONS * 256 * 16 * 1024).await;
    drop(held);
}

/// RFC 7541 §7.3: a few bytes that decode to megabytes. Bodies are nowhere decompressed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compressed_heads_are_no_bombs() {
    let scene = Scene::new(&[]).await;
    let mut bomb = field(b"x", &[b'a'; 3900]);
    // Into the table once, and out of it many times.
    bomb[0] = 0x40;
    bomb.extend([0xbe; 12_000]);
    let block = [get("shop"), bomb].concat();
    let held = scene.attack(100, |to, _| {
        let head = frame(HEADERS, END_STREAM | END_HEADERS, 1, &block);
        let again = frame(HEADERS, END_STREAM | END_HEADERS, 3, &get("shop"));
        flood(to, head, again, 1)
    });
    let held = held.await;
    scene.endured("bombs", IN_USE).await;
    drop(held);
}
