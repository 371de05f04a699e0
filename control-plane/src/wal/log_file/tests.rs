//! Crashes, torn tails, damage: on a simulated disk that loses what was not synced.

use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::wal::{Entry, Wal, WalOptions, disk::memory::MemoryDisk, recover};

fn entry(index: u64, size: usize) -> Entry {
    let payload = Bytes::from(vec![index as u8 | 1; size]);
    Entry { position: LogPosition { term: 1, index }, payload }
}

fn append(entries: std::ops::Range<u64>) -> Operation {
    Operation::Append { entries: entries.map(|i| entry(i, 40)).collect(), done: Box::new(|| {}) }
}

fn open(disk: &MemoryDisk, segment_bytes: u64) -> (LogFile, Recovered) {
    let recovered = recover(disk).expect("recovers");
    (continue_from(disk, &recovered, segment_bytes), recovered)
}

fn continue_from(disk: &MemoryDisk, recovered: &Recovered, segment_bytes: u64) -> LogFile {
    let spares = Arc::new(Spares::open(disk.shared(), segment_bytes).expect("opens"));
    LogFile::open(disk.shared(), spares, recovered).expect("opens")
}

fn write(log: &mut LogFile, operations: Vec<Operation>) {
    let mut group = operations;
    assert_eq!(log.write_group(&mut group).expect("writes"), Written::Durable);
    make_spares(log);
}

/// What the thread for it does.
fn make_spares(log: &LogFile) {
    while log.spares.fill_once().expect("makes") == Filled::Made {}
}

fn segments(disk: &MemoryDisk) -> Vec<u64> {
    disk.names().iter().filter_map(|name| segment::parse_file_name(name)).collect()
}

fn indexes(recovered: &Recovered) -> Vec<u64> {
    recovered.entries.iter().map(|e| e.position.index).collect()
}

#[test]
fn what_was_written_reads_back_after_a_clean_restart() {
    let disk = MemoryDisk::default();
    let (mut log, empty) = open(&disk, 4096);
    assert!(empty.entries.is_empty() && empty.vote.is_none());
    let vote = Vote { term: 2, node: 7, committed: true };
    write(&mut log, vec![Operation::Vote { vote, done: Box::new(|| {}) }, append(0..3)]);
    write(&mut log, vec![Operation::TruncateFrom { index: 2, done: Box::new(|| {}) }, append(2..5)]);
    write(&mut log, vec![Operation::Committed(LogPosition { term: 1, index: 3 })]);
    let (_, after) = open(&disk, 4096);
    assert_eq!(indexes(&after), [0, 1, 2, 3, 4]);
    assert_eq!(after.vote, Some(vote));
    assert_eq!(after.committed, Some(LogPosition { term: 1, index: 3 }));
    assert_eq!(after.torn, None);
}

#[test]
fn purged_segments_are_let_go_and_the_vote_survives_them() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, 1024);
    let vote = Vote { term: 2, node: 7, committed: false };
    write(&mut log, vec![Operation::Vote { vote, done: Box::new(|| {}) }]);
    for i in 0..100 {
        write(&mut log, vec![append(i..i + 1)]);
    }
    let before = segments(&disk).len();
    assert!(before > 5, "{before} segments");
    let position = LogPosition { term: 1, index: 90 };
    write(&mut log, vec![Operation::Purge { position, done: Box::new(|| {}) }]);
    assert!(segments(&disk).len() < before - 3);
    let (_, after) = open(&disk, 1024);
    assert_eq!(after.vote, Some(vote));
    assert_eq!(after.purged, Some(position));
    assert_eq!(indexes(&after), (91..100).collect::<Vec<_>>());
}

#[test]
fn a_purge_beyond_the_last_entry_restarts_the_log_there() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, 4096);
    write(&mut log, vec![append(0..5)]);
    let position = LogPosition { term: 3, index: 50 };
    write(&mut log, vec![Operation::Purge { position, done: Box::new(|| {}) }, append(51..53)]);
    let (_, after) = open(&disk, 4096);
    assert_eq!(after.purged, Some(position));
    assert_eq!(indexes(&after), [51, 52]);
}

