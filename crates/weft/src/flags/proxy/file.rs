//! The file of `weft proxy --config`: flags, `listeners`, `routes` and `clusters` in its first part, documents behind it.

use std::path::Path;

use clap::Args;
use serde_json::{Map, Value};
use weft_core::config::parse_yaml;
use weft_meshconfig::document::{File, Located, divide, given_twice, located};
use weft_meshconfig::yaml::{self, Node};
use weft_meshconfig::{Document, Kind, MeshConfig, Problem, shape};
use weft_proxy::config::{ConfigProblems, StaticConfig};

use super::ProxyFlags;
use crate::failure::Failure;

/// Flags that are no keys.
const FLAGS_ONLY: [&str; 2] = ["config", "take-over"];

/// Reads it.
///
/// # Errors
/// All that is wrong with it, each with its place.
pub(super) fn read(path: &Path) -> Result<ProxyFlags, Failure> {
    let text = weft_core::config::read_text(path)?;
    let (rest, file) = divide(&text);
    let lines = mistakes(&path.display().to_string(), (&rest, &file));
    if !lines.is_empty() {
        return Err(Failure::new(lines.join("\n")));
    }
    // Blank texts are no YAML.
    let mut flags = if rest.trim().is_empty() { ProxyFlags::default() } else { parse_yaml(path, &rest)? };
    let documents: Vec<_> = file.documents.into_iter().map(|(document, _)| document).collect();
    flags.documents = (!documents.is_empty()).then_some(documents);
    Ok(flags)
}

/// Whether the first part of a divided file is that of a proxy, and no document that lacks its kind.
pub(crate) fn is_of_proxy(rest: &str) -> bool {
    let keys = keys();
    let has_one = |json: Value| json.as_object().is_some_and(|all| all.keys().any(|key| keys.contains(key)));
    yaml::documents(rest).into_iter().any(|parsed| parsed.node.is_ok_and(|node| has_one(node.to_json())))
}

/// All that is wrong with a divided file of this name, a line each.
pub(crate) fn mistakes(name: &str, (rest, file): (&str, &File)) -> Vec<String> {
    problems(name, rest, file).iter().map(|problem| format!("{name}:{problem}")).collect()
}

/// Everything that is wrong with a file of this name, in the order of its lines.
fn problems(name: &str, rest: &str, file: &File) -> Vec<Located> {
    let mut problems = file.problems.clone();
    let mut documents = MeshConfig::default();
    for (i, (document, node)) in file.documents.iter().enumerate() {
        let same = |other: &&(_, _)| is_same(&other.0, document);
        if let Some((_, first)) = file.documents[..i].iter().find(same) {
            problems.push(given_twice(document, node, (name, first)));
            continue;
        }
        documents.insert(document.clone(), 0);
    }
    // Of one that could not be read nobody knows what it is for.
    if file.problems.iter().all(|problem| !problem.document.is_empty()) {
        problems.extend(between(&documents, file));
    }
    for parsed in yaml::documents(rest) {
        match parsed.node {
            Ok(node) => problems.extend(of_first_part(&node, &documents)),
            Err((place, message)) => {
                let problem = Problem::new("", message);
                problems.push(Located { place, document: String::new(), problem });
            }
        }
    }
    problems.sort();
    problems
}

fn is_same(one: &Document, other: &Document) -> bool {
    !one.name.is_empty() && one.kind == other.kind && one.name == other.name
}

/// What one document says of another.
fn between(documents: &MeshConfig, file: &File) -> Vec<Located> {
    let located = |(key, problem): (Option<(Kind, String)>, Problem)| {
        let is_it = |(document, _): &&(Document, Node)| {
            key.as_ref().is_none_or(|(kind, name)| document.kind == *kind && document.name == *name)
        };
        let (document, node) = file.documents.iter().find(is_it)?;
        let title = if key.is_some() { document.title() } else { String::new() };
        Some(located(node, &title, problem))
    };
    documents.problems().into_iter().filter_map(located).collect()
}

fn of_first_part(node: &Node, documents: &MeshConfig) -> Vec<Located> {
    let json = node.to_json();
    let Value::Object(entries) = &json else {
        let message = "allowed is a mapping with flags, listeners, routes and clusters";
        return vec![located(node, "", Problem::new("", message))];
    };
    let known = keys();
    let known: Vec<_> = known.iter().map(String::as_str).collect();
    let mut problems = Vec::new();
    for (key, value) in entries.iter().filter(|(key, _)| !StaticConfig::SECTIONS.contains(&key.as_str())) {
        match known.contains(&key.as_str()) {
            true => problems.extend(of_flag(key, value)),
            false => problems.push(shape::unknown_key("", key.clone(), &known)),
        }
    }
    let flags = problems.into_iter().map(|problem| located(node, "", problem));
    let mut problems: Vec<_> = flags.collect();
    let of_sections = StaticConfig::problems_of(json, documents).into_iter();
    problems.extend(of_sections.map(|(title, problem)| located(node, &title, problem)));
    problems
}

/// Names of all keys.
fn keys() -> Vec<String> {
    let command = ProxyFlags::augment_args(clap::Command::new("proxy"));
    let flags = command.get_arguments().filter_map(|flag| flag.get_long());
    let keys = flags.filter(|flag| !FLAGS_ONLY.contains(flag)).chain(StaticConfig::SECTIONS);
    keys.map(str::to_owned).collect()
}

/// What is wrong with a flag by itself. Whether it goes with others is known only once flags and variables are over the
/// file.
fn of_flag(key: &str, value: &Value) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let Value::Array(items) = value {
        for (i, item) in items.iter().enumerate() {
            let at = format!("{key}[{i}]");
            let why = alone(key, &Value::Array(vec![item.clone()]));
            problems.extend(why.into_iter().map(|why| Problem::new(&at, why)));
        }
    }
    if problems.is_empty() {
        problems.extend(alone(key, value).into_iter().map(|why| Problem::new(key, why)));
    }
    problems
}

fn alone(key: &str, value: &Value) -> Vec<String> {
    let json = Value::Object(Map::from_iter([(key.to_owned(), value.clone())]));
    // JSON is YAML: what is a text and what a number is decided as in the file.
    let flags = match parse_yaml::<ProxyFlags>(Path::new(""), &json.to_string()) {
        Ok(flags) => flags,
        // The words for JSON tell what was seen.
        Err(error) => {
            let why = serde_json::from_value::<ProxyFlags>(json).err().map(|why| why.to_string());
            return vec![why.unwrap_or_else(|| error.to_string())];
        }
    };
    let texts = match flags.into_config(Vec::new()).map(|config| config.validate()) {
        Ok(Ok(())) => Vec::new(),
        Ok(Err(ConfigProblems(texts))) => texts,
        Err(failure) => vec![failure.to_string()],
    };
    // A text about one key alone begins with the key, then comes a colon or the value.
    let of_it = |text: String| {
        let rest = text.strip_prefix(key)?;
        let says =
            rest.strip_prefix(": ").or_else(|| rest.strip_prefix(' ').filter(|says| says.starts_with('"')));
        says.map(str::to_owned)
    };
    texts.into_iter().filter_map(of_it).collect()
}
