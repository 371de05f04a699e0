//! A part of a service: the instances whose labels are as asked for.

use std::collections::BTreeMap;
use std::fmt;

use semver::{Version, VersionReq};
use serde::{Serialize, Serializer};

/// What labels must be, by key. All must hold; empty: every instance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Subset {
    labels: BTreeMap<String, LabelMatch>,
}

/// Labels of one subset.
pub const LABELS_MAX: usize = 16;
/// Bytes of a key and of a value.
pub const TEXT_BYTES_MAX: usize = 128;

#[derive(Debug, Clone, PartialEq, Eq)]
enum LabelMatch {
    Exact(String),
    /// As written, and what it means.
    Version(String, VersionReq),
}

impl Subset {
    /// Of texts by key. A text that begins with `=`, `<`, `>`, `~` or `^`, or has a `*` in it, is a range of versions
    /// (<https://semver.org>): `^1.4`, `>=2, <3`, `2.*`. Any other is the label's value.
    ///
    /// # Errors
    /// The key, what was seen and what is allowed.
    pub fn new<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, SubsetError> {
        let mut all = BTreeMap::new();
        for (key, text) in labels {
            let sized = |text: &str| (1..=TEXT_BYTES_MAX).contains(&text.len());
            if !sized(key) || !sized(text) {
                return Err(SubsetError::new(key, text, "1 to 128 bytes"));
            }
            let range = text.starts_with(['=', '<', '>', '~', '^']) || text.contains('*');
            let matcher = if range {
                let allowed = "a range of versions such as ^1.4, >=2, <3 or 2.*";
                let range = text.parse().map_err(|_| SubsetError::new(key, text, allowed))?;
                LabelMatch::Version(text.to_owned(), range)
            } else {
                LabelMatch::Exact(text.to_owned())
            };
            all.insert(key.to_owned(), matcher);
        }
        if all.len() > LABELS_MAX {
            return Err(SubsetError::new("", &all.len().to_string(), "at most 16 labels"));
        }
        Ok(Self { labels: all })
    }

    /// Whether it is every instance.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Whether an instance with these labels is of it.
    pub fn contains(&self, labels: &BTreeMap<String, String>) -> bool {
        self.labels.iter().all(|(key, wanted)| {
            labels.get(key).is_some_and(|value| match wanted {
                LabelMatch::Exact(text) => text == value,
                LabelMatch::Version(_, range) => version(value).is_some_and(|v| range.matches(&v)),
            })
        })
    }

    /// Keys and texts, and whether each is a range.
    pub fn texts(&self) -> impl Iterator<Item = (&str, &str, bool)> {
        self.labels.iter().map(|(key, wanted)| match wanted {
            LabelMatch::Exact(text) => (key.as_str(), text.as_str(), false),
            LabelMatch::Version(text, _) => (key.as_str(), text.as_str(), true),
        })
    }
}

impl fmt::Display for Subset {
    /// `region=eu,version=^1.4`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (key, text, _)) in self.texts().enumerate() {
            write!(f, "{}{key}={text}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl Serialize for Subset {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_map(self.texts().map(|(key, text, _)| (key, text)))
    }
}

/// As people write versions: `v2`, `2.1`, `2.1.0-rc1`.
fn version(text: &str) -> Option<Version> {
    let text = text.strip_prefix('v').unwrap_or(text);
    if let Ok(version) = text.parse() {
        return Some(version);
    }
    let parts = text.split('.').map(|part| part.parse::<u64>().ok()).collect::<Option<Vec<_>>>()?;
    match *parts.as_slice() {
        [major] => Some(Version::new(major, 0, 0)),
        [major, minor] => Some(Version::new(major, minor, 0)),
        _ => None,
    }
}

/// What is wrong with a subset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {seen:?}; allowed is {allowed}")]
pub struct SubsetError {
    /// Which label; empty: all together.
    pub key: String,
    /// Its text.
    pub seen: String,
    /// What it may be.
    pub allowed: &'static str,
}

impl SubsetError {
    fn new(key: &str, seen: &str, allowed: &'static str) -> Self {
        let short = |text: &str| text.chars().take(64).collect();
        Self { key: short(key), seen: short(seen), allowed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(subset: &[(&str, &str)], labels: &[(&str, &str)]) -> bool {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Subset::new(subset.iter().copied()).unwrap().contains(&labels)
    }

    #[test]
    fn all_labels_must_be_as_asked_for() {
        let wanted = [("region", "eu"), ("version", "v2")];
        assert!(has(&wanted, &[("region", "eu"), ("version", "v2"), ("more", "1")]));
        assert!(!has(&wanted, &[("region", "us"), ("version", "v2")]));
        assert!(!has(&wanted, &[("version", "v2")]));
        assert!(has(&[], &[]));
    }

    #[test]
    fn a_range_of_versions_is_compared_as_versions() {
        for (range, version, is) in [
            ("^1.4", "1.10.0", true),
            ("^1.4", "v1.4", true),
            ("^1.4", "2.0.0", false),
            (">=2, <3", "2.9.1", true),
            ("2.*", "2.0.0", true),
            ("2.*", "20.0.0", false),
            ("=2.0.0", "2", true),
            (">=1", "canary", false),
            ("1.4.0", "1.4", false),
        ] {
            assert_eq!(has(&[("version", range)], &[("version", version)]), is, "{range} {version}");
        }
    }

    #[test]
    fn what_is_no_subset_is_refused_with_its_key() {
        let error = Subset::new([("version", ">=two")]).unwrap_err().to_string();
        assert_eq!(error, "version: \">=two\"; allowed is a range of versions such as ^1.4, >=2, <3 or 2.*");
        assert!(Subset::new([("version", "")]).is_err());
        let many: Vec<_> = (0..17).map(|n| n.to_string()).collect();
        assert!(Subset::new(many.iter().map(|n| (n.as_str(), "1"))).is_err());
    }
}
