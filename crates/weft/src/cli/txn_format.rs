//! The text form of a transaction, as `etcdctl txn` reads it.
//!
//! Three blocks, each ended by an empty line or the end of the text: compares, operations if all of
//! them hold, operations otherwise. A block may be empty (then its empty line stands alone). Lines that
//! begin with `#` are comments. Words are split at spaces; quotes `"…"` keep them together and know
//! `\"`, `\\`, `\n`, `\t` and `\xNN`.
//!
//! ```text
//! mod("config/color") = "5"
//! value("owner") != "me"
//!
//! put config/color "deep blue"
//! get config/ --prefix
//!
//! get config/color
//! ```
//! Compares: `value | version | create | mod | lease` (or `val`, `ver`, `c`, `m`) of a key, then
//! `=`, `!=`, `<` or `>`, then what it is compared with; a lease is in hex. Operations:
//! `put KEY VALUE [--lease=HEX] [--prev-kv]`, `get KEY [END] [--prefix] [--from-key] [--keys-only]
//! [--limit=N] [--rev=N]`, `del KEY [END] [--prefix] [--from-key] [--prev-kv]`.

use bytes::Bytes;
use weft_client::kv::{Compare, CompareOp, CompareTarget, GetOptions, KeyRange, PutOptions, Txn, TxnOp};

/// What a line may begin with, for messages.
const OPERATIONS: &str = "put KEY VALUE, get KEY, del KEY";
const COMPARES: &str = "value(\"KEY\") = \"VALUE\"; or version, create, mod, lease; with =, !=, < or >";

/// Why a text is no transaction.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub(crate) struct TxnError {
    /// From 1.
    pub(crate) line: usize,
    message: String,
}

/// Reads a transaction.
pub(crate) fn parse(text: &str) -> Result<Txn, TxnError> {
    let mut txn = Txn::default();
    let mut block = 0;
    for (index, line) in text.lines().enumerate() {
        let at = |message: String| TxnError { line: index + 1, message };
        let line = line.trim();
        if line.starts_with('#') {
            continue;
        }
        if line.is_empty() {
            block += 1;
            continue;
        }
        match block {
            0 => txn.compares.push(compare(line).map_err(at)?),
            1 => txn.success.push(operation(line).map_err(at)?),
            2 => txn.failure.push(operation(line).map_err(at)?),
            // Empty lines at the end are common; anything else after the third block is a mistake.
            _ => return Err(at("a fourth block; there are three: compares, success, failure".to_owned())),
        }
    }
    Ok(txn)
}

fn compare(line: &str) -> Result<Compare, String> {
    let shape = || format!("{line:?} is no compare; write {COMPARES}");
    let (property, rest) = line.split_once('(').ok_or_else(shape)?;
    let close = closing_parenthesis(rest).ok_or_else(shape)?;
    let key = one_word(rest[..close].trim())?;
    let rest = rest[close + 1..].trim();
    let (op, given) = [
        ("!=", CompareOp::NotEqual),
        ("=", CompareOp::Equal),
        ("<", CompareOp::Less),
        (">", CompareOp::Greater),
    ]
    .into_iter()
    .find_map(|(sign, op)| rest.strip_prefix(sign).map(|given| (op, given.trim())))
    .ok_or_else(|| format!("{rest:?} does not begin with =, !=, < or >"))?;
    let given = one_word(given)?;
    let number = || number::<i64>(&given, 10);
    let target = match property.trim() {
        "value" | "val" => CompareTarget::Value(given),
        "version" | "ver" => CompareTarget::Version(number()?),
        "create" | "c" => CompareTarget::CreateRevision(number()?),
        "mod" | "m" => CompareTarget::ModRevision(number()?),
        "lease" => CompareTarget::Lease(lease(&given)?),
        other => return Err(format!("{other:?} cannot be compared; write {COMPARES}")),
    };
    Ok(Compare { range: KeyRange::key(key), op, target })
}

