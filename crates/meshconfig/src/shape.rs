//! Keys, types and ranges of documents, as data: what a check refuses and what an editor is told by JSON Schema come
//! from the same place.

use serde_json::{Map, Value, json};

/// Something wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Path within the document, such as `spec.rules[0].name`.
    pub at: String,
    /// A key of what `at` leads to, if that key itself is wrong.
    pub key: Option<String>,
    /// What was seen and what is allowed.
    pub message: String,
}

impl Problem {
    /// A problem with a value.
    pub fn new(at: impl Into<String>, message: impl Into<String>) -> Self {
        Self { at: at.into(), key: None, message: message.into() }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.at.as_str(), &self.key) {
            ("", None) => f.write_str(&self.message),
            ("", Some(key)) => write!(f, "{key}: {}", self.message),
            (at, None) => write!(f, "{at}: {}", self.message),
            (at, Some(key)) => write!(f, "{at}.{key}: {}", self.message),
        }
    }
}

/// What a value may be.
#[derive(Debug)]
pub enum Shape {
    /// A text that a rule accepts.
    Text(Rule),
    /// One of some words.
    Choice(&'static [&'static str]),
    /// A whole number, both ends included.
    Integer(i64, i64),
    /// A number, both ends included.
    Number(f64, f64),
    /// Yes or no.
    Flag,
    /// At most so many of a shape.
    List(&'static Shape, usize),
    /// Texts by keys.
    Labels,
    /// Keys with shapes; others are refused.
    Object(&'static [Field]),
    /// A text of the first shape, or anything of the second.
    TextOr(&'static Shape, &'static Shape),
}

/// A key.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// As written.
    pub name: &'static str,
    /// What it means, for editors.
    pub doc: &'static str,
    /// What it holds.
    pub shape: &'static Shape,
    /// It must be there.
    pub required: bool,
}

/// An optional key.
pub const fn optional(name: &'static str, shape: &'static Shape, doc: &'static str) -> Field {
    Field { name, doc, shape, required: false }
}

/// A key that must be there.
pub const fn required(name: &'static str, shape: &'static Shape, doc: &'static str) -> Field {
    Field { name, doc, shape, required: true }
}

/// What a text may be.
#[derive(Debug)]
pub struct Rule {
    /// What is allowed, for people.
    pub allowed: &'static str,
    /// The same as pattern for editors; empty for none.
    pub pattern: &'static str,
    /// Whether a text is allowed.
    pub check: fn(&str) -> bool,
}

/// How keys are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// `maxRequests`, in documents.
    Camel,
    /// `max-requests`, in the configuration files of processes.
    Kebab,
}

impl Names {
    /// A key, or a path of keys.
    pub fn path(self, camel: &str) -> String {
        match self {
            Self::Camel => camel.to_owned(),
            Self::Kebab => camel.chars().fold(String::with_capacity(camel.len() + 4), |mut text, c| {
                if c.is_ascii_uppercase() {
                    text.push('-');
                }
                text.push(c.to_ascii_lowercase());
                text
            }),
        }
    }
}

/// Checks a document's value and removes from it what is wrong, so that the rest can be looked at further.
pub fn check(shape: &Shape, value: &mut Value, at: &str, problems: &mut Vec<Problem>) -> bool {
    check_named(Names::Camel, shape, value, at, problems)
}

/// The same for keys that are written in another way; afterwards they are as in documents.
pub fn check_named(
    names: Names,
    shape: &Shape,
    value: &mut Value,
    at: &str,
    problems: &mut Vec<Problem>,
) -> bool {
    let mut wrong = |message: String| {
        problems.push(Problem::new(at, message));
        false
    };
    match (shape, &mut *value) {
        (Shape::TextOr(text, _), Value::String(_)) => check_named(names, text, value, at, problems),
        (Shape::TextOr(_, other), Value::Object(_)) => check_named(names, other, value, at, problems),
        (Shape::Text(rule), Value::String(text)) => {
            if (rule.check)(text) {
                return true;
            }
            let seen: String = text.chars().take(80).collect();
            wrong(format!("{seen:?}; allowed is {}", rule.allowed))
        }
        (Shape::Choice(words), Value::String(text)) => {
            if words.contains(&text.as_str()) {
                return true;
            }
            let near = near(text, words.iter().copied());
            wrong(format!("{text:?}; allowed are {}{near}", words.join(", ")))
        }
        (Shape::Integer(min, max), Value::Number(number)) => match number.as_i64() {
            Some(n) if (*min..=*max).contains(&n) => true,
            _ => wrong(format!("{number}; allowed is a whole number from {min} to {max}")),
        },
        (Shape::Number(min, max), Value::Number(number)) => match number.as_f64() {
            Some(n) if (*min..=*max).contains(&n) => true,
            _ => wrong(format!("{number}; allowed is a number from {min} to {max}")),
        },
        (Shape::Flag, Value::Bool(_)) => true,
        (Shape::List(of, max), Value::Array(items)) => {
            if items.len() > *max {
                return wrong(format!("{} items; at most {max} are allowed", items.len()));
            }
            // An item that is wrong as a whole becomes nothing, and keeps its number.
            for (i, item) in items.iter_mut().enumerate() {
                if !check_named(names, of, item, &format!("{at}[{i}]"), problems) {
                    *item = Value::Null;
                }
            }
            true
        }
        (Shape::Labels, Value::Object(entries)) => {
            entries.retain(|key, value| {
                let text = value.is_string();
                if !text {
                    let message = format!("{}; allowed is a text", kind(value));
                    problems.push(Problem { at: at.to_owned(), key: Some(key.clone()), message });
                }
                text
            });
            true
        }
        (Shape::Object(fields), Value::Object(entries)) => {
            check_object(names, fields, entries, at, problems);
            true
        }
        (shape, value) => {
            let seen = kind(value);
            wrong(format!("{seen}; allowed is {}", allowed(shape)))
        }
    }
}

