//! The table of anomalies that must be absent, and the tests that show it: each has a test that names it, in its name,
//! in its documentation, or in a comment beside the very line that shows it. `cargo test -p weft-tests --test anomalies
//! -- --nocapture` prints the table.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use weft_tests::process::workspace;

/// What must not happen, by the names that tests use.
const ANOMALIES: &[(&str, &str)] = &[
    ("A01", "stale read by a deposed leader, or after a pause longer than its lease"),
    ("A02", "lost update"),
    ("A03", "aborted or dirty read"),
    ("A04", "circular information flow"),
    ("A05", "write skew in a transaction"),
    ("A06", "applied twice on a client's retry or a change of leader"),
    ("A07", "acknowledged and then lost: kill -9, torn last record, fsync error"),
    ("A08", "a revision that decreases or repeats"),
    ("A09", "replicas differ"),
    ("A10", "a read of a compacted revision gives a part"),
    ("A11", "a follower's read is older than what its reader saw before"),
    ("A12", "a change of authorisation applied at different points on replicas"),
    ("W01", "watch: a gap"),
    ("W02", "watch: a duplicate"),
    ("W03", "watch: out of order, in a key, across keys, in a transaction"),
    ("W04", "watch: back in time after connecting to a member that lags"),
    ("W05", "watch: progress ahead of events"),
    ("W06", "watch: a delete lost where history was compacted"),
    ("W07", "watch: old events for a start in the future"),
    ("W08", "watch: start at revision 0 or 1"),
    ("W09", "watch: a slow reader gets silence in place of events or an end"),
    ("W10", "watch: an event is told before it can be read"),
    ("W11", "watch: lost when many disconnect at once"),
    ("W12", "watch: wrong previous value"),
    ("S01", "lease: ended while renewals are acknowledged"),
    ("S02", "lease: outlives its time by more than the bound after changes of leader"),
    ("S03", "lease: late when a hundred thousand and more expire"),
    ("S04", "lease: a key survives it, or it ends and the key stays"),
    ("S05", "lease: its owner believes in it after the servers ended it"),
    ("S06", "lease: an id granted again is taken for the old one"),
    ("S07", "lease: kept alive by a server that does not lead"),
    ("R01", "group: disjoint quorums after churn, snapshot and a former leader that lags"),
    ("R02", "group: a server that was removed or cut off deposes the leader when it is back"),
    ("R03", "group: a learner counts as a voter"),
    ("R04", "group: a snapshot is installed while entries are applied, a malformed append"),
    ("R05", "group: adding a server that nobody reaches costs availability"),
    ("R06", "group: clocks that jump make two leaders for reads"),
];

/// Those that no test names yet. Whoever writes one takes its name out here.
const WITHOUT_A_TEST: &[&str] = &[];

#[test]
fn every_anomaly_has_a_test_that_names_it() {
    let root = &workspace();
    let mut table: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for file in rust_files(root) {
        let text = fs::read_to_string(&file).expect("a source file can be read");
        let place = file.strip_prefix(root).expect("found below it").display().to_string();
        for test in tests(&text) {
            for (id, _) in ANOMALIES.iter().filter(|(id, _)| test.names(id)) {
                table.entry(id).or_default().insert(format!("{place}: {}", test.name));
            }
        }
    }
    for (id, what) in ANOMALIES {
        println!("{id} {what}");
        table.get(id).into_iter().flatten().for_each(|test| println!("      {test}"));
    }
    let missing = ANOMALIES.iter().filter(|(id, _)| !table.contains_key(id) && !WITHOUT_A_TEST.contains(id));
    let missing: Vec<_> = missing.map(|(id, what)| format!("{id} ({what})")).collect();
    assert!(missing.is_empty(), "no test names {}", missing.join(", "));
}

/// A test as a reader sees it: its name, and the comments on and in it.
struct Test {
    name: String,
    words: String,
}

impl Test {
    fn names(&self, id: &str) -> bool {
        let word = |word: &str| word == id || word.eq_ignore_ascii_case(id);
        self.words.split(|c: char| !c.is_ascii_alphanumeric()).any(word)
            || self.in_a_span(id)
            || self.name.split('_').any(word)
    }

    /// "W01 to W05" names all of them.
    fn in_a_span(&self, id: &str) -> bool {
        let words: Vec<_> = self.words.split_whitespace().collect();
        words.windows(3).filter(|three| three[1] == "to").any(|three| {
            let bare = |word: &str| word.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned();
            let (from, to) = (bare(three[0]), bare(three[2]));
            let alike = from.len() == 3 && to.len() == 3 && from[..1] == to[..1] && from[..1] == id[..1];
            alike && (from.as_str()..=to.as_str()).contains(&id)
        })
    }
}

/// The tests of a file: functions under an attribute that ends in `test`, with the comments around and in them.
fn tests(text: &str) -> Vec<Test> {
    let mut found: Vec<Test> = Vec::new();
    let (mut words, mut is_test, mut open) = (String::new(), false, None::<String>);
    for line in text.lines() {
        let bare = line.trim_start();
        let comment = line.split_once("//").map(|(_, comment)| comment.trim_start_matches('/'));
        if let Some(end) = &open {
            if line == end {
                open = None;
            } else if let (Some(comment), Some(test)) = (comment, found.last_mut()) {
                test.words.push_str(&format!(" {comment}"));
            }
            continue;
        }
        if let Some(comment) = comment.filter(|_| bare.starts_with("//")) {
            words.push_str(&format!(" {comment}"));
        } else if bare.starts_with("#[") {
            let attribute = bare.trim_start_matches("#[").split(['(', ']']).next().unwrap_or_default();
            is_test |= attribute == "test" || attribute.ends_with("::test");
        } else if let Some(rest) = bare.split_once("fn ").map(|(_, rest)| rest).filter(|_| is_test) {
            let name = rest.split(['(', '<']).next().unwrap_or_default().to_owned();
            found.push(Test { name, words: std::mem::take(&mut words) });
            let indent = &line[..line.len() - bare.len()];
            open = (!bare.ends_with('}')).then(|| format!("{indent}}}"));
            is_test = false;
        } else if !bare.is_empty() {
            words.clear();
            is_test = false;
        }
    }
    found
}

fn rust_files(root: &Path) -> Vec<PathBuf> {
    let checkers = root.join("tests/src/checker");
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the workspace can be read") {
            let path = entry.expect("its entries too").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                folders.push(path);
            // The list above would find itself, and checkers' own tests show only that a checker finds it.
            } else if name.ends_with(".rs") && name != "anomalies.rs" && !path.starts_with(&checkers) {
                files.push(path);
            }
        }
    }
    files
}

#[test]
fn a_test_is_found_with_its_name_and_the_comments_on_and_in_it() {
    let text = "
/// X01: on a function that is no test.
fn helper() {}

mod tests {
    /// X02, and X04 to X06.
    #[tokio::test(start_paused = true)]
    async fn x07_is_in_the_name() {
        let url = 1; // X03: beside the line.
        if url == 1 {
        }
    }

    // X08: after it.
    const N: u32 = 1;

    #[test]
    fn other() {}
}
";
    let tests = tests(text);
    assert_eq!(
        tests.iter().map(|test| test.name.as_str()).collect::<Vec<_>>(),
        ["x07_is_in_the_name", "other"]
    );
    let named: Vec<_> = (1..10).map(|i| format!("X0{i}")).filter(|id| tests[0].names(id)).collect();
    assert_eq!(named, ["X02", "X03", "X04", "X05", "X06", "X07"]);
    assert!((1..10).all(|i| !tests[1].names(&format!("X0{i}"))));
}