/// Position of the parenthesis that ends the key, which may have some of its own within quotes.
fn closing_parenthesis(text: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, letter) in text.char_indices() {
        match letter {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ')' if !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

fn operation(line: &str) -> Result<TxnOp, String> {
    let mut arguments = Arguments::of(line)?;
    let name = arguments.next("an operation")?;
    let op = match &name[..] {
        b"put" => {
            let (key, value) = (arguments.next("a key")?, arguments.next("a value")?);
            let mut options = PutOptions::default();
            arguments.flags(|flag, given| match (flag, given) {
                ("--lease", Some(given)) => lease(given.as_bytes()).map(|id| {
                    options.lease = id;
                }),
                ("--prev-kv", None) => set(&mut options.prev_kv),
                _ => Err("put knows --lease=HEX and --prev-kv".to_owned()),
            })?;
            TxnOp::Put(key, value, options)
        }
        b"get" => {
            let (key, end) = (arguments.next("a key")?, arguments.optional());
            let (mut options, mut prefix, mut from_key) = (GetOptions::default(), false, false);
            arguments.flags(|flag, given| match (flag, given) {
                ("--prefix", None) => set(&mut prefix),
                ("--from-key", None) => set(&mut from_key),
                ("--keys-only", None) => set(&mut options.keys_only),
                ("--limit", Some(given)) => number(given.as_bytes(), 10).map(|n| {
                    options.limit = n;
                }),
                ("--rev", Some(given)) => number(given.as_bytes(), 10).map(|n| {
                    options.revision = n;
                }),
                _ => Err("get knows --prefix, --from-key, --keys-only, --limit=N and --rev=N".to_owned()),
            })?;
            TxnOp::Get(range(key, end, prefix, from_key)?, options)
        }
        b"del" | b"delete" => {
            let (key, end) = (arguments.next("a key")?, arguments.optional());
            let (mut prefix, mut from_key, mut prev_kv) = (false, false, false);
            arguments.flags(|flag, given| match (flag, given) {
                ("--prefix", None) => set(&mut prefix),
                ("--from-key", None) => set(&mut from_key),
                ("--prev-kv", None) => set(&mut prev_kv),
                _ => Err("del knows --prefix, --from-key and --prev-kv".to_owned()),
            })?;
            TxnOp::Delete(range(key, end, prefix, from_key)?, prev_kv)
        }
        other => return Err(format!("{:?} is no operation; write {OPERATIONS}", crate::output::text(other))),
    };
    arguments.end()?;
    Ok(op)
}

fn set(flag: &mut bool) -> Result<(), String> {
    *flag = true;
    Ok(())
}

/// One key, or a range said in one of three ways.
pub(crate) fn range(
    key: Bytes,
    end: Option<Bytes>,
    prefix: bool,
    from_key: bool,
) -> Result<KeyRange, String> {
    match (end, prefix, from_key) {
        (None, true, false) => Ok(KeyRange::prefix(key)),
        (None, false, true) => Ok(KeyRange::from(key)),
        (Some(end), false, false) => Ok(KeyRange::between(key, end)),
        (None, false, false) if key.is_empty() => {
            Err("the key is empty; with --prefix that means all keys".to_owned())
        }
        (None, false, false) => Ok(KeyRange::key(key)),
        _ => Err("give one of: an end of the range, --prefix, --from-key".to_owned()),
    }
}

/// A lease id as etcdctl and `weft` print it: hex.
pub(crate) fn lease(text: &[u8]) -> Result<i64, String> {
    number(text, 16).map_err(|_| format!("{:?} is no lease id; write it in hex", crate::output::text(text)))
}

fn number<T: TryFrom<i64>>(text: &[u8], radix: u32) -> Result<T, String> {
    let parsed = std::str::from_utf8(text).ok().and_then(|text| i64::from_str_radix(text, radix).ok());
    parsed
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| format!("{:?} is no number", crate::output::text(text)))
}

fn one_word(text: &str) -> Result<Bytes, String> {
    let mut arguments = Arguments::of(text)?;
    let word = arguments.next("a key or value")?;
    arguments.end()?;
    Ok(word)
}

struct Word {
    bytes: Bytes,
    quoted: bool,
}

/// The words of a line, first to last. Quoted ones are never flags.
struct Arguments {
    words: std::collections::VecDeque<Word>,
    line: String,
}

impl Arguments {
    fn of(line: &str) -> Result<Self, String> {
        Ok(Self { words: split(line)?.into(), line: line.to_owned() })
    }

    fn next(&mut self, what: &str) -> Result<Bytes, String> {
        self.optional().ok_or_else(|| format!("{:?} lacks {what}", self.line))
    }

    /// The next word that is not a flag.
    fn optional(&mut self) -> Option<Bytes> {
        let at = self.words.iter().position(|word| !is_flag(word))?;
        self.words.remove(at).map(|word| word.bytes)
    }

    fn flags(
        &mut self,
        mut take: impl FnMut(&str, Option<&str>) -> Result<(), String>,
    ) -> Result<(), String> {
        while let Some(at) = self.words.iter().position(is_flag) {
            let word = self.words.remove(at).map(|word| word.bytes).unwrap_or_default();
            let text = String::from_utf8_lossy(&word);
            let (flag, given) = match text.split_once('=') {
                Some((flag, given)) => (flag, Some(given)),
                None => (&text[..], None),
            };
            take(flag, given).map_err(|why| format!("{}: {why}", text.escape_debug()))?;
        }
        Ok(())
    }

    fn end(self) -> Result<(), String> {
        match self.words.front() {
            None => Ok(()),
            Some(word) => Err(format!(
                "{:?} is one word too many; put words with spaces between quotes",
                crate::output::text(&word.bytes)
            )),
        }
    }
}

fn is_flag(word: &Word) -> bool {
    !word.quoted && word.bytes.starts_with(b"--")
}

fn split(line: &str) -> Result<Vec<Word>, String> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('"') {
            Some(quoted) => {
                let (bytes, after) = unquote(quoted)?;
                (Word { bytes, quoted: true }, after)
            }
            None => {
                let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
                (Word { bytes: Bytes::copy_from_slice(&rest.as_bytes()[..end]), quoted: false }, &rest[end..])
            }
        };
        if after.chars().next().is_some_and(|letter| !letter.is_whitespace()) {
            return Err(format!("{line:?}: a closing quote must be followed by a space"));
        }
        words.push(word);
        rest = after.trim_start();
    }
    Ok(words)
}

