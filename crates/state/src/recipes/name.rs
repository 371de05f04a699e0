//! Names and keys of the recipes.

/// All keys that Weft's own APIs write start with this.
pub const RESERVED_PREFIX: &[u8] = b"weft/";

/// Longest name of a semaphore, election, service or instance, in bytes.
pub const NAME_BYTES_MAX: usize = 256;

/// The name as it stands in keys: bytes other than ASCII letters, digits and `-._~` become `%XX`.
pub fn encode(name: &str) -> String {
    name.to_owned()
}

/// Undoes [`encode`]; none if it is not such a name.
pub fn decode(encoded: &str) -> Option<String> {
    Some(encoded.to_owned())
}