/// A07: a torn last record is cut off, what was acknowledged before it stays.
#[test]
fn a_torn_tail_is_cut_off_at_every_length() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, 4096);
    write(&mut log, vec![append(0..3)]);
    let synced = log.offset as usize;
    write(&mut log, vec![append(3..5)]);
    let end = log.offset as usize;
    for cut in synced..end {
        let crashed = disk.crash(|| true);
        crashed.edit(1, |bytes| bytes[cut..].fill(0));
        let (mut log, after) = open(&crashed, 4096);
        assert!(indexes(&after).starts_with(&[0, 1, 2]), "cut at {cut}: {:?}", indexes(&after));
        // And it goes on from there.
        let next = after.entries.len() as u64;
        write(&mut log, vec![append(next..next + 1)]);
        let (_, again) = open(&crashed, 4096);
        assert_eq!(indexes(&again), (0..=next).collect::<Vec<_>>(), "cut at {cut}");
        assert_eq!(again.torn, None, "cut at {cut}");
    }
}

#[test]
fn a_flipped_bit_below_a_later_sync_refuses_to_start_and_says_where() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, 4096);
    write(&mut log, vec![append(0..3)]);
    let first_group_end = log.offset as usize;
    write(&mut log, vec![append(3..5)]);
    for at in HEADER_BYTES..first_group_end {
        let damaged = disk.crash(|| true);
        damaged.edit(1, |bytes| bytes[at] ^= 0x10);
        match recover(&damaged) {
            Err(WalError::Damaged { file, offset, .. }) => {
                assert_eq!(file.to_str(), Some("0000000000000001.wal"));
                assert!(offset <= at as u64, "byte {at} reported at {offset}");
            }
            other => panic!("byte {at}: {other:?}"),
        }
    }
}

#[test]
fn damage_in_an_older_segment_refuses_to_start() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, 512);
    for i in 0..20 {
        write(&mut log, vec![append(i..i + 1)]);
    }
    disk.edit(1, |bytes| {
        let last = bytes.iter().rposition(|b| *b != 0).expect("not empty");
        bytes[last - 12..].fill(0);
    });
    assert!(matches!(recover(&disk), Err(WalError::Damaged { .. })));
}

#[test]
fn a_missing_segment_is_named() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, 512);
    for i in 0..20 {
        write(&mut log, vec![append(i..i + 1)]);
    }
    let newest = *segments(&disk).last().expect("several");
    assert!(newest > 5);
    for number in [2, newest - 1, newest] {
        let copy = disk.crash(|| true);
        copy.remove(&segment::file_name(number)).expect("exists");
        match recover(&copy) {
            Err(WalError::MissingSegment { file }) => {
                assert_eq!(file.to_str(), Some(&*segment::file_name(number)));
            }
            other => panic!("{number}: {other:?}"),
        }
    }
}

