//! What a million keys take: bytes of memory for each, with the allocator of the binary, and how long writing
//! and loading their image takes.
//!
//! `cargo bench -p weft-state --bench memory`, optionally with the number of keys as an argument, and with
//! `scattered` for keys that do not come in order. 16-byte keys, 256-byte values, Linux only.

#![allow(missing_docs)]

use std::time::Instant;

use bytes::Bytes;
use weft_state::{
    command::{Command, Put, Range},
    machine::{ImageLoader, Machine},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let keys: u64 = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(1_000_000);
    let scattered = arguments.iter().any(|argument| argument == "scattered");
    let before = resident_bytes();
    let mut machine = Machine::new();
    let begun = Instant::now();
    for n in 0..keys {
        // As a server gets it: decoded from an entry, into allocations of its own.
        let n = if scattered { n.wrapping_mul(0x9e37_79b1) % keys } else { n };
        let put = Put {
            key: Bytes::from(format!("key/{n:012}")),
            value: Bytes::from(vec![7; 256]),
            ..Put::default()
        };
        machine.apply(n_th(&machine), 1, &Command::Put(put));
    }
    report(&format!("{keys} puts"), begun);
    let held = resident_bytes() - before;
    println!("{:<32} {:>9.1} MiB, {} bytes a key", "resident", mib(held), held / keys);

    let revision = machine.revision();
    machine.apply(n_th(&machine), 1, &Command::Compact { revision });
    while machine.scrub(10_000) {}
    let held = resident_bytes() - before;
    println!("{:<32} {:>9.1} MiB, {} bytes a key", "resident, compacted", mib(held), held / keys);

    let begun = Instant::now();
    let all = Range { key: Bytes::from("\0"), range_end: Bytes::from("\0"), ..Range::default() };
    let first = machine.range(&Range { limit: 500, revision, ..all.clone() }).expect("is readable");
    assert_eq!(first.count as u64, keys);
    report("range with limit 500, counted", begun);
    let begun = Instant::now();
    let mut cursor = machine.range_cursor(&all).expect("is readable");
    let mut read = 0;
    while let Some(chunk) = machine.range_chunk(&mut cursor, usize::MAX, 1 << 20).expect("is readable") {
        read += chunk.len();
    }
    assert_eq!(read as u64, keys);
    report("all of it in chunks of 1 MiB", begun);

    let path = std::env::temp_dir().join(format!("weft-image-{}", std::process::id()));
    let begun = Instant::now();
    let mut walk = machine.begin_image();
    let (mut file, mut bytes, mut longest) =
        (std::fs::File::create(&path).expect("creates"), Vec::new(), 0.0);
    loop {
        let step = Instant::now();
        let more = machine.image_step(&mut walk, &mut bytes).expect("nobody replaces it");
        longest = step.elapsed().as_secs_f64().max(longest);
        std::io::Write::write_all(&mut file, &bytes).expect("writes");
        bytes.clear();
        if !more {
            break;
        }
    }
    report("image written", begun);
    println!("{:<32} {:>9.3} ms", "longest step under the lock", longest * 1e3);
    drop(walk);
    drop(machine);

    let before = resident_bytes();
    let begun = Instant::now();
    let mut loader = ImageLoader::new();
    let mut file = std::fs::File::open(&path).expect("opens");
    let mut piece = vec![0; 512 * 1024];
    loop {
        let length = std::io::Read::read(&mut file, &mut piece).expect("reads");
        if length == 0 {
            break;
        }
        loader.feed(&piece[..length]).expect("is whole");
    }
    let machine = Machine::from_loader(loader).expect("is whole");
    report("image loaded", begun);
    println!("{:<32} {:>9.1} MiB more", "resident", mib(resident_bytes().saturating_sub(before)));
    assert_eq!(machine.key_count(), keys);
    std::fs::remove_file(path).expect("removes");
}

fn n_th(machine: &Machine) -> u64 {
    machine.applied_index() + 1
}

fn report(what: &str, begun: Instant) {
    println!("{what:<32} {:>9.3} s", begun.elapsed().as_secs_f64());
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
    let resident = pages.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    resident.expect("the second number is resident pages") * 4096
}
