//! Configuration files: YAML into one typed struct, with errors that say where.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::limits::CONFIG_FILE_BYTES_MAX;

/// Why a configuration file was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read configuration file {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// From the file system.
        source: std::io::Error,
    },
    /// It is larger than any configuration is.
    #[error("configuration file {path} is larger than {limit} bytes", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit, in bytes.
        limit: u64,
    },
    /// It is no YAML, or has an unknown key, or a value out of range.
    #[error("{path}:{line}:{column}: {at}{message}", path = path.display(), at = at_key(key))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// From 1; 0 when not known.
        line: u64,
        /// From 1; 0 when not known.
        column: u64,
        /// Dotted path of the key on that line; empty at the top level or when not known.
        key: String,
        /// What is wrong.
        message: String,
    },
}

fn at_key(key: &str) -> String {
    if key.is_empty() { String::new() } else { format!("at `{key}`: ") }
}

/// Reads a YAML file into `T`. Unknown keys are errors if `T` says `deny_unknown_fields`, as all ours do.
///
/// # Errors
/// With file, line, column and key.
pub fn load_yaml<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<T, ConfigError> {
    let path = path.as_ref();
    parse_yaml(path, &read_text(path)?)
}

/// The text of a configuration file.
///
/// # Errors
/// If it cannot be read, is too large or is no text.
pub fn read_text(path: &Path) -> Result<String, ConfigError> {
    let read = |source| ConfigError::Read { path: path.to_path_buf(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(read)?.take(CONFIG_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(read)?;
    if bytes.len() as u64 > CONFIG_FILE_BYTES_MAX {
        return Err(ConfigError::TooLarge { path: path.to_path_buf(), limit: CONFIG_FILE_BYTES_MAX });
    }
    String::from_utf8(bytes).map_err(|e| ConfigError::Invalid {
        path: path.to_path_buf(),
        line: 0,
        column: 0,
        key: String::new(),
        message: format!("is not UTF-8 text (first bad byte at offset {})", e.utf8_error().valid_up_to()),
    })
}

/// As [`load_yaml`], from a text; `path` is only for errors.
///
/// # Errors
/// With file, line, column and key.
pub fn parse_yaml<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    serde_saphyr::from_str(text).map_err(|error| {
        let error = error.without_snippet();
        let (line, column) = error.location().map_or((0, 0), |l| (l.line(), l.column()));
        ConfigError::Invalid {
            path: path.to_path_buf(),
            line,
            column,
            key: key_at(text, line),
            message: without_position(&error.to_string()),
        }
    })
}

/// The parser puts the position first or last; ours stands in front of the message already.
fn without_position(message: &str) -> String {
    let message = message.lines().next().unwrap_or_default();
    let message = match message.strip_prefix("error: ") {
        Some(rest) => rest,
        None => message,
    };
    let message = match message.strip_prefix("line ") {
        Some(rest) => rest.split_once(": ").map_or(message, |(_, m)| m),
        None => message,
    };
    match message.rfind(" at line ") {
        Some(cut) => message[..cut].to_owned(),
        None => message.to_owned(),
    }
}

/// Dotted path of the block-mapping key on a line (from 1), found by indentation: good enough to lead a person to
/// it, never used for meaning.
fn key_at(text: &str, line: u64) -> String {
    let Ok(line) = usize::try_from(line) else {
        return String::new();
    };
    let lines: Vec<&str> = text.lines().take(line).collect();
    if line == 0 || lines.len() < line {
        return String::new();
    }
    let mut path = Vec::new();
    let mut inner = usize::MAX;
    for text in lines.iter().rev() {
        let Some((indent, key)) = key_of(text) else {
            continue;
        };
        if indent < inner {
            path.push(key);
            inner = indent;
        }
        if inner == 0 {
            break;
        }
    }
    path.reverse();
    path.join(".")
}

fn key_of(line: &str) -> Option<(usize, &str)> {
    let text = line.trim_start_matches([' ', '-']);
    let indent = line.len() - text.len();
    let (key, rest) = text.split_once(':')?;
    let plain = !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'));
    (plain && (rest.is_empty() || rest.starts_with(' '))).then_some((indent, key))
}

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{seen:?} is not a duration; write a number with a unit, such as 200ms, 5s, 1m or 2h")]
pub struct DurationError {
    /// What was given.
    pub seen: String,
}

const NANOS_PER_SEC: u128 = 1_000_000_000;

/// Parses `200ms`, `5s`, `1.5s`, `1m`, `2h`, `1d`. A unit is required, so that nobody has to guess it.
///
/// # Errors
/// For anything else, negative and non-finite numbers included.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let error = || DurationError { seen: text.to_owned() };
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(error)?;
    let (number, unit) = text.split_at(split);
    let unit_nanos: u128 = match unit {
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => NANOS_PER_SEC,
        "m" => 60 * NANOS_PER_SEC,
        "h" => 3_600 * NANOS_PER_SEC,
        "d" => 86_400 * NANOS_PER_SEC,
        _ => return Err(error()),
    };
    // In whole nanoseconds: binary fractions would make another duration of some.
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return Err(error());
    }
    let whole = if whole.is_empty() { 0 } else { whole.parse::<u128>().map_err(|_| error())? };
    let whole = whole.checked_mul(unit_nanos).ok_or_else(error)?;
    let (part, _) = fraction.bytes().fold((0, unit_nanos), |(nanos, tenfold), digit| {
        (nanos + tenfold * u128::from(digit - b'0') / 10, tenfold / 10)
    });
    let nanos = whole.checked_add(part).ok_or_else(error)?;
    let secs = u64::try_from(nanos / NANOS_PER_SEC).map_err(|_| error())?;
    let below = u32::try_from(nanos % NANOS_PER_SEC).expect("below 10^9");
    Ok(Duration::new(secs, below))
}

