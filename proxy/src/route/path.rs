//! A path in its normal form, so that what a route lets through is what its service is asked for.
//!
//! Services read paths in their own ways: some decode `%2e%2e`, some join `//`, some take `\` for `/`. A route that is
//! matched on one reading and served on another can be walked around. So, where there are routes, a path is brought
//! into one form before it is matched, and is forwarded in that form (RFC 3986 §6.2.2):
//!
//! - characters that need no encoding are decoded, and hex digits are in upper case;
//! - `.` and `..` segments are resolved, not above the root;
//! - slashes that follow each other are one.
//!
//! An encoded slash or backslash stays encoded and is no separator: it may be part of a name. But a path in which
//! decoding them would make a dot segment has no reading that all agree on, and is refused; so are a raw backslash, an
//! encoded NUL, and a `%` without two hex digits.

use std::borrow::Cow;

/// Why a path has no normal form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// `%` and something else than two hex digits.
    #[error("it has a % without two hex digits behind it")]
    Encoding,
    /// `%00`.
    #[error("it has an encoded NUL")]
    Nul,
    /// `\`.
    #[error("it has a backslash")]
    Backslash,
    /// `..%2f` and the like.
    #[error("it has a dot segment behind an encoded slash or backslash")]
    HiddenDots,
}

/// The normal form of a path that starts with `/`; others (`*`) are left alone. Borrows if it is in that form already,
/// which costs one look at it.
///
/// # Errors
/// If it has none.
pub fn normalise(path: &str) -> Result<Cow<'_, str>, PathError> {
    if !path.starts_with('/') || !is_doubtful(path.as_bytes()) {
        return Ok(Cow::Borrowed(path));
    }
    let decoded = decode(path)?;
    if has_hidden_dots(&decoded) {
        return Err(PathError::HiddenDots);
    }
    let resolved = resolve(&decoded);
    Ok(if resolved == path { Cow::Borrowed(path) } else { Cow::Owned(resolved) })
}

/// Whether it has anything that [`normalise`] looks at.
fn is_doubtful(path: &[u8]) -> bool {
    path.iter().zip(path.iter().skip(1).chain([&b'x'])).any(|(byte, next)| match byte {
        b'%' | b'\\' => true,
        b'/' => matches!(next, b'/' | b'.'),
        _ => false,
    })
}

fn decode(path: &str) -> Result<String, PathError> {
    let bytes = path.as_bytes();
    let mut out = String::with_capacity(path.len());
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'\\' => return Err(PathError::Backslash),
            b'%' => {
                let byte = bytes.get(i + 1..i + 3).and_then(hex).ok_or(PathError::Encoding)?;
                match byte {
                    0 => return Err(PathError::Nul),
                    _ if is_unreserved(byte) => out.push(char::from(byte)),
                    _ => {
                        out.push('%');
                        out.push(char::from(bytes[i + 1].to_ascii_uppercase()));
                        out.push(char::from(bytes[i + 2].to_ascii_uppercase()));
                    }
                }
                i += 3;
            }
            byte => {
                // Request lines are ASCII: the guard and h2 refuse others.
                out.push(char::from(byte));
                i += 1;
            }
        }
    }
    Ok(out)
}

fn hex(digits: &[u8]) -> Option<u8> {
    let digit = |b: u8| char::from(b).to_digit(16);
    u8::try_from(digit(digits[0])? * 16 + digit(digits[1])?).ok()
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Whether a segment has a part between encoded slashes that is `.` or `..`, parameters (`;x`) aside: some servers
/// take them off before they look.
fn has_hidden_dots(path: &str) -> bool {
    path.split('/').any(|segment| {
        let hidden = segment.contains("%2F") || segment.contains("%5C");
        let parts = segment.split("%2F").flat_map(|s| s.split("%5C"));
        hidden && parts.map(|part| part.split(';').next().unwrap_or_default()).any(|p| p == "." || p == "..")
            || segment.starts_with("..;")
    })
}

fn resolve(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    let mut directory = false;
    for segment in path.split('/').skip(1) {
        directory = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            name => segments.push(name),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in &segments {
        out.push('/');
        out.push_str(segment);
    }
    if directory || segments.is_empty() {
        out.push('/');
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_have_one_form() {
        for (path, form) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("/a//b///c", "/a/b/c"),
            ("//a", "/a"),
            ("/a/./b/../c", "/a/c"),
            ("/a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/../../a", "/a"),
            ("/%2e%2E/a", "/a"),
            ("/a/%2e%2e/b", "/b"),
            ("/%61dmin", "/admin"),
            ("/a%2fb", "/a%2Fb"),
            ("/a%3bb", "/a%3Bb"),
            ("/a%20b", "/a%20b"),
            ("/.well-known/x", "/.well-known/x"),
            ("/..a", "/..a"),
            ("/a;b=c", "/a;b=c"),
            ("*", "*"),
        ] {
            assert_eq!(normalise(path).unwrap(), form, "{path}");
        }
        assert!(matches!(normalise("/a/b.c"), Ok(Cow::Borrowed(_))), "nothing allocated");
    }

    #[test]
    fn paths_that_services_read_differently_are_refused() {
        for (path, error) in [
            ("/a\\..\\b", PathError::Backslash),
            ("/a%00", PathError::Nul),
            ("/a%", PathError::Encoding),
            ("/a%2", PathError::Encoding),
            ("/a%zz", PathError::Encoding),
            ("/a/..%2fadmin", PathError::HiddenDots),
            ("/a%2f..%2fadmin", PathError::HiddenDots),
            ("/a%2f%2e%2e/admin", PathError::HiddenDots),
            ("/a%5c..%5cadmin", PathError::HiddenDots),
            ("/a/..;/admin", PathError::HiddenDots),
            ("/a%2f..;x/admin", PathError::HiddenDots),
        ] {
            assert_eq!(normalise(path), Err(error), "{path}");
        }
    }

    proptest! {
        #[test]
        fn the_normal_form_is_normal_and_has_no_dots_and_no_double_slashes(path in "/[ab./%2efF;]{0,16}") {
            if let Ok(form) = normalise(&path) {
                prop_assert_eq!(normalise(&form).unwrap(), form.clone());
                prop_assert!(form.starts_with('/') && !form.contains("//"));
                prop_assert!(!form.split('/').any(|s| s == "." || s == ".."), "{}", form);
            }
        }
    }
}