#[test]
fn a_newest_segment_that_was_emptied_is_damage() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, 512);
    for i in 0..20 {
        write(&mut log, vec![append(i..i + 1)]);
    }
    let newest = log.segment;
    let zeroed: fn(&mut Vec<u8>) = |bytes| bytes.fill(0);
    let cut: fn(&mut Vec<u8>) = |bytes| bytes.clear();
    for edit in [zeroed, cut] {
        let copy = disk.crash(|| true);
        copy.edit(newest, edit);
        match recover(&copy) {
            Err(WalError::Damaged { file, offset: 0, .. }) => {
                assert_eq!(file.to_str(), Some(&*segment::file_name(newest)));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_seal_that_is_lost_although_its_successor_is_in_use_is_damage() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, 512);
    for i in 0..20 {
        write(&mut log, vec![append(i..i + 1)]);
    }
    let end = log.older.back().expect("several").end as usize;
    disk.edit(log.segment - 1, |bytes| bytes[end - SEAL_BYTES..].fill(0));
    match recover(&disk) {
        Err(WalError::Damaged { file, offset, .. }) => {
            assert_eq!(file.to_str(), Some(&*segment::file_name(log.segment - 1)));
            assert_eq!(offset as usize, end - SEAL_BYTES);
        }
        other => panic!("{other:?}"),
    }
}

/// Whatever a crash leaves of a rotation, the log goes on.
#[test]
fn a_successor_that_was_not_in_use_yet_is_made_again() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, 512);
    for i in 0..6 {
        write(&mut log, vec![append(i..i + 1)]);
    }
    let made = log.make_next().expect("makes").expect("has space");
    drop(made);
    let newest = log.segment + 1;
    let zeroed: fn(&mut Vec<u8>) = |bytes| bytes.fill(0);
    let whole: fn(&mut Vec<u8>) = |_| {};
    for edit in [zeroed, whole] {
        let disk = disk.crash(|| false);
        disk.edit(newest, edit);
        let (mut log, after) = open(&disk, 512);
        assert_eq!((after.torn, after.unused), (None, vec![newest]));
        assert_eq!(after.entries.len(), 6);
        for i in 6..30 {
            write(&mut log, vec![append(i..i + 1)]);
        }
        assert_eq!(indexes(&open(&disk, 512).1), (0..30).collect::<Vec<_>>());
    }
}

#[test]
fn the_first_segment_of_all_is_made_again_if_a_crash_left_it_unfinished() {
    for content in [Vec::new(), vec![0; 512], vec![7; 20]] {
        let disk = MemoryDisk::default();
        disk.put(&segment::file_name(1), content);
        let (mut log, after) = open(&disk, 512);
        assert!(after.torn.is_some_and(|t| t.whole_segment));
        write(&mut log, vec![append(0..2)]);
        assert_eq!(indexes(&open(&disk, 512).1), [0, 1]);
    }
}

/// P16: what is purged is used again, and nothing of its former life is taken for the log.
#[test]
fn purged_segments_are_used_again_and_their_old_records_are_not_read() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, 2048);
    for round in 0..40 {
        for i in round * 20..(round + 1) * 20 {
            write(&mut log, vec![append(i..i + 1)]);
        }
        let position = LogPosition { term: 1, index: round * 20 + 10 };
        write(&mut log, vec![Operation::Purge { position, done: Box::new(|| {}) }]);
        let (_, after) = open(&disk.crash(|| false), 2048);
        assert_eq!(indexes(&after), (position.index + 1..(round + 1) * 20).collect::<Vec<_>>());
        assert_eq!(after.torn, None, "round {round}");
    }
    let (made, reused) = log.stats().files_made_and_reused();
    assert!(made <= 5 && reused > 30, "{made} made, {reused} used again");
    assert!(disk.used() <= 7 * 2048, "{} bytes", disk.used());
}