/// Writes a duration so that [`parse_duration`] reads it back, in the largest unit without a fraction;
/// only what is below a microsecond is written as one.
pub fn format_duration(d: Duration) -> String {
    let millis = d.as_millis();
    match millis {
        _ if !d.subsec_nanos().is_multiple_of(1_000) => {
            format!("{}.{:03}us", d.as_micros(), d.subsec_nanos() % 1_000)
        }
        _ if !d.subsec_nanos().is_multiple_of(1_000_000) => format!("{}us", d.as_micros()),
        0 => "0s".to_owned(),
        m if m % 3_600_000 == 0 => format!("{}h", m / 3_600_000),
        m if m % 60_000 == 0 => format!("{}m", m / 60_000),
        m if m % 1_000 == 0 => format!("{}s", m / 1_000),
        m => format!("{m}ms"),
    }
}

/// Why a text is not a number of bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{seen:?} is not a size; write a whole number with a unit, such as 512B, 64KiB, 256MiB or 2GiB")]
pub struct BytesError {
    /// What was given.
    pub seen: String,
}

/// Units of sizes, largest first.
const SIZES: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Parses `512B`, `64KiB`, `256MiB`, `2GiB`. A unit is required, so that nobody has to guess it.
///
/// # Errors
/// For anything else, and for numbers that are too large.
pub fn parse_bytes(text: &str) -> Result<u64, BytesError> {
    let error = || BytesError { seen: text.to_owned() };
    let (unit, bytes) = SIZES.into_iter().find(|(unit, _)| text.ends_with(unit)).ok_or_else(error)?;
    let number: u64 = text[..text.len() - unit.len()].parse().map_err(|_| error())?;
    number.checked_mul(bytes).ok_or_else(error)
}

/// Writes a size for people, with one decimal in the unit in which it is at least 1.
pub fn format_bytes(bytes: u64) -> String {
    match SIZES.into_iter().find(|(_, size)| bytes >= *size) {
        Some((unit, 1)) => format!("{bytes} {unit}"),
        Some((unit, size)) => format!("{:.1} {unit}", bytes as f64 / size as f64),
        None => "0 B".to_owned(),
    }
}

