//! Corpora: a log that was written, then cut, flipped, swapped and doubled in every place.

use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::wal::{Entry, Operation, disk::memory::MemoryDisk, log_file::LogFile, recover, spares::Spares};

const SEGMENT_BYTES: u64 = 700;

/// A log of several segments; all of it synced.
fn written() -> MemoryDisk {
    let disk = MemoryDisk::default();
    let spares = Arc::new(Spares::open(disk.shared(), SEGMENT_BYTES).expect("opens"));
    let mut log = LogFile::open(disk.shared(), spares, &Default::default()).expect("opens");
    for index in 0..12 {
        let position = LogPosition { term: 1 + index / 5, index };
        let entry = Entry { position, payload: Bytes::from(vec![index as u8 | 1; 30]) };
        let mut group = vec![Operation::Append { entries: vec![entry], done: Box::new(|| {}) }];
        if index == 7 {
            let purge = LogPosition { term: 1, index: 2 };
            group.push(Operation::Purge { position: purge, done: Box::new(|| {}) });
        }
        log.write_group(&mut group).expect("writes");
    }
    disk
}

fn segments(disk: &MemoryDisk) -> Vec<u64> {
    numbers(disk).expect("lists")
}

/// What both ways of reading a log say of it: whether it is whole, and its entries. They must agree.
fn judge(disk: &MemoryDisk) -> Result<Vec<(LogPosition, Bytes)>, WalError> {
    let report = inspect(disk, |_, _, _| {}).expect("lists");
    match recover(disk) {
        Ok(recovered) => {
            assert!(report.damage.is_none(), "{:?}", report.damage);
            assert_eq!(report.torn, recovered.torn);
            assert_eq!(report.last, recovered.last());
            Ok(recovered.entries.into_iter().map(|e| (e.position, e.payload)).collect())
        }
        Err(error) => {
            let told = report.damage.expect("is told").to_string();
            assert_eq!(told, error.to_string());
            Err(error)
        }
    }
}

#[test]
fn a_report_says_what_is_in_the_log() {
    let disk = written();
    let mut seen = Vec::new();
    let report = inspect(&disk, |segment, offset, record| seen.push((segment, offset, record.clone())))
        .expect("lists");
    assert!(report.damage.is_none() && report.torn.is_none());
    assert_eq!(report.entries, Some(3..12));
    assert_eq!(report.last, Some(LogPosition { term: 3, index: 11 }));
    assert_eq!(report.purged, Some(LogPosition { term: 1, index: 2 }));
    let states: Vec<_> = report.segments.iter().map(|s| s.state).collect();
    assert_eq!(states.last(), Some(&SegmentState::Current));
    assert!(states.len() > 1 && states[..states.len() - 1].iter().all(|s| *s == SegmentState::Sealed));
    assert_eq!(seen.len() as u64, report.segments.iter().map(|s| s.records).sum::<u64>());
    assert!(matches!(seen[0], (_, 32, Record::Mark(_))), "{:?}", seen[0]);
}

/// A07: whatever is cut off, nothing else than a prefix is read. Zeros to the end of the newest segment are as if
/// nothing had been written there; in any other they are damage.
#[test]
fn a_log_that_is_cut_at_any_byte_is_refused_or_a_prefix() {
    let disk = written();
    let whole = judge(&disk).expect("is whole");
    for segment in segments(&disk) {
        let length = disk.len(&segment::file_name(segment)).expect("exists") as usize;
        for cut in 0..length {
            let copy = disk.crash(|| true);
            copy.edit(segment, |bytes| bytes.truncate(cut));
            // A file that is shorter than it was made is no crash.
            assert!(matches!(judge(&copy), Err(WalError::Damaged { .. })), "{segment} cut at {cut}");
            let zeroed = disk.crash(|| true);
            zeroed.edit(segment, |bytes| bytes[cut..].fill(0));
            let newest = segments(&disk).last() == Some(&segment);
            match judge(&zeroed) {
                Ok(entries) if newest => assert!(whole.starts_with(&entries), "{segment} zeroed from {cut}"),
                // Behind the seal nothing counts.
                Ok(entries) => assert_eq!(entries, whole, "{segment} zeroed from {cut}"),
                Err(error) => assert!(!newest || cut < HEADER_BYTES, "{segment} zeroed from {cut}: {error}"),
            }
        }
    }
}

