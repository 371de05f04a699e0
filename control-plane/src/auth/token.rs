//! Tokens: what a user may show instead of a password. They say themselves who they are for and until when, and are signed
//! with a key that all servers have: `HEX(claims).HEX(HMAC-SHA-256)`.

use aws_lc_rs::hmac;
use serde::{Deserialize, Serialize};

use super::password::{hex, unhex};

/// Longest token that is looked at, in bytes; a user's name is the only part of variable length.
const TOKEN_BYTES_MAX: usize = 1024;

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// For whom.
    pub user: String,
    /// `AuthState::since` of the user when it was issued: the token ends with the password.
    pub since: u64,
    /// Seconds since 1970 from which on it is not valid.
    pub expires: u64,
}

/// A token that says this.
pub fn issue(key: &[u8], claims: &Claims) -> String {
    let claims = postcard::to_allocvec(claims).expect("a vector takes any record of plain fields");
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), &claims);
    format!("{}.{}", hex(&claims), hex(tag.as_ref()))
}

/// What a token says, if it was signed with this key and is valid now; none else.
pub fn verify(key: &[u8], token: &str, now: u64) -> Option<Claims> {
    if token.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let (claims, tag) = token.split_once('.')?;
    let (claims, tag) = (unhex(claims)?, unhex(tag)?);
    hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, key), &claims, &tag).ok()?;
    let (claims, rest) = postcard::take_from_bytes::<Claims>(&claims).ok()?;
    (rest.is_empty() && now < claims.expires).then_some(claims)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claims() -> Claims {
        Claims { user: "app".into(), since: 7, expires: 1_000 }
    }

    #[test]
    fn a_token_is_valid_until_it_expires_and_only_under_its_key() {
        let token = issue(b"key", &claims());
        assert_eq!(verify(b"key", &token, 999), Some(claims()));
        assert_eq!(verify(b"key", &token, 1_000), None);
        assert_eq!(verify(b"other", &token, 999), None);
    }

    #[test]
    fn a_token_with_any_letter_changed_is_refused() {
        let token = issue(b"key", &claims());
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
            assert_eq!(verify(b"key", std::str::from_utf8(&changed).expect("ASCII"), 999), None, "at {at}");
        }
    }

    #[test]
    fn the_longest_name_fits() {
        let long = Claims { user: "x".repeat(weft_state::auth::AUTH_NAME_BYTES_MAX), ..claims() };
        assert_eq!(verify(b"key", &issue(b"key", &long), 0), Some(long));
        assert_eq!(verify(b"key", &"0".repeat(TOKEN_BYTES_MAX + 1), 0), None);
    }

    proptest! {
        #[test]
        fn anything_else_is_refused(token: String) {
            prop_assert_eq!(verify(b"key", &token, 0), None);
        }
    }
}