/// P01, P16: a full disk stops nothing that is in hand; the rest of the segment and the reserve still take
/// records, then the writer waits, and goes on when there is space.
#[test]
fn a_full_disk_is_waited_out_and_nothing_is_lost() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, 8192);
    make_spares(&log);
    disk.set_capacity(Some(disk.used()));
    let mut next = 0;
    let mut full_at = None;
    let mut group = loop {
        let mut group = vec![append(next..next + 1)];
        if log.write_group(&mut group).expect("no error") == Written::OutOfSpace {
            break group;
        }
        next += 1;
        make_spares(&log);
        full_at = full_at.or(log.stats().is_full().then_some(next));
    };
    assert!(log.stats().is_stalled());
    let full_at = full_at.expect("is told");
    // A mark of 33 bytes and an entry of 65 each.
    let left = (next - full_at) * 98;
    assert!(left > 8192 / 2, "{left} bytes were left for deletes when the disk was found full");
    assert_eq!(log.write_group(&mut group).expect("no error"), Written::OutOfSpace, "still");
    let crashed = disk.crash(|| false);
    assert_eq!(indexes(&recover(&crashed).expect("recovers")), (0..next).collect::<Vec<_>>());
    // A server that restarts on the full disk starts.
    crashed.set_capacity(Some(crashed.used()));
    let (restarted, _) = open(&crashed, 8192);
    make_spares(&restarted);
    assert!(restarted.stats().is_full());

    disk.set_capacity(None);
    assert_eq!(log.write_group(&mut group).expect("writes"), Written::Durable);
    make_spares(&log);
    assert!(!log.stats().is_full() && !log.stats().is_stalled());
    assert_eq!(indexes(&open(&disk, 8192).1), (0..=next).collect::<Vec<_>>());
}

/// P01: purging makes its own space.
#[test]
fn a_purge_on_a_full_disk_ends_the_shortage() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, 2048);
    for i in 0..60 {
        write(&mut log, vec![append(i..i + 1)]);
    }
    disk.set_capacity(Some(disk.used()));
    let mut next = 60;
    while !log.stats().is_full() {
        write(&mut log, vec![append(next..next + 1)]);
        next += 1;
    }
    let position = LogPosition { term: 1, index: 50 };
    write(&mut log, vec![Operation::Purge { position, done: Box::new(|| {}) }]);
    assert!(!log.stats().is_full());
    for i in next..next + 20 {
        write(&mut log, vec![append(i..i + 1)]);
    }
}

/// P01: a group larger than the file's rest needs space at the write itself.
#[test]
fn a_group_that_makes_its_segment_longer_waits_for_space() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, 512);
    make_spares(&log);
    disk.set_capacity(Some(disk.used()));
    let done = Arc::new(AtomicU64::new(0));
    let count = done.clone();
    let counted = Box::new(move || {
        count.fetch_add(1, Relaxed);
    });
    let mut group = vec![Operation::Append { entries: vec![entry(0, 5000)], done: counted }];
    for _ in 0..3 {
        assert_eq!(log.write_group(&mut group).expect("no error"), Written::OutOfSpace);
    }
    assert_eq!(done.load(Relaxed), 0);
    disk.set_capacity(None);
    assert_eq!(log.write_group(&mut group).expect("writes"), Written::Durable);
    assert_eq!(done.load(Relaxed), 1);
    assert_eq!(indexes(&open(&disk, 512).1), [0]);
}

/// A restart whose segment has leftovers behind its end must not take them up again.
#[test]
fn what_stands_behind_the_end_is_gone_after_a_restart() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, 4096);
    write(&mut log, vec![append(0..2)]);
    // A group of several pages whose first page is lost: its later records are whole, and of this segment.
    let mut group = vec![append(2..10)];
    log.stage(&mut group);
    log.flush(true).expect("writes");
    let mut first = true;
    let crashed = disk.crash(|| !std::mem::take(&mut first));
    let (_, after) = open(&crashed, 4096);
    assert_eq!(indexes(&after), [0, 1]);
    let bytes = crashed.read(&segment::file_name(1)).expect("reads");
    let end = recover(&crashed).expect("recovers").segments[0].end as usize;
    assert!(bytes[end..].iter().all(|b| *b == 0));
}

/// A07: an interrupted copy is no crash.
#[test]
fn a_segment_that_was_cut_off_is_damage() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, 4096);
    for i in 0..20 {
        write(&mut log, vec![append(i..i + 1)]);
    }
    for bytes in [4095, log.offset as usize, log.offset as usize / 2, HEADER_BYTES] {
        disk.edit(1, |content| content.truncate(bytes));
        match recover(&disk) {
            Err(WalError::Damaged { offset, .. }) => assert_eq!(offset, bytes as u64),
            other => panic!("{bytes}: {other:?}"),
        }
    }
}

