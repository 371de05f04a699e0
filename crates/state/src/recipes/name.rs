//! Names in keys.

use crate::error::StoreError;
pub use crate::store::RESERVED_PREFIX;

/// Longest name of a semaphore, election, service or instance, in bytes.
pub const NAME_BYTES_MAX: usize = 256;

/// Refuses a name that is empty or too long.
pub(crate) fn check(name: &str) -> Result<(), StoreError> {
    if (1..=NAME_BYTES_MAX).contains(&name.len()) {
        Ok(())
    } else {
        Err(StoreError::NameOutOfRange { seen: name.len() as u64, limit: NAME_BYTES_MAX as u64 })
    }
}

/// The name as it stands in keys: bytes other than ASCII letters, digits and `-._~` become `%XX`, so that
/// a name never reaches into a key's structure.
pub fn encode(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            for digit in [byte >> 4, byte & 15] {
                encoded.push(char::from(b"0123456789ABCDEF"[usize::from(digit)]));
            }
        }
    }
    encoded
}

/// Undoes [`encode`]; none if it is not such a name.
pub fn decode(encoded: &str) -> Option<String> {
    let mut name = Vec::with_capacity(encoded.len());
    let mut bytes = encoded.bytes();
    while let Some(byte) = bytes.next() {
        name.push(match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            _ => byte,
        });
    }
    String::from_utf8(name).ok()
}

/// An id in keys and values: 16 lower-case hex digits, which sort like the number and which JSON readers
/// do not round.
pub(crate) fn hex(id: u64) -> String {
    format!("{id:016x}")
}

/// Undoes [`hex`].
pub(crate) fn unhex(digits: &str) -> Option<u64> {
    (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn structure_of_keys_is_out_of_a_names_reach() {
        assert_eq!(encode("jobs/a b%"), "jobs%2Fa%20b%25");
        assert_eq!(encode("größe"), "gr%C3%B6%C3%9Fe");
        assert_eq!(decode("a%2"), None);
        assert_eq!(decode("%zz"), None);
    }

    #[test]
    fn empty_and_overlong_names_are_refused() {
        assert_eq!(check(""), Err(StoreError::NameOutOfRange { seen: 0, limit: 256 }));
        assert_eq!(check(&"x".repeat(257)), Err(StoreError::NameOutOfRange { seen: 257, limit: 256 }));
        assert_eq!(check(&"x".repeat(256)), Ok(()));
    }

    proptest! {
        #[test]
        fn any_name_comes_back_as_it_was(name: String, id: u64) {
            prop_assert_eq!(decode(&encode(&name)), Some(name));
            prop_assert_eq!(unhex(&hex(id)), Some(id));
        }
    }
}
