//! What a server counts: named by convention, explained, and in the documentation.

use std::path::Path;
use std::time::Duration;

use weft_control_plane::app;
use weft_control_plane::backup::schedule::BackupOptions;
use weft_core::metrics::Described;

use super::harness::config;

/// The metrics of a server that has everything switched on.
async fn all() -> Vec<Described> {
    let dir = tempfile::tempdir().expect("a folder");
    let mut config = config(dir.path());
    config.backup = Some(BackupOptions {
        folder: dir.path().join("backups"),
        interval: Duration::from_secs(3600),
        keep: 1,
    });
    let server = app::start(config).await.expect("it starts");
    let all = server.telemetry().registry().described();
    server.shutdown().await;
    all
}

#[tokio::test]
async fn every_metric_has_a_name_by_convention_and_says_what_it_is() {
    let all = all().await;
    assert!(all.len() > 40, "{} metrics", all.len());
    for metric in all {
        let Described { name, kind, labels, help } = &metric;
        let words: Vec<&str> = name.split('_').collect();
        let plain = |word: &&str| {
            !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        assert!(
            ["weft", "process"].contains(&words[0]) && words.len() >= 2 && words.iter().all(plain),
            "weft_<area>_<noun>_<unit>: {name}"
        );
        assert_eq!(
            *kind == "counter",
            name.ends_with("_total"),
            "counters and only they end with _total: {name}"
        );
        assert!(*kind != "histogram" || name.ends_with("_seconds"), "a histogram has a unit: {name}");
        assert!(
            help.len() > 5 && help.starts_with(|c: char| c.is_uppercase() || c.is_ascii_digit()),
            "{name}: {help:?}"
        );
        assert!(!help.ends_with('.') && !help.contains('|'), "{name}: {help:?}");
        assert!(labels.len() <= 2, "each label multiplies the series: {metric:?}");
    }
}

/// `WEFT_UPDATE_DOCS=1` writes it.
#[tokio::test]
async fn the_table_of_metrics_in_the_documentation_is_what_there_is() {
    let mut table = String::from("| metric | kind | labels | what |\n|---|---|---|---|\n");
    for Described { name, kind, labels, help } in all().await {
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        table.push_str(&format!("| `{name}` | {kind} | {} | {help} |\n", labels.join(", ")));
    }
    // Not the folder that this was built in: clones that share a build cache share its binaries.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it for tests");
    let path = Path::new(&package).join("../docs/metrics.md");
    let text = std::fs::read_to_string(&path).expect("the documentation is there");
    let begins = text.find("| metric |").expect("it has a table");
    let ends = text[begins..].find("\n\n").map_or(text.len(), |end| begins + end + 1);
    if std::env::var_os("WEFT_UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{}{table}{}", &text[..begins], &text[ends..])).expect("writes");
        return;
    }
    assert_eq!(&text[begins..ends], table, "write it with WEFT_UPDATE_DOCS=1");
}
