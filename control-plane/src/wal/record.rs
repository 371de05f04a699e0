//! The records of the log and their bytes.
//!
//! A record's checksum covers the number of its segment too. A segment file that is used again still holds the
//! records of its former life; under its new number none of them is valid.

use bytes::Bytes;

/// Bytes in front of a record's payload: length, checksum, type.
pub const RECORD_HEADER_BYTES: usize = 9;

/// Largest payload, in bytes. A larger length in a file is damage, not a record. Above the largest entry
/// that the batcher makes, with room for a format that grows.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Identity of a log entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPosition {
    /// The term of the leader that wrote it.
    pub term: u64,
    /// Its place in the log; the first is 0.
    pub index: u64,
}

/// Whom this server voted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vote {
    /// In which term.
    pub term: u64,
    /// For whom.
    pub node: u64,
    /// Whether that server is known to have won.
    pub committed: bool,
}

/// A log entry. What the payload means is the Raft part's business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its identity.
    pub position: LogPosition,
    /// Its content.
    pub payload: Bytes,
}

/// The first record of a group, which proves what came before it.
///
/// `segment` and `offset` repeat where it stands, so that bytes of a client's value can hardly pass for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Number of the segment that it stands in.
    pub segment: u64,
    /// Offset that it stands at.
    pub offset: u64,
    /// When it was written, the segment was synced up to here. `synced <= offset`.
    pub synced: u64,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Start of a group.
    Mark(Mark),
    /// A log entry. Its index is one above that of the entry before it.
    Entry(Entry),
    /// The vote, replacing the former one.
    Vote(Vote),
    /// The log is known to be committed up to here.
    Committed(LogPosition),
    /// Entries from this index on are void.
    TruncateFrom(u64),
    /// Entries up to and including this one are in a snapshot and no longer needed here.
    Purge(LogPosition),
    /// Last record of a segment that has a successor; repeats its own offset.
    Seal(u64),
}

const MARK: u8 = 1;
const ENTRY: u8 = 2;
const VOTE: u8 = 3;
const COMMITTED: u8 = 4;
const TRUNCATE_FROM: u8 = 5;
const PURGE: u8 = 6;
const SEAL: u8 = 7;

/// Bytes of a mark, header included.
pub const MARK_BYTES: usize = RECORD_HEADER_BYTES + 24;
/// Bytes of a seal, header included.
pub const SEAL_BYTES: usize = RECORD_HEADER_BYTES + 8;

/// Appends a record of segment number `segment` to `out`.
pub fn encode(record: &Record, segment: u64, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; RECORD_HEADER_BYTES]);
    let kind = match record {
        Record::Mark(mark) => {
            put_u64s(out, &[mark.segment, mark.offset, mark.synced]);
            MARK
        }
        Record::Entry(entry) => {
            put_u64s(out, &[entry.position.term, entry.position.index]);
            out.extend_from_slice(&entry.payload);
            ENTRY
        }
        Record::Vote(vote) => {
            put_u64s(out, &[vote.term, vote.node]);
            out.push(u8::from(vote.committed));
            VOTE
        }
        Record::Committed(position) => {
            put_u64s(out, &[position.term, position.index]);
            COMMITTED
        }
        Record::TruncateFrom(index) => {
            put_u64s(out, &[*index]);
            TRUNCATE_FROM
        }
        Record::Purge(position) => {
            put_u64s(out, &[position.term, position.index]);
            PURGE
        }
        Record::Seal(offset) => {
            put_u64s(out, &[*offset]);
            SEAL
        }
    };
    let length = out.len() - start - RECORD_HEADER_BYTES;
    assert!(length <= PAYLOAD_BYTES_MAX, "a record of {length} bytes could not be read back");
    out[start + 8] = kind;
    let checksum = checksum(segment, &out[start + 8..]);
    out[start..start + 4].copy_from_slice(&(length as u32).to_le_bytes());
    out[start + 4..start + 8].copy_from_slice(&checksum.to_le_bytes());
}

