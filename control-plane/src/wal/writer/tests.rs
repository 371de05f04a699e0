//! Crashes, torn tails, damage: on a simulated disk that loses what was not synced.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

const PAGE: usize = 64;

/// A disk in memory. What is not synced is lost in a crash, page by page, as the caller chooses.
#[derive(Default)]
struct MemoryDisk {
    files: Arc<Mutex<BTreeMap<String, MemoryFile>>>,
}

#[derive(Default, Clone)]
struct MemoryFile {
    durable: Vec<u8>,
    visible: Vec<u8>,
    fail_sync: bool,
}

struct Handle {
    files: Arc<Mutex<BTreeMap<String, MemoryFile>>>,
    name: String,
}

impl MemoryDisk {
    /// The power fails. `keep` says for each unsynced page whether it reached the disk all the same.
    fn crash(&self, mut keep: impl FnMut() -> bool) -> MemoryDisk {
        let mut after = BTreeMap::new();
        for (name, file) in self.files.lock().iter() {
            let mut bytes = file.durable.clone();
            bytes.resize(file.visible.len(), 0);
            for page in 0..bytes.len().div_ceil(PAGE) {
                let range = page * PAGE..((page + 1) * PAGE).min(bytes.len());
                if bytes[range.clone()] != file.visible[range.clone()] && keep() {
                    bytes[range.clone()].copy_from_slice(&file.visible[range]);
                }
            }
            after.insert(
                name.clone(),
                MemoryFile { durable: bytes.clone(), visible: bytes, fail_sync: false },
            );
        }
        MemoryDisk { files: Arc::new(Mutex::new(after)) }
    }

    fn edit(&self, segment: u64, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut files = self.files.lock();
        let file = files.get_mut(&segment::file_name(segment)).expect("the segment exists");
        edit(&mut file.visible);
        file.durable = file.visible.clone();
    }

    fn shared(&self) -> Arc<dyn Disk> {
        Arc::new(MemoryDisk { files: self.files.clone() })
    }
}

impl Disk for MemoryDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.files.lock().keys().cloned().collect())
    }
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        Ok(self.files.lock()[name].visible.clone())
    }
    fn create(&self, name: &str, bytes: u64) -> io::Result<Box<dyn DiskFile>> {
        let zeros = vec![0; bytes as usize];
        let file = MemoryFile { durable: zeros.clone(), visible: zeros, fail_sync: false };
        self.files.lock().insert(name.to_owned(), file);
        self.open(name)
    }
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(Handle { files: self.files.clone(), name: name.to_owned() }))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.files.lock().remove(name);
        Ok(())
    }
    fn path(&self, name: &str) -> std::path::PathBuf {
        name.into()
    }
}

impl DiskFile for Handle {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut files = self.files.lock();
        let file = files.get_mut(&self.name).expect("open files exist");
        let end = offset as usize + bytes.len();
        if file.visible.len() < end {
            file.visible.resize(end, 0);
        }
        file.visible[offset as usize..end].copy_from_slice(bytes);
        Ok(())
    }
    fn sync(&mut self) -> io::Result<()> {
        let mut files = self.files.lock();
        let file = files.get_mut(&self.name).expect("open files exist");
        if file.fail_sync {
            return Err(io::Error::other("the disk is gone"));
        }
        file.durable = file.visible.clone();
        Ok(())
    }
}

fn entry(index: u64, size: usize) -> Entry {
    let payload = Bytes::from(vec![index as u8 | 1; size]);
    Entry { position: LogPosition { term: 1, index }, payload }
}

fn append(entries: std::ops::Range<u64>) -> Operation {
    Operation::Append { entries: entries.map(|i| entry(i, 40)).collect(), done: Box::new(|| {}) }
}

fn open(disk: &MemoryDisk, segment_bytes: u64) -> (LogFile, Recovered) {
    let recovered = recover(disk).expect("recovers");
    let log = LogFile::open(disk.shared(), &recovered, segment_bytes).expect("opens");
    (log, recovered)
}

fn write(log: &mut LogFile, operations: Vec<Operation>) {
    let mut group = operations;
    log.write_group(&mut group).expect("writes");
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
fn purged_segments_are_deleted_and_the_vote_survives_them() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, 1024);
    let vote = Vote { term: 2, node: 7, committed: false };
    write(&mut log, vec![Operation::Vote { vote, done: Box::new(|| {}) }]);
    for i in 0..100 {
        write(&mut log, vec![append(i..i + 1)]);
    }
    let before = disk.files.lock().len();
    assert!(before > 5, "{before} segments");
    let position = LogPosition { term: 1, index: 90 };
    write(&mut log, vec![Operation::Purge { position, done: Box::new(|| {}) }]);
    assert!(disk.files.lock().len() < before - 3);
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
    disk.files.lock().remove(&segment::file_name(2));
    match recover(&disk) {
        Err(WalError::MissingSegment { file }) => assert_eq!(file.to_str(), Some("0000000000000002.wal")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_segment_that_was_being_made_in_a_crash_is_made_again() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, 512);
    for i in 0..6 {
        write(&mut log, vec![append(i..i + 1)]);
    }
    log.rotate().expect("rotates");
    let newest = log.segment;
    disk.edit(newest, |bytes| bytes.fill(0));
    let (mut log, after) = open(&disk, 512);
    assert!(after.torn.as_ref().is_some_and(|t| t.whole_segment));
    assert_eq!(indexes(&after), (0..6).collect::<Vec<_>>());
    write(&mut log, vec![append(6..7)]);
    assert_eq!(indexes(&open(&disk, 512).1), (0..7).collect::<Vec<_>>());
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
    assert!(disk.files.lock().is_empty(), "nothing is changed");
    disk.create(&segment::file_name(1), 0).expect("creates");
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
    disk.files.lock().get_mut(&segment::file_name(1)).expect("exists").fail_sync = true;
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
                log.files_for_crash(&mut operations);
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
        drop(LogFile::open(crashed.shared(), &recovered, segment_bytes).expect("opens"));
        let again = recover(&crashed.crash(|| false)).expect("recovers");
        prop_assert_eq!(Model::of(&again), seen);
    }
}

impl LogFile {
    /// Writes a group without its sync.
    fn files_for_crash(&mut self, operations: &mut Vec<Operation>) {
        self.begin();
        for operation in operations.drain(..) {
            match operation {
                Operation::Append { entries, .. } => {
                    for entry in entries {
                        record::encode(&Record::Entry(entry), &mut self.buffer);
                    }
                }
                Operation::Vote { vote, .. } => record::encode(&Record::Vote(vote), &mut self.buffer),
                Operation::Committed(position) => {
                    record::encode(&Record::Committed(position), &mut self.buffer);
                }
                Operation::TruncateFrom { index, .. } => {
                    record::encode(&Record::TruncateFrom(index), &mut self.buffer);
                }
                Operation::Purge { position, .. } => {
                    record::encode(&Record::Purge(position), &mut self.buffer);
                }
                Operation::Stop => {}
            }
        }
        self.flush().expect("writes");
    }
}
