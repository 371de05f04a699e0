//! YAML with the place of each node, so that whatever is found wrong later can be pointed at.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

/// Nodes within nodes.
const DEPTH_MAX: usize = 32;

/// A place in a text: line and column, both from 1; 0 if not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Place {
    /// From 1.
    pub line: u64,
    /// From 1.
    pub column: u64,
}

/// A value with its place.
#[derive(Debug, Clone)]
pub struct Node {
    place: Place,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    Scalar(Value),
    List(Vec<Node>),
    /// Key, place of the key, value.
    Map(Vec<(String, Place, Node)>),
}

/// One document of a text.
#[derive(Debug)]
pub struct Parsed {
    /// Where it starts.
    pub place: Place,
    /// What it says, or why it says nothing.
    pub node: Result<Node, (Place, String)>,
}

/// The documents of a text, one after the other. A fault in one does not hide the others.
pub fn documents(text: &str) -> Vec<Parsed> {
    let mut parsed = Vec::new();
    for (first_line, part) in parts(text) {
        let blank = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
        if part.lines().all(blank) {
            continue;
        }
        let skipped = part.lines().take_while(|l| blank(l)).count() as u64;
        let moved = |place: Place| match place.line {
            0 => Place { line: first_line + skipped, column: 1 },
            line => Place { line: line + first_line - 1, ..place },
        };
        let node = match serde_saphyr::from_str::<Node>(part) {
            Ok(mut node) => {
                node.move_down(first_line - 1);
                node.check_depth(0).map(|()| node)
            }
            Err(error) => {
                let error = error.without_snippet();
                let place = error.location().map(|l| Place { line: l.line(), column: l.column() });
                let message = error.to_string();
                Err((moved(place.unwrap_or_default()), one_line(&message)))
            }
        };
        parsed.push(Parsed { place: Place { line: first_line + skipped, column: 1 }, node });
    }
    parsed
}

/// The texts between document markers, each with the number of its first line.
pub(crate) fn parts(text: &str) -> Vec<(u64, &str)> {
    let mut parts = Vec::new();
    let (mut start, mut first_line, mut offset) = (0, 1, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let rest = line.strip_prefix("---").map(|rest| rest.trim_end_matches(['\n', '\r']));
        if rest.is_some_and(|rest| rest.trim().is_empty() || rest.trim_start().starts_with('#')) {
            parts.push((first_line, &text[start..offset]));
            start = offset + line.len();
            first_line = number as u64 + 2;
        }
        offset += line.len();
    }
    parts.push((first_line, &text[start..]));
    parts
}

/// The parser puts the place first or last; ours is given apart.
fn one_line(message: &str) -> String {
    let message = message.lines().next().unwrap_or_default();
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let message = match message.strip_prefix("line ") {
        Some(rest) => rest.split_once(": ").map_or(message, |(_, m)| m),
        None => message,
    };
    match message.rfind(" at line ") {
        Some(cut) => message[..cut].to_owned(),
        None => message.to_owned(),
    }
}

impl Node {
    /// The same without places. Of a key that stands twice, the parser has complained.
    pub fn to_json(&self) -> Value {
        match &self.content {
            Content::Scalar(value) => value.clone(),
            Content::List(items) => Value::Array(items.iter().map(Self::to_json).collect()),
            Content::Map(entries) => {
                Value::Object(entries.iter().map(|(k, _, v)| (k.clone(), v.to_json())).collect::<Map<_, _>>())
            }
        }
    }

    /// Where it stands.
    pub fn place(&self) -> Place {
        self.place
    }

    /// The place of what a path such as `spec.rules[0].name` leads to; as far as the path goes if it leads to nothing.
    /// A key is pointed at rather than its value, but for a single value.
    pub fn locate(&self, path: &str) -> Place {
        let (mut node, mut place) = (self, self.place);
        for step in steps(path) {
            let next = match (step, &node.content) {
                (Step::Key(key), Content::Map(entries)) => {
                    entries.iter().find(|(k, _, _)| k == key).map(|(_, place, node)| (*place, node))
                }
                (Step::Index(i), Content::List(items)) => items.get(i).map(|node| (node.place, node)),
                _ => None,
            };
            let Some((at, next)) = next else { return place };
            place = if matches!(next.content, Content::Scalar(_)) { next.place } else { at };
            node = next;
        }
        place
    }