/// A07
#[tokio::test]
async fn a_log_that_must_exist_is_not_begun_anew() {
    let open = |disk: &MemoryDisk| {
        Wal::open_on(disk.shared(), WalOptions { must_exist: true, ..WalOptions::default() })
    };
    let disk = MemoryDisk::default();
    assert!(matches!(open(&disk).err(), Some(WalError::Gone { .. })));
    assert!(disk.names().is_empty(), "nothing is changed");
    disk.put(&segment::file_name(1), Vec::new());
    assert!(matches!(open(&disk).err(), Some(WalError::Gone { .. })), "an empty file is no log");
}

#[test]
fn a_newer_format_is_refused() {
    let disk = MemoryDisk::default();
    drop(open(&disk, 512));
    disk.edit(1, |bytes| {
        bytes[8] = 9;
        let checksum = crc32fast::hash(&bytes[..28]);
        bytes[28..32].copy_from_slice(&checksum.to_le_bytes());
    });
    assert!(matches!(recover(&disk), Err(WalError::Version { seen: 9, supported: 1, .. })));
}

/// A07: a failed sync is fatal and nothing that waited for it is acknowledged.
#[test]
fn a_failed_sync_acknowledges_nothing() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, 4096);
    disk.fail_syncs(1);
    let acknowledged = Arc::new(AtomicU64::new(0));
    let seen = acknowledged.clone();
    let done = Box::new(move || {
        seen.fetch_add(1, Relaxed);
    });
    let mut group = vec![Operation::Append { entries: vec![entry(0, 10)], done }];
    assert!(log.write_group(&mut group).is_err());
    assert_eq!(acknowledged.load(Relaxed), 0);
}

#[tokio::test]
async fn the_thread_groups_what_waits_and_calls_back_in_order() {
    let disk = MemoryDisk::default();
    let (wal, _) = Wal::open_on(disk.shared(), WalOptions::default()).expect("opens");
    let order = Arc::new(Mutex::new(Vec::new()));
    for i in 0..200 {
        let order = order.clone();
        let done: Done = Box::new(move || order.lock().push(i));
        assert!(wal.submit(Operation::Append { entries: vec![entry(i, 8)], done }).await);
    }
    wal.close().await;
    assert_eq!(*order.lock(), (0..200).collect::<Vec<_>>());
    assert_eq!(recover(&disk).expect("recovers").entries.len(), 200);
}

#[tokio::test]
async fn a_real_folder_holds_the_log() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("wal");
    let (wal, _) = Wal::open(&path, WalOptions { segment_bytes: 8192, ..Default::default() }).expect("opens");
    assert!(wal.submit(append(0..50)).await);
    assert!(wal.submit(append(50..300)).await);
    assert!(wal.submit(append(300..301)).await);
    wal.close().await;
    let (wal, recovered) = Wal::open(&path, WalOptions::default()).expect("opens again");
    assert_eq!(recovered.entries.len(), 301);
    assert!(wal.stats().bytes() >= 8192);
    wal.close().await;
}

#[derive(Debug, Clone)]
enum Step {
    Append { count: u64, size: usize },
    Truncate { back: u64 },
    Purge { ahead: u64 },
    Vote,
    Commit,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..4u64, 0..200usize).prop_map(|(count, size)| Step::Append { count, size }),
        1 => (1..5u64).prop_map(|back| Step::Truncate { back }),
        1 => (0..4u64).prop_map(|ahead| Step::Purge { ahead }),
        1 => Just(Step::Vote),
        1 => Just(Step::Commit),
    ]
}

/// What a log holds, by the plainest means.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    purged: Option<LogPosition>,
    entries: Vec<Entry>,
    vote: Option<Vote>,
}

