//! Parsers are given arbitrary input: bytes at random, texts that come near the grammar, and known inputs that were
//! damaged. For tests alone.
//!
//! The known inputs of a parser are the files of a folder, `tests/corpus/PARSER` of its crate. What a file is called says
//! what becomes of it: one whose name begins with `good` is taken, one with `bad` is refused. To add an input, add a file.

use std::fmt;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

/// Damages of one input.
const DAMAGES_MAX: usize = 4;

/// Gives `parser` all of the folder, as it stands and damaged, any bytes, and texts of the pattern `near`: 256 inputs, or as
/// many as `PROPTEST_CASES` says. It answers whether it has taken an input, and checks itself what holds of one that it takes.
///
/// # Panics
/// If the parser does, with the smallest input that was found; if a file is taken whose name says that it is refused, or
/// the other way round; and if the folder has no good input.
pub fn feed(folder: &str, near: &str, parser: impl Fn(&[u8]) -> bool) {
    feed_known(folder, known(Path::new(folder)), near, parser);
}

/// As [`feed`], for a parser of texts. Bytes that are none become the sign for them (U+FFFD), and a file's last line end is
/// its editor's.
///
/// # Panics
/// As [`feed`].
pub fn feed_text(folder: &str, near: &str, parser: impl Fn(&str) -> bool) {
    let mut known = known(Path::new(folder));
    for (_, bytes) in &mut known {
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        }
    }
    feed_known(folder, known, near, |bytes| parser(&String::from_utf8_lossy(bytes)));
}

fn feed_known(folder: &str, known: Vec<(String, Vec<u8>)>, near: &str, parser: impl Fn(&[u8]) -> bool) {
    for (name, bytes) in &known {
        let good = name.starts_with("good");
        assert!(good || name.starts_with("bad"), "{folder}/{name}: no name for an input");
        assert_eq!(parser(bytes), good, "{folder}/{name} is taken");
    }
    let good: Vec<_> = known.into_iter().map(|(_, bytes)| bytes).collect();
    let near = proptest::string::string_regex(near).expect("a pattern that is written down in a test");
    let input = prop_oneof![
        2 => prop::collection::vec(any::<u8>(), 0..200),
        3 => near.prop_map(String::into_bytes),
        5 => damaged(good),
    ];
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
    let run = runner.run(&input.prop_map(Input), |input| {
        parser(&input.0);
        Ok(())
    });
    if let Err(why) = run {
        panic!("{folder}: {why}");
    }
}

/// The files of a folder, by name.
fn known(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut all: Vec<_> = entries
        .map(|entry| {
            let path = entry.expect("a folder can be listed").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (name, fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
        })
        .collect();
    all.sort();
    assert!(all.iter().any(|(name, _)| name.starts_with("good")), "{}: nothing good", folder.display());
    all
}

/// Shown as a text.
struct Input(Vec<u8>);

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

/// What happens to an input, somewhere in it.
#[derive(Debug, Clone)]
enum Damage {
    Flip(Index, u8),
    Put(Index, Vec<u8>),
    Remove(Index, Index),
    Repeat(Index, Index),
    Cut(Index),
    /// Goes on as another one does.
    Cross(Index, Index),
}

impl Damage {
    fn to(&self, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
        // Half-open, and never empty of places: the end is one.
        let at = |index: &Index| index.index(bytes.len() + 1);
        let span = |one: &Index, two: &Index| {
            let (one, two) = (at(one), at(two));
            one.min(two)..one.max(two)
        };
        match self {
            Self::Flip(index, bits) => {
                let at = at(index);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= bits;
                }
            }
            Self::Put(index, more) => {
                let at = at(index);
                bytes.splice(at..at, more.iter().copied());
            }
            Self::Remove(one, two) => {
                bytes.drain(span(one, two));
            }
            Self::Repeat(one, two) => {
                let span = span(one, two);
                let again = bytes[span.clone()].to_vec();
                bytes.splice(span.end..span.end, again);
            }
            Self::Cut(index) => bytes.truncate(at(index)),
            Self::Cross(index, which) => {
                let (at, other) = (at(index), &others[which.index(others.len())]);
                bytes.truncate(at);
                bytes.extend(other.iter().skip(at));
            }
        }
    }
}

/// One of them with something done to it, or nothing.
fn damaged(good: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let at = any::<Index>;
    let damage = prop_oneof![
        (at(), 1u8..).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        (at(), prop::collection::vec(any::<u8>(), 1..5)).prop_map(|(at, more)| Damage::Put(at, more)),
        (at(), "[ -~]{1,4}").prop_map(|(at, more)| Damage::Put(at, more.into_bytes())),
        (at(), at()).prop_map(|(one, two)| Damage::Remove(one, two)),
        (at(), at()).prop_map(|(one, two)| Damage::Repeat(one, two)),
        at().prop_map(Damage::Cut),
        (at(), at()).prop_map(|(at, which)| Damage::Cross(at, which)),
    ];
    (any::<Index>(), prop::collection::vec(damage, 0..=DAMAGES_MAX)).prop_map(move |(which, damages)| {
        let mut bytes = good[which.index(good.len())].clone();
        for damage in damages {
            damage.to(&mut bytes, &good);
        }
        bytes
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/number");

    #[test]
    fn a_parser_is_given_what_it_takes_and_what_it_refuses() {
        let taken = std::cell::Cell::new((0, 0));
        feed_text(NUMBERS, "[0-9]{1,4}", |text| {
            let (is, is_not) = taken.get();
            let number = text.parse::<u16>().is_ok();
            taken.set((is + u32::from(number), is_not + u32::from(!number)));
            number
        });
        let (is, is_not) = taken.get();
        assert!(is > 20 && is_not > 20, "{is} {is_not}");
    }

    #[test]
    #[should_panic(expected = "bad-large is taken")]
    fn a_bad_input_that_is_taken_fails_the_test() {
        feed_text(NUMBERS, "[0-9]{1,4}", |text| text.parse::<u32>().is_ok());
    }

    #[test]
    #[should_panic(expected = "minimal failing input")]
    fn a_parser_that_panics_fails_the_test_with_a_small_input() {
        feed_text(NUMBERS, "[0-9]{1,4}", |text| {
            assert!(text.len() < 30 || !text.contains('7'));
            text.parse::<u16>().is_ok()
        });
    }
}
