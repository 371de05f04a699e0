//! Passwords as they are kept: PBKDF2 with HMAC-SHA-512, from the library that already does our TLS.
//!
//! A hash says how it was made, so the cost can be raised without invalidating the ones there are:
//! `pbkdf2-sha512$210000$SALT$HASH`, both in hex.

use std::num::NonZeroU32;

use aws_lc_rs::{error::Unspecified, pbkdf2, rand};

/// Longest password in bytes. A longer one is refused, not cut.
pub const PASSWORD_BYTES_MAX: usize = 1024;

/// What OWASP's password storage guide recommends for this algorithm (2023): about 0.1 s of one core.
pub const ITERATIONS: NonZeroU32 = NonZeroU32::new(210_000).expect("not zero");

/// More than this is not computed for anyone: a hash comes from the replicated state, but a damaged one must not
/// take a core for hours.
const ITERATIONS_MAX: u32 = 100 * ITERATIONS.get();

const NAME: &str = "pbkdf2-sha512";
const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;

/// Hashes a password with a fresh salt. Takes [`ITERATIONS`] worth of time.
///
/// # Errors
/// If the system gives no random bytes.
pub fn hash(password: &str, iterations: NonZeroU32) -> Result<String, Unspecified> {
    let mut salt = [0; SALT_BYTES];
    rand::fill(&mut salt)?;
    let mut hash = [0; HASH_BYTES];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA512, iterations, &salt, password.as_bytes(), &mut hash);
    Ok(format!("{NAME}${iterations}${}${}", hex(&salt), hex(&hash)))
}

/// Whether the password is the one that was hashed. False also for a hash that cannot be read.
pub fn verify(password: &str, hash: &str) -> bool {
    let Some((iterations, salt, hash)) = parse(hash) else { return false };
    pbkdf2::verify(pbkdf2::PBKDF2_HMAC_SHA512, iterations, &salt, password.as_bytes(), &hash).is_ok()
}

fn parse(hash: &str) -> Option<(NonZeroU32, Vec<u8>, Vec<u8>)> {
    let mut parts = hash.strip_prefix(NAME)?.strip_prefix('$')?.split('$');
    let iterations = parts.next()?.parse().ok().filter(|n: &NonZeroU32| n.get() <= ITERATIONS_MAX)?;
    let (salt, hash) = (unhex(parts.next()?)?, unhex(parts.next()?)?);
    parts.next().is_none().then_some((iterations, salt, hash)).filter(|(_, _, hash)| !hash.is_empty())
}

/// Lower-case hex digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Undoes [`hex`].
pub(super) fn unhex(digits: &str) -> Option<Vec<u8>> {
    let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    if digits.len().is_multiple_of(2) && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        (0..digits.len()).step_by(2).map(byte).collect()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEW: NonZeroU32 = NonZeroU32::new(10).expect("not zero");

    #[test]
    fn only_the_password_that_was_hashed_is_accepted() {
        let hashed = hash("secret", FEW).expect("random bytes");
        assert!(hashed.starts_with("pbkdf2-sha512$10$"), "{hashed}");
        assert!(verify("secret", &hashed));
        assert!(!verify("secret ", &hashed) && !verify("", &hashed));
        assert_ne!(hashed, hash("secret", FEW).expect("random bytes"), "each has its own salt");
    }

    #[test]
    fn a_hash_that_cannot_be_read_accepts_nothing() {
        let hashed = hash("", FEW).expect("random bytes");
        assert!(verify("", &hashed));
        let huge = hashed.replace("$10$", "$4000000000$");
        let cut = &hashed[..hashed.rfind('$').expect("has parts") + 1];
        for bad in
            ["", "pbkdf2-sha512", "pbkdf2-sha512$0$00$00", "md5$1$00$00", cut, &huge, &format!("{hashed}$")]
        {
            assert!(!verify("", bad), "{bad}");
        }
    }

    #[test]
    fn hex_that_is_none_is_refused() {
        assert_eq!(unhex("00ff"), Some(vec![0, 255]));
        for bad in ["0", "0g", "+1", "é"] {
            assert_eq!(unhex(bad), None, "{bad}");
        }
    }
}