/// Reads up to the closing quote; answers what comes after it.
fn unquote(text: &str) -> Result<(Bytes, &str), String> {
    let mut bytes = Vec::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Ok((bytes.into(), &text[at + 1..])),
            '\\' => match letters.next().map(|(_, letter)| letter) {
                Some('n') => bytes.push(b'\n'),
                Some('t') => bytes.push(b'\t'),
                Some(letter @ ('"' | '\\')) => bytes.push(letter as u8),
                Some('x') => {
                    let digits: String = letters.by_ref().take(2).map(|(_, letter)| letter).collect();
                    // Numbers are read with a sign, too.
                    let is_byte = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
                    let byte = u8::from_str_radix(&digits, 16).ok().filter(|_| is_byte);
                    let seen = digits.escape_debug();
                    bytes.push(byte.ok_or_else(|| format!("\\x{seen} is no byte; write two hex digits"))?);
                }
                other => {
                    let seen = other.map(|letter| letter.escape_debug().to_string()).unwrap_or_default();
                    return Err(format!("\\{seen} is unknown; known are \\\" \\\\ \\n \\t \\xNN"));
                }
            },
            letter => bytes.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Err("a quote is not closed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn three_blocks_are_compares_success_and_failure() {
        let text = "# only if nobody was faster\nmod(\"k\") = \"0\"\nvalue(\"o\") != \"me\"\n\nput k \"a b\"\nget k/ --prefix --limit=3\n\ndel k --prev-kv\n";
        let txn = parse(text).unwrap();
        assert_eq!(
            txn.compares,
            [
                Compare { range: "k".into(), op: CompareOp::Equal, target: CompareTarget::ModRevision(0) },
                Compare {
                    range: "o".into(),
                    op: CompareOp::NotEqual,
                    target: CompareTarget::Value("me".into())
                },
            ]
        );
        let limited = GetOptions { limit: 3, ..GetOptions::default() };
        assert_eq!(
            txn.success,
            [
                TxnOp::Put("k".into(), "a b".into(), PutOptions::default()),
                TxnOp::Get(KeyRange::prefix("k/"), limited)
            ]
        );
        assert_eq!(txn.failure, [TxnOp::Delete("k".into(), true)]);
    }

    #[test]
    fn an_empty_first_block_is_an_empty_line() {
        let txn = parse("\nput a 1\n").unwrap();
        assert!(txn.compares.is_empty() && txn.failure.is_empty());
        assert_eq!(txn.success.len(), 1);
        assert_eq!(parse("").unwrap(), Txn::default());
        assert_eq!(parse("\n\n\n\n").unwrap(), Txn::default());
    }

    #[test]
    fn properties_have_short_and_long_names() {
        for (line, target) in [
            ("ver(\"k\") > 3", CompareTarget::Version(3)),
            ("version(k) > \"3\"", CompareTarget::Version(3)),
            ("create(\"k\") > \"3\"", CompareTarget::CreateRevision(3)),
            ("c(\"k\") > \"3\"", CompareTarget::CreateRevision(3)),
            ("lease(\"k\") > \"ff\"", CompareTarget::Lease(255)),
        ] {
            let txn = parse(line).unwrap();
            assert_eq!(
                (txn.compares[0].op, &txn.compares[0].target),
                (CompareOp::Greater, &target),
                "{line}"
            );
        }
        let odd = parse("value(\"a)(\\\"b\") = \"=\"").unwrap();
        assert_eq!(odd.compares[0].range, KeyRange::key("a)(\"b"));
    }

    #[test]
    fn quotes_and_escapes_make_any_bytes() {
        let txn = parse("\nput \"a b\" \"\\x00\\n\\\"ü\"\nput -- \"--prefix\"\n");
        assert!(txn.is_err(), "`--` is no key");
        let txn = parse("\nput \"a b\" \"\\x00\\n\\\"ü\"\nput k \"--prefix\"\n").unwrap();
        assert_eq!(
            txn.success,
            [
                TxnOp::Put("a b".into(), Bytes::from_static(b"\0\n\"\xc3\xbc"), PutOptions::default()),
                TxnOp::Put("k".into(), "--prefix".into(), PutOptions::default()),
            ]
        );
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, line, part) in [
            ("mod(\"k\") ~ \"0\"", 1, "=, !=, < or >"),
            ("size(\"k\") = \"0\"", 1, "cannot be compared"),
            ("mod(\"k\" = \"0\"", 1, "no compare"),
            ("mod(\"k\") = \"abc\"", 1, "no number"),
            ("lease(\"k\") = \"xyz\"", 1, "hex"),
            ("\nput a", 2, "lacks a value"),
            ("\nput a b c", 2, "one word too many"),
            ("\npush a b", 2, "no operation"),
            ("\nget a --sorted", 2, "get knows"),
            ("\nput a \"b", 2, "not closed"),
            ("\nput a \"b\"c", 2, "followed by a space"),
            ("\nput a \"\\q\"", 2, "unknown"),
            ("\nget a b --prefix", 2, "one of"),
            ("\n\n\nput a b", 4, "fourth block"),
        ] {
            let text = error(text);
            assert!(text.starts_with(&format!("line {line}: ")) && text.contains(part), "{text}");
        }
    }
}