    /// The place of a key within what a path leads to.
    pub fn locate_key(&self, path: &str, key: &str) -> Place {
        let mut node = self;
        for step in steps(path) {
            let next = match (step, &node.content) {
                (Step::Key(key), Content::Map(entries)) => {
                    entries.iter().find(|(k, _, _)| k == key).map(|(_, _, node)| node)
                }
                (Step::Index(i), Content::List(items)) => items.get(i),
                _ => None,
            };
            let Some(next) = next else { return self.locate(path) };
            node = next;
        }
        match &node.content {
            Content::Map(entries) => {
                entries.iter().find(|(k, _, _)| k == key).map_or(node.place, |(_, place, _)| *place)
            }
            _ => node.place,
        }
    }

    fn move_down(&mut self, lines: u64) {
        self.place.line += lines;
        match &mut self.content {
            Content::Scalar(_) => {}
            Content::List(items) => items.iter_mut().for_each(|n| n.move_down(lines)),
            Content::Map(entries) => {
                for (_, place, node) in entries {
                    place.line += lines;
                    node.move_down(lines);
                }
            }
        }
    }

    fn check_depth(&self, depth: usize) -> Result<(), (Place, String)> {
        if depth > DEPTH_MAX {
            return Err((self.place, format!("is nested deeper than {DEPTH_MAX}")));
        }
        match &self.content {
            Content::Scalar(_) => Ok(()),
            Content::List(items) => items.iter().try_for_each(|n| n.check_depth(depth + 1)),
            Content::Map(entries) => entries.iter().try_for_each(|(_, _, n)| n.check_depth(depth + 1)),
        }
    }
}

enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

fn steps(path: &str) -> impl Iterator<Item = Step<'_>> {
    path.split('.').filter(|part| !part.is_empty()).flat_map(|part| {
        let (key, indexes) = part.split_once('[').unwrap_or((part, ""));
        let indexes = indexes.split('[').filter_map(|i| i.strip_suffix(']')?.parse().ok()).map(Step::Index);
        (!key.is_empty()).then_some(Step::Key(key)).into_iter().chain(indexes.collect::<Vec<_>>())
    })
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Content>::deserialize(deserializer)?;
        Ok(Self { place: place(&spanned), content: spanned.value })
    }
}

fn place<T>(spanned: &Spanned<T>) -> Place {
    Place { line: spanned.referenced.line(), column: spanned.referenced.column() }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Bool(v)))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Number(v.into())))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Number(v.into())))
    }

    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Content, E> {
        let number = Number::from_f64(v).ok_or_else(|| E::custom("is no finite number"))?;
        Ok(Content::Scalar(Value::Number(number)))
    }

    fn visit_str<E>(self, v: &str) -> Result<Content, E> {
        Ok(Content::Scalar(Value::String(v.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Content, D::Error> {
        Content::deserialize(d)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Content, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Content::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Content, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let at = place(&key);
            entries.push((key.value, at, map.next_value()?));
        }
        Ok(Content::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# two\na: 1\nb:\n  - c: x\n    d: [1, 2]\n---\n\nbad: [\n---\ne: true\n";

    #[test]
    fn each_node_has_its_place_in_the_whole_text() {
        let all = documents(TEXT);
        assert_eq!(all.len(), 3);
        let first = all[0].node.as_ref().unwrap();
        assert_eq!(first.to_json(), serde_json::json!({"a": 1, "b": [{"c": "x", "d": [1, 2]}]}));
        let at = |path: &str| (first.locate(path).line, first.locate(path).column);
        assert_eq!(at("a"), (2, 4));
        assert_eq!(at("b"), (3, 1));
        assert_eq!(at("b[0].c"), (4, 8));
        assert_eq!(at("b[0].d[1]"), (5, 12));
        assert_eq!(at("b[0].nothing.more"), (4, 5), "as far as it goes");
        assert_eq!(first.locate_key("b[0]", "d"), Place { line: 5, column: 5 });
        let last = all[2].node.as_ref().unwrap();
        assert_eq!(last.locate("e"), Place { line: 10, column: 4 });
    }

    #[test]
    fn a_fault_in_one_document_does_not_hide_the_others() {
        let all = documents(TEXT);
        let (place, why) = all[1].node.as_ref().unwrap_err();
        assert!((8..=9).contains(&place.line), "{place:?}");
        assert!(!why.is_empty() && !why.contains('\n'), "{why}");
    }

    #[test]
    fn empty_documents_are_none() {
        assert!(documents("---\n# nothing\n---\n\n").is_empty());
    }

    #[test]
    fn a_key_given_twice_and_too_deep_nesting_are_faults() {
        assert!(documents("a: 1\na: 2\n")[0].node.is_err());
        let deep = format!("{}1{}", "[".repeat(40), "]".repeat(40));
        assert!(documents(&deep)[0].node.is_err());
    }
}
