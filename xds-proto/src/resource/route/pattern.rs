//! Regular expressions of routes. The engine takes time in proportion to the text, whatever the pattern, and texts are
//! bounded; what a pattern may cost in memory is bounded here. So nobody can stop a proxy with one.

use regex::{Regex, RegexBuilder};

/// Longest pattern, in bytes.
pub const PATTERN_BYTES_MAX: usize = 1024;

/// Largest compiled pattern, in bytes.
const COMPILED_BYTES_MAX: usize = 64 * 1024;

/// What the engine may keep while it matches, in bytes, per thread and pattern.
const DFA_BYTES_MAX: usize = 256 * 1024;

/// Groups within groups.
const NESTING_MAX: u32 = 32;

/// A pattern that must match the whole text.
///
/// # Errors
/// What is wrong with it, in one line.
pub fn whole(pattern: &str) -> Result<Regex, String> {
    // Alone first: `a)|(b` must not be made good by what is put around it.
    part(pattern)?;
    build(&format!("^(?:{pattern})$"))
}

/// A pattern that matches any part of a text.
///
/// # Errors
/// What is wrong with it, in one line.
pub fn part(pattern: &str) -> Result<Regex, String> {
    if pattern.len() > PATTERN_BYTES_MAX {
        return Err(format!("is {} bytes long, at most {PATTERN_BYTES_MAX} are allowed", pattern.len()));
    }
    build(pattern)
}

fn build(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(pattern)
        .size_limit(COMPILED_BYTES_MAX)
        .dfa_size_limit(DFA_BYTES_MAX)
        .nest_limit(NESTING_MAX)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(limit) => format!("needs more than {limit} bytes when compiled"),
            error => {
                let text = error.to_string();
                let last = text.lines().last().unwrap_or_default();
                last.trim_start_matches("error: ").to_owned()
            }
        })
}

/// A substitution (`\1` for a group) in the form that the engine takes (`${1}`).
///
/// # Errors
/// For a backslash with anything but a digit or a backslash behind it, and for a group that the pattern has not.
pub fn substitution(text: &str, pattern: &Regex) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '$' => out.push_str("$$"),
            '\\' => match chars.next() {
                Some('\\') => out.push('\\'),
                Some(digit) if digit.is_ascii_digit() => {
                    let group = usize::try_from(digit.to_digit(10).unwrap_or(0)).unwrap_or(0);
                    if group >= pattern.captures_len() {
                        return Err(format!(
                            "refers to group {group}, the pattern has {}",
                            pattern.captures_len() - 1
                        ));
                    }
                    out.push_str(&format!("${{{group}}}"));
                }
                other => {
                    let seen = other.map_or("nothing".to_owned(), |c| format!("{c:?}"));
                    return Err(format!("has {seen} behind a backslash; 0 to 9 and \\ are allowed"));
                }
            },
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_the_whole_text_or_not_at_all() {
        let regex = whole("/a|/b").unwrap();
        assert!(regex.is_match("/a") && regex.is_match("/b"));
        assert!(!regex.is_match("/ax") && !regex.is_match("x/b"));
    }

    #[test]
    fn patterns_that_cost_too_much_or_are_none_are_refused() {
        for (bad, why) in [
            ("(", "unclosed group"),
            ("a)|(b", "unopened group"),
            (r"\w{1000}{1000}", "bytes when compiled"),
            (&"(".repeat(40), ""),
            (&"a".repeat(1025), "1025 bytes long"),
            (r"(a)\1", "backreferences are not supported"),
        ] {
            let error = whole(bad).unwrap_err();
            assert!(error.contains(why) && !error.contains('\n'), "{bad}: {error}");
        }
    }

    #[test]
    fn substitutions_refer_to_groups_that_are_there() {
        let regex = part("^/a/(.*)$").unwrap();
        let text = substitution(r"/b/\1$1\\", &regex).unwrap();
        assert_eq!(regex.replace_all("/a/x", text.as_str()), r"/b/x$1\");
        assert!(substitution(r"\2", &regex).unwrap_err().contains("group 2"));
        assert!(substitution(r"\x", &regex).unwrap_err().contains("'x'"));
        assert!(substitution("\\", &regex).is_err());
    }
}