fn checksum(segment: u64, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&segment.to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

fn put_u64s(out: &mut Vec<u8>, numbers: &[u64]) {
    for number in numbers {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

/// What stands at an offset.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded {
    /// A whole record; the next one starts at `next`.
    Record {
        /// It.
        record: Record,
        /// Offset behind it.
        next: usize,
    },
    /// The end: zeros instead of a record. In a segment that is used again, leftovers may follow.
    End,
    /// Something else.
    Bad(String),
}

/// Reads the record at `offset` of the bytes of segment number `segment`.
pub fn decode(bytes: &Bytes, offset: usize, segment: u64) -> Decoded {
    let rest = &bytes[offset..];
    // An ordinary record never starts with zeros up to its type, so this costs nothing on the way.
    if rest.iter().take(RECORD_HEADER_BYTES).all(|b| *b == 0) {
        return Decoded::End;
    }
    if rest.len() < RECORD_HEADER_BYTES {
        return Decoded::Bad(format!("{} bytes, too few for a record", rest.len()));
    }
    let length = u32_at(rest, 0) as usize;
    let stored = u32_at(rest, 4);
    if length > PAYLOAD_BYTES_MAX {
        return Decoded::Bad(format!("record length {length} exceeds {PAYLOAD_BYTES_MAX}"));
    }
    let Some(body) = rest.get(8..RECORD_HEADER_BYTES + length) else {
        return Decoded::Bad(format!("record of {length} bytes, but only {} are left", rest.len()));
    };
    let seen = checksum(segment, body);
    if seen != stored {
        return Decoded::Bad(format!("checksum {seen:08x}, expected {stored:08x}"));
    }
    let next = offset + RECORD_HEADER_BYTES + length;
    let payload = bytes.slice(offset + RECORD_HEADER_BYTES..next);
    match parse(body[0], payload) {
        Some(record) => Decoded::Record { record, next },
        None => Decoded::Bad(format!("unknown record type {} of {length} bytes", body[0])),
    }
}

fn parse(kind: u8, payload: Bytes) -> Option<Record> {
    let exact = |numbers: usize| payload.len() == numbers * 8;
    let position = || LogPosition { term: u64_at(&payload, 0), index: u64_at(&payload, 8) };
    Some(match kind {
        MARK if exact(3) => Record::Mark(Mark {
            segment: u64_at(&payload, 0),
            offset: u64_at(&payload, 8),
            synced: u64_at(&payload, 16),
        }),
        ENTRY if payload.len() >= 16 => {
            Record::Entry(Entry { position: position(), payload: payload.slice(16..) })
        }
        VOTE if payload.len() == 17 => Record::Vote(Vote {
            term: u64_at(&payload, 0),
            node: u64_at(&payload, 8),
            committed: payload[16] != 0,
        }),
        COMMITTED if exact(2) => Record::Committed(position()),
        TRUNCATE_FROM if exact(1) => Record::TruncateFrom(u64_at(&payload, 0)),
        PURGE if exact(2) => Record::Purge(position()),
        SEAL if exact(1) => Record::Seal(u64_at(&payload, 0)),
        _ => return None,
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// Finds the furthest point of `segment` that a valid mark behind `offset` proves to have been synced; none if
/// there is no such mark.
///
/// Marks are looked for at every byte, because where records start is unknown behind a bad one.
pub fn synced_by_later_mark(bytes: &Bytes, segment: u64, offset: usize) -> Option<u64> {
    let mut furthest = None;
    let mut from = first_other_than_zero(bytes, offset);
    // The length is looked for first: it excludes nearly every byte without a checksum.
    let length = memchr::memmem::Finder::new(&MARK_LENGTH);
    while let Some(found) = length.find(&bytes[from..]) {
        let at = from + found;
        if bytes.get(at + 8) == Some(&MARK)
            && let Decoded::Record { record: Record::Mark(mark), .. } = decode(bytes, at, segment)
            && mark.segment == segment
            && mark.offset == at as u64
            && mark.synced <= mark.offset
        {
            furthest = furthest.max(Some(mark.synced));
        }
        from = at + 1;
    }
    furthest
}

/// The length field of every mark.
const MARK_LENGTH: [u8; 4] = ((MARK_BYTES - RECORD_HEADER_BYTES) as u32).to_le_bytes();

/// Where the first byte from `offset` on is that is not zero; the end if there is none. Most segments are zeros
/// to a large part, so it goes by blocks.
pub fn first_other_than_zero(bytes: &[u8], offset: usize) -> usize {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut at = offset.min(bytes.len());
    while let Some(block) = bytes.get(at..at + ZEROS.len())
        && *block == ZEROS
    {
        at += ZEROS.len();
    }
    at + bytes[at..].iter().take_while(|b| **b == 0).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Record> {
        let position = LogPosition { term: 3, index: 7 };
        vec![
            Record::Mark(Mark { segment: 1, offset: 32, synced: 32 }),
            Record::Entry(Entry { position, payload: Bytes::from_static(b"value") }),
            Record::Entry(Entry { position, payload: Bytes::new() }),
            Record::Vote(Vote { term: 3, node: 9, committed: true }),
            Record::Committed(position),
            Record::TruncateFrom(7),
            Record::Purge(position),
            Record::Seal(99),
        ]
    }

    #[test]
    fn every_record_reads_back() {
        let mut out = Vec::new();
        for record in samples() {
            encode(&record, 1, &mut out);
        }
        out.extend_from_slice(&[0; 50]);
        let bytes = Bytes::from(out);
        let mut offset = 0;
        for expected in samples() {
            let Decoded::Record { record, next } = decode(&bytes, offset, 1) else { panic!("at {offset}") };
            assert_eq!(record, expected);
            offset = next;
        }
        assert_eq!(decode(&bytes, offset, 1), Decoded::End);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        for record in samples() {
            let mut clean = Vec::new();
            encode(&record, 1, &mut clean);
            for bit in 0..clean.len() * 8 {
                let mut bytes = clean.clone();
                bytes[bit / 8] ^= 1 << (bit % 8);
                match decode(&Bytes::from(bytes), 0, 1) {
                    Decoded::Bad(_) => {}
                    other => panic!("bit {bit} of {record:?} reads as {other:?}"),
                }
            }
        }
    }

    #[test]
    fn a_mark_copied_into_a_value_proves_nothing() {
        let mut value = Vec::new();
        encode(&Record::Mark(Mark { segment: 1, offset: 5000, synced: 5000 }), 1, &mut value);
        let position = LogPosition { term: 1, index: 1 };
        let mut out = Vec::new();
        encode(&Record::Entry(Entry { position, payload: value.into() }), 1, &mut out);
        assert_eq!(synced_by_later_mark(&out.into(), 1, 0), None);
    }

    #[test]
    fn a_record_is_valid_in_its_own_segment_only() {
        for record in samples() {
            let mut out = Vec::new();
            encode(&record, 1, &mut out);
            assert!(matches!(decode(&out.into(), 0, 2), Decoded::Bad(_)), "{record:?}");
        }
    }

    #[test]
    fn the_first_byte_other_than_zero_is_found_at_every_place() {
        for length in [0, 1, 4095, 4096, 4097, 9000] {
            let zeros = vec![0; length];
            assert_eq!(first_other_than_zero(&zeros, 0), length);
            for at in (0..length).step_by(251) {
                let mut bytes = zeros.clone();
                bytes[at] = 1;
                assert_eq!(first_other_than_zero(&bytes, 0), at);
                assert_eq!(first_other_than_zero(&bytes, at + 1), length);
            }
        }
    }
}