fn check_object(
    names: Names,
    fields: &[Field],
    entries: &mut Map<String, Value>,
    at: &str,
    problems: &mut Vec<Problem>,
) {
    let path = |name: &str| if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
    let written: Vec<_> = fields.iter().map(|f| names.path(f.name)).collect();
    for (key, mut value) in std::mem::take(entries) {
        let Some(i) = written.iter().position(|name| *name == key) else {
            let allowed: Vec<_> = written.iter().map(String::as_str).collect();
            problems.push(unknown_key(at, key, &allowed));
            continue;
        };
        // As in Kubernetes, null is the same as nothing.
        if !value.is_null() && check_named(names, fields[i].shape, &mut value, &path(&key), problems) {
            entries.insert(fields[i].name.to_owned(), value);
        }
    }
    for (field, name) in fields.iter().zip(&written).filter(|(field, _)| field.required) {
        let reported = problems.iter().any(|p| p.at == path(name));
        if !entries.contains_key(field.name) && !reported {
            problems.push(Problem::new(at, format!("{name} is missing: {}", field.doc)));
        }
    }
}

/// Of a key that is not among those that are allowed.
pub fn unknown_key(at: &str, key: String, allowed: &[&str]) -> Problem {
    let hint = near(&key, allowed.iter().copied());
    let message = format!("unknown key; allowed are {}{hint}", allowed.join(", "));
    Problem { at: at.to_owned(), key: Some(key), message }
}

fn kind(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(b) => format!("{b}"),
        Value::Number(n) => format!("the number {n}"),
        Value::String(s) => format!("{:?}", s.chars().take(80).collect::<String>()),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a mapping".to_owned(),
    }
}

fn allowed(shape: &Shape) -> String {
    match shape {
        Shape::Text(rule) => format!("{}, in quotes if it looks like something else", rule.allowed),
        Shape::Choice(words) => words.join(", "),
        Shape::Integer(min, max) => format!("a whole number from {min} to {max}"),
        Shape::Number(min, max) => format!("a number from {min} to {max}"),
        Shape::Flag => "true or false".to_owned(),
        Shape::List(..) => "a list".to_owned(),
        Shape::Labels => "a mapping of texts".to_owned(),
        Shape::Object(_) => "a mapping".to_owned(),
        Shape::TextOr(text, other) => format!("{}, or {}", allowed(text), allowed(other)),
    }
}

/// "; did you mean x?" if one of the words is close.
pub fn near<'a>(seen: &str, words: impl Iterator<Item = &'a str>) -> String {
    let close = |w: &&str| distance(&seen.to_ascii_lowercase(), &w.to_ascii_lowercase()) <= 2;
    match words.filter(close).min_by_key(|w| distance(seen, w)) {
        Some(word) => format!("; did you mean {word}?"),
        None => String::new(),
    }
}

/// Insertions, deletions and replacements between two short words.
fn distance(a: &str, b: &str) -> usize {
    if a.len().abs_diff(b.len()) > 2 || a.len() > 64 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// JSON Schema of a shape.
pub fn json_schema(shape: &Shape) -> Value {
    match shape {
        Shape::Text(rule) if rule.pattern.is_empty() => json!({"type": "string"}),
        Shape::Text(rule) => json!({"type": "string", "pattern": rule.pattern}),
        Shape::Choice(words) => json!({"type": "string", "enum": words}),
        Shape::Integer(min, max) => json!({"type": "integer", "minimum": min, "maximum": max}),
        Shape::Number(min, max) => json!({"type": "number", "minimum": min, "maximum": max}),
        Shape::Flag => json!({"type": "boolean"}),
        Shape::List(of, max) => json!({"type": "array", "maxItems": max, "items": json_schema(of)}),
        Shape::Labels => json!({"type": "object", "additionalProperties": {"type": "string"}}),
        Shape::TextOr(text, other) => json!({"anyOf": [json_schema(text), json_schema(other)]}),
        Shape::Object(fields) => {
            let mut properties = Map::new();
            for field in *fields {
                let mut schema = json_schema(field.shape);
                if let Value::Object(entries) = &mut schema {
                    entries.insert("description".to_owned(), field.doc.into());
                }
                properties.insert(field.name.to_owned(), schema);
            }
            let required: Vec<_> = fields.iter().filter(|f| f.required).map(|f| f.name).collect();
            json!({
                "type": "object",
                "additionalProperties": false,
                "properties": properties,
                "required": required,
            })
        }
    }
}
