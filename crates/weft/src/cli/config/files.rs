//! Files with documents, and `weft check`, which needs no more than those.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use weft_meshconfig::Document;
use weft_meshconfig::document::{File, divide, given_twice};
use weft_meshconfig::yaml::Node;

use crate::failure::Failure;
use crate::flags::proxy_file;
use crate::output;

/// Find every mistake in files with routes and policies, or in a proxy's file, without a server
///
/// Each mistake is one line with file, line and column. The file of `weft proxy --config` is known by its keys, and checked
/// with the documents in it.
#[derive(Debug, Args)]
pub(crate) struct Check {
    #[command(flatten)]
    files: Files,
}

#[derive(Debug, Args)]
pub(super) struct Files {
    /// YAML file with HTTPRoutes, GRPCRoutes, HTTPRouteFilters and TrafficPolicies, one or more, or - for standard input;
    /// repeat it
    #[arg(long = "file", short = 'f', value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

pub(super) struct Found {
    pub file: String,
    pub document: Document,
    pub node: Node,
}

impl Files {
    /// Names and texts.
    fn texts(&self) -> Result<Vec<(String, String)>, Failure> {
        self.files.iter().map(|path| Ok((path.display().to_string(), text(path)?))).collect()
    }

    /// All documents of all files.
    ///
    /// # Errors
    /// All that is wrong within them, one a line.
    pub fn read(&self) -> Result<Vec<Found>, Failure> {
        let (found, lines) = documents(self.texts()?);
        if !lines.is_empty() {
            return Err(Failure::new(lines.join("\n")));
        }
        if found.is_empty() {
            return Err(nothing());
        }
        Ok(found)
    }
}

fn nothing() -> Failure {
    Failure::new("no document in the files; see `weft schema` for what they may hold")
}

/// The documents of files, and what is wrong within them, one a line.
fn documents(texts: Vec<(String, String)>) -> (Vec<Found>, Vec<String>) {
    let (mut found, mut lines): (Vec<Found>, Vec<String>) = (Vec::new(), Vec::new());
    for (name, text) in texts {
        let file = File::read(&text, |_| false);
        lines.extend(file.problems.iter().map(|problem| format!("{name}:{problem}")));
        for (document, node) in file.documents {
            let same = |f: &&Found| f.document.kind == document.kind && f.document.name == document.name;
            if !document.name.is_empty()
                && let Some(first) = found.iter().find(same)
            {
                let twice = given_twice(&document, &node, (&first.file, &first.node));
                lines.push(format!("{name}:{twice}"));
            }
            found.push(Found { file: name.clone(), document, node });
        }
    }
    (found, lines)
}

fn text(path: &Path) -> Result<String, Failure> {
    if path != Path::new("-") {
        return Ok(weft_core::config::read_text(path)?);
    }
    let limit = weft_core::limits::CONFIG_FILE_BYTES_MAX;
    let mut text = String::new();
    let read = std::io::stdin().take(limit + 1).read_to_string(&mut text);
    read.map_err(|error| Failure::new(format!("cannot read standard input: {error}")))?;
    if text.len() as u64 > limit {
        return Err(Failure::new(format!("standard input is larger than {limit} bytes")));
    }
    Ok(text)
}

impl Check {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let (mut of_proxies, mut within, mut lines, mut others) = (0, 0, Vec::new(), Vec::new());
        for (name, text) in self.files.texts()? {
            let (rest, file) = divide(&text);
            if proxy_file::is_of_proxy(&rest) {
                (of_proxies, within) = (of_proxies + 1, within + file.documents.len());
                lines.extend(proxy_file::mistakes(&name, (&rest, &file)));
            } else {
                others.push((name, text));
            }
        }
        let (found, more) = documents(others);
        lines.extend(more);
        if !lines.is_empty() {
            return Err(Failure::new(lines.join("\n")));
        }
        let counted = |count: usize, one: &str, several: &str| match count {
            0 => None,
            1 => Some(format!("1 {one}")),
            n => Some(format!("{n} {several}")),
        };
        let counts: Vec<_> = [
            counted(of_proxies, "proxy's file", "proxies' files"),
            counted(within + found.len(), "document", "documents"),
        ]
        .into_iter()
        .flatten()
        .collect();
        if counts.is_empty() {
            return Err(nothing());
        }
        output::print(format!("{}: no mistakes\n", counts.join(", ")));
        Ok(ExitCode::SUCCESS)
    }
}