impl Model {
    fn next(&self) -> u64 {
        self.entries.last().map(|e| e.position).or(self.purged).map_or(0, |p| p.index + 1)
    }
    fn of(recovered: &Recovered) -> Model {
        Model {
            purged: recovered.purged,
            entries: recovered.entries.iter().cloned().collect(),
            vote: recovered.vote,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// A07: whatever the disk keeps of the unsynced pages, recovery yields a prefix of what was written
    /// that includes everything acknowledged.
    #[test]
    fn recovery_yields_a_prefix_that_includes_everything_acknowledged(
        groups in prop::collection::vec(prop::collection::vec(step(), 1..5), 1..30),
        keep in prop::collection::vec(any::<bool>(), 256),
        segment_bytes in 300..3000u64,
    ) {
        let disk = MemoryDisk::default();
        let (mut log, _) = open(&disk, segment_bytes);
        let mut model = Model::default();
        // States after each operation of the last group: a prefix may end after any of them, or between
        // the entries of one append.
        let mut reachable = vec![model.clone()];
        let last = groups.len() - 1;
        let mut image = None;
        for (at, group) in groups.into_iter().enumerate() {
            reachable = vec![model.clone()];
            let mut operations = Vec::new();
            for step in group {
                match step {
                    Step::Append { count, size } => {
                        let mut entries = Vec::new();
                        for _ in 0..count {
                            let next = entry(model.next(), size);
                            entries.push(next.clone());
                            model.entries.push(next);
                            reachable.push(model.clone());
                        }
                        operations.push(Operation::Append { entries, done: Box::new(|| {}) });
                    }
                    Step::Truncate { back } => {
                        let floor = model.purged.map_or(0, |p| p.index + 1);
                        let index = model.next().saturating_sub(back).max(floor);
                        model.entries.retain(|e| e.position.index < index);
                        operations.push(Operation::TruncateFrom { index, done: Box::new(|| {}) });
                    }
                    Step::Purge { ahead } => {
                        let index = model.purged.map_or(0, |p| p.index + 1) + ahead;
                        let position = LogPosition { term: 1, index };
                        model.purged = Some(position);
                        model.entries.retain(|e| e.position.index > index);
                        operations.push(Operation::Purge { position, done: Box::new(|| {}) });
                    }
                    Step::Vote => {
                        let term = model.vote.map_or(1, |v| v.term + 1);
                        let vote = Vote { term, node: 1, committed: false };
                        model.vote = Some(vote);
                        operations.push(Operation::Vote { vote, done: Box::new(|| {}) });
                    }
                    Step::Commit => {
                        operations.push(Operation::Committed(LogPosition { term: 1, index: 0 }));
                    }
                }
                reachable.push(model.clone());
            }
            if at == last {
                // The last group is written but the power fails before its sync completes.
                log.write_unsynced(&mut operations);
                let mut keep = keep.iter().copied().cycle();
                image = Some(disk.crash(|| keep.next().unwrap_or(false)));
                break;
            }
            write(&mut log, operations);
        }
        let crashed = image.expect("the last group was reached");
        let recovered = recover(&crashed).expect("a crash is never damage");
        let seen = Model::of(&recovered);
        prop_assert!(reachable.contains(&seen), "{seen:?} not in {reachable:?}");
        // And a second crash right after opening again loses nothing of it.
        drop(continue_from(&crashed, &recovered, segment_bytes));
        let again = recover(&crashed.crash(|| false)).expect("recovers");
        prop_assert_eq!(Model::of(&again), seen);
    }
}

impl LogFile {
    /// Writes a group without its sync, in a new segment if it has to be.
    fn write_unsynced(&mut self, operations: &mut Vec<Operation>) {
        let bytes: usize = operations.iter().map(Operation::bytes).sum();
        if self.offset + bytes as u64 > self.made_bytes && self.offset > 200 {
            assert_eq!(self.rotate().expect("rotates"), Written::Durable);
        }
        self.stage(operations);
        self.flush(true).expect("writes");
    }
}