#[test]
fn a_log_with_any_bit_flipped_is_refused_or_what_it_was_or_lacks_its_last_group() {
    let disk = written();
    let whole = judge(&disk).expect("is whole");
    let names = segments(&disk);
    for segment in &names {
        let length = disk.len(&segment::file_name(*segment)).expect("exists") as usize;
        for at in 0..length {
            let copy = disk.crash(|| true);
            copy.edit(*segment, |bytes| bytes[at] ^= 1 << (at % 8));
            match judge(&copy) {
                Err(WalError::Damaged { file, offset, .. }) => {
                    assert_eq!(file.to_str(), Some(&*segment::file_name(*segment)), "byte {at}");
                    assert!(offset <= at as u64, "byte {at} of {segment} told at {offset}");
                }
                Err(other) => panic!("byte {at} of {segment}: {other}"),
                Ok(entries) => {
                    assert!(whole.starts_with(&entries), "byte {at} of {segment}");
                    let lost = whole.len() - entries.len();
                    // What the last group holds may be taken for a torn tail: no later mark speaks for it.
                    assert!(
                        lost == 0 || (lost == 1 && segment == &names[names.len() - 1]),
                        "byte {at}: {lost}"
                    );
                }
            }
        }
    }
}

#[test]
fn segments_that_are_swapped_or_doubled_are_refused() {
    let disk = written();
    let names = segments(&disk);
    for a in &names {
        for b in names.iter().filter(|b| *b != a) {
            let bytes = disk.read(&segment::file_name(*b)).expect("exists");
            let copy = disk.crash(|| true);
            copy.put(&segment::file_name(*a), bytes);
            assert!(judge(&copy).is_err(), "{b} in the place of {a}");
        }
    }
}

/// Records are moved about inside of their segment, checksums and all.
#[test]
fn records_that_are_swapped_doubled_or_left_out_are_never_read_as_another_log() {
    let disk = written();
    let whole = judge(&disk).expect("is whole");
    let first = segments(&disk)[0];
    let mut offsets = Vec::new();
    inspect(&disk, |segment, offset, _| {
        if segment == first {
            offsets.push(offset as usize);
        }
    })
    .expect("lists");
    let record = |bytes: &[u8], i: usize| bytes[offsets[i]..offsets[i + 1]].to_vec();
    for i in 0..offsets.len() - 2 {
        type Edit<'a> = Box<dyn Fn(&mut Vec<u8>) + 'a>;
        let swapped: Edit<'_> = Box::new(|bytes| {
            let joined = [record(bytes, i + 1), record(bytes, i)].concat();
            bytes[offsets[i]..offsets[i + 2]].copy_from_slice(&joined);
        });
        let doubled: Edit<'_> = Box::new(|bytes| {
            let double = record(bytes, i);
            bytes.splice(offsets[i]..offsets[i], double);
        });
        let left_out: Edit<'_> = Box::new(|bytes| {
            bytes.drain(offsets[i]..offsets[i + 1]);
        });
        for (what, edit) in [("swapped", swapped), ("doubled", doubled), ("left out", left_out)] {
            let copy = disk.crash(|| true);
            copy.edit(first, |bytes| edit(bytes));
            if let Ok(entries) = judge(&copy) {
                // Two records of equal bytes.
                assert_eq!(entries, whole, "record {i} {what}");
            }
        }
    }
}

#[test]
fn a_file_that_is_too_large_for_a_segment_is_not_read() {
    struct Large(MemoryDisk);
    impl Disk for Large {
        fn list(&self) -> std::io::Result<Vec<String>> {
            self.0.list()
        }
        fn len(&self, _: &str) -> std::io::Result<u64> {
            Ok(segment::SEGMENT_FILE_BYTES_MAX + 1)
        }
        fn read(&self, _: &str) -> std::io::Result<Vec<u8>> {
            panic!("it would fill the memory")
        }
        fn create(&self, _: &str, _: u64) -> std::io::Result<Box<dyn crate::wal::DiskFile>> {
            unreachable!("nothing is written")
        }
        fn open(&self, _: &str) -> std::io::Result<Box<dyn crate::wal::DiskFile>> {
            unreachable!("nothing is written")
        }
        fn rename(&self, _: &str, _: &str) -> std::io::Result<()> {
            unreachable!("nothing is written")
        }
        fn remove(&self, _: &str) -> std::io::Result<()> {
            unreachable!("nothing is written")
        }
        fn path(&self, name: &str) -> std::path::PathBuf {
            name.into()
        }
    }
    let report = inspect(&Large(written()), |_, _, _| {}).expect("lists");
    assert!(report.damage.expect("is told").to_string().contains("a segment has at most"));
}
