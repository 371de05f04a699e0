//! What the pure part of a write, a read, a watch and a snapshot costs, without log, network and locks.
//!
//! `cargo bench -p weft-state`, optionally with the number of keys as an argument. One thread, fixed
//! sequence, 16-byte keys and 256-byte values. Each line is the mean over all operations of its kind.

#![allow(missing_docs)]

use std::{hint::black_box, time::Instant};

use bytes::Bytes;
use weft_state::{
    command::{Acquire, Command, Event, Put, Range, Release},
    lease::{Lessor, Tick},
    machine::Machine,
    watch::{WatchHub, WatchOptions, WatchPoll, WatchRange},
};

fn main() {
    let keys: u64 = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(200_000);
    let mut bench = Bench { machine: Machine::new(), index: 0 };
    // Multiplying by an odd number visits all keys in an order that no cache likes.
    let scattered = |n: u64| key(n.wrapping_mul(0x9e37_79b1) % keys);
    bench.apply("put, new key, ascending", (0..keys).map(|n| put(key(n))));
    bench.apply("put, present key, scattered", (0..keys).map(|n| put(scattered(n))));
    each("range, single key, scattered", keys, |n| {
        let range = Range { key: scattered(n), ..Range::default() };
        black_box(bench.machine.range(&range).expect("current revision"));
    });
    each("range, 100 of a prefix", 1_000, |n| {
        let range = Range {
            key: scattered(n),
            range_end: Bytes::from_static(&[0]),
            limit: 100,
            revision: 0,
            ..Range::default()
        };
        // The rest of the range is counted, as etcd does.
        black_box(bench.machine.range(&Range { range_end: key(keys), ..range }).expect("current revision"));
    });
    let revision = bench.machine.revision();
    bench.apply("compact to current", [Command::Compact { revision }]);
    bench.apply("put while compacted memory is given back", (0..keys / 256).map(|n| put(scattered(n))));

    bench.apply("lease grant", (1..=keys as i64).map(|id| Command::LeaseGrant { id, ttl_secs: 60 }));
    let acquire = |lease: i64| Acquire {
        name: "jobs".into(),
        lease,
        permits: 1,
        limit: 0,
        request_id: 0,
        try_only: false,
        attempt: 1,
    };
    bench.apply("acquire, into a queue", (1..=10_000).map(|lease| Command::Acquire(acquire(lease))));
    let release =
        |lease| Command::Release(Release { name: "jobs".into(), lease, request_id: 0, attempt: None });
    bench.apply("release, with a grant to the next", (1..=10_000).map(release));

    let mut lessor = Lessor::new();
    each("lessor, promote", 1, |_| lessor.promote(Tick(0), bench.machine.all_lease_terms(), 0));
    each("lessor, renew", keys, |n| {
        lessor.renew(Tick(n / 100), (n.wrapping_mul(0x9e37_79b1) % keys) as i64 + 1).expect("granted");
    });

    for (what, watchers, range_end) in [
        ("publish to 10,000 watchers of one prefix", 10_000, "k\u{7f}"),
        ("publish with 10,000 watchers of other keys", 10_000, ""),
    ] {
        let mut hub = WatchHub::new();
        let ids: Vec<_> = (0..watchers)
            .map(|n| {
                let first = if range_end.is_empty() { key(n) } else { Bytes::from_static(b"k") };
                let range = WatchRange { key: first, range_end: Bytes::from_static(range_end.as_bytes()) };
                let options =
                    WatchOptions { range, start: 0, prev_kv: false, no_put: false, no_delete: false };
                hub.create(&bench.machine, options).0
            })
            .collect();
        let batches: Vec<Vec<Event>> = (0..100).map(|n| bench.one(&put(key(watchers + n)))).collect();
        each(what, batches.len() as u64, |n| {
            black_box(hub.publish(&batches[n as usize]));
        });
        each("  poll of each", watchers, |n| {
            while let WatchPoll::Events { events, .. } = hub.poll(ids[n as usize], &bench.machine, 1 << 20) {
                black_box(events);
            }
        });
    }

    let mut image = Vec::new();
    each("image", 1, |_| image = bench.machine.image());
    println!("{:>60} MB", image.len() / 1_000_000);
    each("from_image", 1, |_| {
        black_box(Machine::from_image(&image).expect("just written"));
    });
}

struct Bench {
    machine: Machine,
    index: u64,
}

impl Bench {
    fn one(&mut self, command: &Command) -> Vec<Event> {
        self.index += 1;
        self.machine.apply(self.index, 1, command).events
    }

    /// Commands are built before the clock starts, as a driver decodes them elsewhere.
    fn apply(&mut self, what: &str, commands: impl IntoIterator<Item = Command>) {
        let commands: Vec<Command> = commands.into_iter().collect();
        each(what, commands.len() as u64, |n| {
            black_box(self.one(&commands[n as usize]));
        });
    }
}

fn each(what: &str, times: u64, mut operation: impl FnMut(u64)) {
    let start = Instant::now();
    for n in 0..times {
        operation(n);
    }
    let mean = start.elapsed().as_secs_f64() * 1e6 / times as f64;
    println!("{what:<48} {mean:>11.3} µs  × {times}");
}

fn key(n: u64) -> Bytes {
    Bytes::from(format!("key/{n:012}"))
}

fn put(key: Bytes) -> Command {
    Command::Put(Put { key, value: Bytes::from(vec![7; 256]), ..Put::default() })
}
