//! The whole state as bytes.

/// Why bytes are not an image that this build can read. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Fewer bytes than the image says it has.
    #[error("state image is truncated: {seen} bytes of {expected}")]
    Truncated {
        /// Bytes given.
        seen: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// More bytes than the image says it has.
    #[error("state image has {extra} bytes behind its end")]
    TrailingBytes {
        /// How many too many.
        extra: u64,
    },
    /// Not an image at all.
    #[error("not a weft state image: the first 8 bytes are {seen:02x?}")]
    NotAnImage {
        /// What is there instead.
        seen: Vec<u8>,
    },
    /// Written by a newer build.
    #[error("state image has format version {seen}; this build reads up to {supported}: upgrade weft")]
    NewerVersion {
        /// The image's.
        seen: u32,
        /// Newest that can be read.
        supported: u32,
    },
    /// Bytes changed on their way.
    #[error("state image is damaged: checksum {computed:08x}, {stored:08x} expected")]
    Checksum {
        /// In the image.
        stored: u32,
        /// Of the bytes given.
        computed: u32,
    },
    /// The checksum is right and the content is not: a bug of the writer.
    #[error("state image is inconsistent: {what}")]
    Inconsistent {
        /// What does not fit.
        what: String,
    },
}
