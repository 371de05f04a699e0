//! Tables for people, JSON with stable field names for scripts.

use std::io::{ErrorKind, Write};
use std::time::Duration;

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

/// How a command answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// Columns for people; may change.
    #[default]
    Table,
    /// One JSON document (watches: one a line); field names are stable.
    Json,
}

/// Writes to stdout. A reader that went away (`| head`) is a normal end.
pub(crate) fn print(bytes: impl AsRef<[u8]>) {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes.as_ref()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => {
            eprintln!("error: cannot write to standard output: {error}");
            std::process::exit(i32::from(crate::failure::FAILED));
        }
        Ok(()) => {}
    }
}

/// A pretty document with a final line feed.
pub(crate) fn json(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("our types have string keys only");
    text.push('\n');
    text
}

/// One line.
pub(crate) fn json_line(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string(value).expect("our types have string keys only");
    text.push('\n');
    text
}

/// Columns under headings, no lines around: easy to read and to cut. `empty` is said if there are no rows.
pub(crate) fn table<const N: usize>(
    headings: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
    empty: &str,
) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings);
    for row in rows {
        table.add_row(row);
    }
    if table.is_empty() {
        return format!("{empty}\n");
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.strip_prefix(' ').unwrap_or(&line).trim_end());
        text.push('\n');
    }
    text
}

/// Two columns without headings.
pub(crate) fn pairs(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

/// Bytes as text if they are printable text, else with escapes.
pub(crate) fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => bytes.escape_ascii().to_string(),
    }
}

/// A span as people say it: `850ms`, `12s`, `3m`, `5h`, `2d`.
pub(crate) fn span(span: Duration) -> String {
    let secs = span.as_secs();
    match secs {
        0 => format!("{}ms", span.as_millis()),
        1..=119 => format!("{secs}s"),
        120..=7_199 => format!("{}m", secs / 60),
        7_200..=172_799 => format!("{}h", secs / 3_600),
        _ => format!("{}d", secs / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_headings_and_aligned_columns() {
        let rows = [["a".to_owned(), "1".to_owned()], ["longer".to_owned(), "2".to_owned()]];
        assert_eq!(table(["NAME", "N"], rows, "nothing"), "NAME    N\na       1\nlonger  2\n");
    }

    #[test]
    fn an_empty_table_says_so() {
        assert_eq!(table(["NAME"], [], "no services"), "no services\n");
    }

    #[test]
    fn bytes_that_would_disturb_a_terminal_are_escaped() {
        assert_eq!(text("grüße".as_bytes()), "grüße");
        assert_eq!(text(b"a\nb"), "a\\nb");
        assert_eq!(text(b"\xff"), "\\xff");
    }

    #[test]
    fn spans_have_one_unit() {
        for (millis, said) in [
            (0, "0ms"),
            (850, "850ms"),
            (12_000, "12s"),
            (200_000, "3m"),
            (18_000_000, "5h"),
            (200_000_000, "2d"),
        ] {
            assert_eq!(span(Duration::from_millis(millis)), said);
        }
    }
}