/// For `#[serde(with = "weft_core::config::duration")]` on a [`Duration`].
pub mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// As [`super::format_duration`].
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(d: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&super::format_duration(*d))
    }

    /// As [`super::parse_duration`].
    ///
    /// # Errors
    /// For a text that is no duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(d)?;
        super::parse_duration(&text).map_err(D::Error::custom)
    }

    /// For `#[serde(default, with = "weft_core::config::duration::option")]` on an `Option<Duration>`.
    pub mod option {
        use std::time::Duration;

        use serde::{Deserialize, Deserializer, Serializer, de::Error};

        /// As [`super::serialize`]; nothing for `None`.
        ///
        /// # Errors
        /// Those of the serializer.
        pub fn serialize<S: Serializer>(d: &Option<Duration>, s: S) -> Result<S::Ok, S::Error> {
            match d {
                Some(d) => super::serialize(d, s),
                None => s.serialize_none(),
            }
        }

        /// As [`super::deserialize`].
        ///
        /// # Errors
        /// For a text that is no duration.
        pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
            Option::<String>::deserialize(d)?
                .map(|text| crate::config::parse_duration(&text).map_err(D::Error::custom))
                .transpose()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        name: String,
        #[serde(default)]
        limits: Limits,
        #[serde(default, with = "duration::option")]
        wait: Option<Duration>,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Limits {
        requests: u16,
    }

    fn error(text: &str) -> ConfigError {
        parse_yaml::<Sample>(Path::new("weft.yaml"), text).unwrap_err()
    }

    #[test]
    fn sizes_need_a_unit_and_are_written_for_people() {
        let parsed = ["0B", "512B", "64KiB", "3GiB"].map(|text| super::parse_bytes(text).unwrap());
        assert_eq!(parsed, [0, 512, 65_536, 3 << 30]);
        for bad in ["", "5", "KiB", "1.5MiB", "-1B", "99999999TiB", "5 MB"] {
            assert!(super::parse_bytes(bad).unwrap_err().to_string().contains(&format!("{bad:?}")), "{bad}");
        }
        assert_eq!(
            [0, 1_023, 1_536, 5 << 20].map(super::format_bytes),
            ["0 B", "1023 B", "1.5 KiB", "5.0 MiB"]
        );
    }

    #[test]
    fn a_valid_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("weft.yaml");
        std::fs::write(&file, "name: a\nlimits:\n  requests: 3\nwait: 200ms\n").unwrap();
        let expected = Sample {
            name: "a".into(),
            limits: Limits { requests: 3 },
            wait: Some(Duration::from_millis(200)),
        };
        assert_eq!(load_yaml::<Sample>(&file).unwrap(), expected);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place() {
        let text = error("name: a\nlimits:\n  requests: 3\n  request: 4\n").to_string();
        assert!(text.starts_with("weft.yaml:4:3: at `limits.request`: "), "{text}");
        assert!(text.contains("unknown field"), "{text}");
        assert!(text.contains("requests"), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }

    #[test]
    fn a_value_out_of_range_is_named_with_its_place() {
        let ConfigError::Invalid { line, key, message, .. } = error("name: a\nlimits:\n  requests: 70000\n")
        else {
            panic!("wrong variant");
        };
        assert_eq!((line, key.as_str()), (3, "limits.requests"));
        assert!(!message.is_empty());
    }

    #[test]
    fn broken_yaml_has_a_place() {
        let text = error("name: [a\nlimits: 3\n").to_string();
        assert!(text.starts_with("weft.yaml:"), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let text = load_yaml::<Sample>("/nonexistent/weft.yaml").unwrap_err().to_string();
        assert!(text.contains("/nonexistent/weft.yaml"), "{text}");
    }

    #[test]
    fn a_file_beyond_the_limit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("big");
        std::fs::File::create(&file).unwrap().set_len(CONFIG_FILE_BYTES_MAX + 1).unwrap();
        assert!(matches!(load_yaml::<Sample>(&file), Err(ConfigError::TooLarge { .. })));
    }

    #[test]
    fn durations_need_a_unit() {
        for (text, millis) in [
            ("200ms", 200),
            ("5s", 5_000),
            ("1.5s", 1_500),
            (".5s", 500),
            ("1m", 60_000),
            ("2h", 7_200_000),
            ("0s", 0),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)));
        }
        for text in ["", "5", "s", "-5s", "5 s", "5x", "1e3s", ".s", "1.2.3s", "99999999999999999999d"] {
            assert_eq!(parse_duration(text).unwrap_err().seen, text);
        }
    }

    #[test]
    fn formatted_durations_are_read_back() {
        for millis in [0, 1, 999, 1_000, 61_000, 60_000, 7_200_000] {
            let d = Duration::from_millis(millis);
            assert_eq!(parse_duration(&format_duration(d)), Ok(d));
        }
        for d in [Duration::from_micros(1_500), Duration::from_nanos(1), Duration::MAX] {
            assert_eq!(parse_duration(&format_duration(d)), Ok(d));
        }
    }
}
