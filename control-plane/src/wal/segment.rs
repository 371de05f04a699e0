//! A segment's name and header.

/// Bytes of a segment's header; the first record follows.
pub const HEADER_BYTES: usize = 32;

/// Version of the format, in each header.
pub const VERSION: u32 = 1;

/// Size of a segment, in bytes. It is filled with zeros when it is made, so that later syncs write data
/// only and no file metadata; larger would make that first filling felt, smaller would make it frequent.
/// A group that does not fit makes its segment longer.
pub const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;

/// Largest segment file that is read, in bytes. Above the largest that is written: a group is closed soon after
/// 4 MiB, and one record of the largest size may stand in it.
pub const SEGMENT_FILE_BYTES_MAX: u64 = 192 * 1024 * 1024;

const MAGIC: [u8; 8] = *b"WEFT-WAL";

/// The file of a segment. Names sort in the order of the log.
pub fn file_name(segment: u64) -> String {
    format!("{segment:016x}.wal")
}

/// The file of a spare: a segment file that waits for a use. The number only tells spares apart.
pub fn spare_name(number: u64) -> String {
    format!("{number:016x}.spare")
}

/// The segment of a file, none if the file is not one.
pub fn parse_file_name(name: &str) -> Option<u64> {
    parse(name, ".wal")
}

/// The number of a spare's file, none if the file is not one.
pub fn parse_spare_name(name: &str) -> Option<u64> {
    parse(name, ".spare")
}

fn parse(name: &str, extension: &str) -> Option<u64> {
    let hex = name.strip_suffix(extension)?;
    if hex.len() != 16 || hex.bytes().any(|b| b.is_ascii_uppercase()) {
        return None;
    }
    u64::from_str_radix(hex, 16).ok()
}

/// `[magic 8][version u32][segment u64][bytes u64][crc32 of what precedes u32]`, where `bytes` is the size with
/// which the file was made. It is durable before the header is written, so a shorter file was cut off.
pub fn encode_header(segment: u64, bytes: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..20].copy_from_slice(&segment.to_le_bytes());
    header[20..28].copy_from_slice(&bytes.to_le_bytes());
    let checksum = crc32fast::hash(&header[..28]);
    header[28..].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// What the first bytes of a segment say.
#[derive(Debug, PartialEq, Eq)]
pub enum Header {
    /// As written by this program; the file was made with that many bytes.
    Valid(u64),
    /// Whole, but of another version.
    OtherVersion(u32),
    /// Anything else.
    Bad(&'static str),
}

/// Checks the header of segment number `segment`.
pub fn check_header(bytes: &[u8], segment: u64) -> Header {
    let Some(header) = bytes.get(..HEADER_BYTES) else {
        return Header::Bad("the file is too short for a header");
    };
    if header[..8] != MAGIC {
        return Header::Bad("the file does not start as a segment does");
    }
    let checksum = u32::from_le_bytes(header[28..].try_into().expect("4 bytes"));
    if crc32fast::hash(&header[..28]) != checksum {
        return Header::Bad("the header's checksum does not match");
    }
    let version = u32::from_le_bytes(header[8..12].try_into().expect("4 bytes"));
    if version != VERSION {
        return Header::OtherVersion(version);
    }
    if u64::from_le_bytes(header[12..20].try_into().expect("8 bytes")) != segment {
        return Header::Bad("the header is that of another segment");
    }
    Header::Valid(u64::from_le_bytes(header[20..28].try_into().expect("8 bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_others_are_left_alone() {
        assert_eq!(parse_file_name(&file_name(0x1f)), Some(0x1f));
        assert_eq!(parse_file_name("1f.wal"), None);
        assert_eq!(parse_file_name("000000000000001F.wal"), None);
        assert_eq!(parse_file_name("notes.txt"), None);
        assert_eq!(parse_spare_name(&spare_name(0x1f)), Some(0x1f));
        assert_eq!(parse_spare_name(&file_name(0x1f)), None);
        assert_eq!(parse_file_name(&spare_name(0x1f)), None);
    }

    #[test]
    fn a_header_of_another_segment_is_refused() {
        let header = encode_header(3, 4096);
        assert_eq!(check_header(&header, 3), Header::Valid(4096));
        assert!(matches!(check_header(&header, 4), Header::Bad(_)));
        assert!(matches!(check_header(&header[..20], 3), Header::Bad(_)));
    }
}
