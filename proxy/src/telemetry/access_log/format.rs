//! How a line of the access log looks: JSON with every field, or a text with some of them.

use std::fmt::{self, Write};
use std::str::FromStr;
use std::time::Duration;

use http::Version;

use super::Entry;

/// Longest text of a client in a line, in bytes; longer ones are cut. A path may have 8 KiB.
pub const TEXT_BYTES_MAX: usize = 1024;

/// The text format that the word `text` stands for.
pub const TEXT: &str = "{time} {direction} {client} \"{method} {path} {protocol}\" {status} {flags} {bytes} {duration_ms}ms {host} {service} {endpoint} {tries}";

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    /// One object a line, with all fields.
    Json,
    /// Texts and fields in turn.
    Text(Vec<Piece>),
}

/// Part of a text format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// As it stands.
    Literal(String),
    /// What the entry has.
    Field(Field),
}

macro_rules! fields {
    ($($name:ident $word:literal,)*) => {
        /// What a line may tell.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum Field { $($name,)* }

        impl Field {
            /// All of them, in the order of a JSON line.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// As it is written in a format, and as a key of JSON.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }
        }
    };
}

fields! {
    Time "time",
    Direction "direction",
    Client "client",
    Method "method",
    Host "host",
    Path "path",
    Protocol "protocol",
    Status "status",
    Flags "flags",
    Bytes "bytes",
    Duration "duration_ms",
    Head "head_ms",
    Service "service",
    Route "route",
    Endpoint "endpoint",
    Tries "tries",
    Trace "trace_id",
}

/// A format that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}; allowed are json, text, or a text with fields such as {{status}}, of: {}", words())]
pub struct FormatError {
    why: String,
}

fn words() -> String {
    Field::ALL.iter().map(|f| f.word()).collect::<Vec<_>>().join(", ")
}

impl FromStr for Format {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        match text {
            "json" => return Ok(Self::Json),
            "text" => return TEXT.parse(),
            _ => {}
        }
        let error = |why: String| FormatError { why };
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((literal, field)) = rest.split_once('{') {
            let (word, after) = field.split_once('}').ok_or_else(|| error(format!("{{{field} has no }}")))?;
            let field = Field::ALL.iter().find(|f| f.word() == word);
            let field = field.ok_or_else(|| error(format!("no field {word:?}")))?;
            if !literal.is_empty() {
                pieces.push(Piece::Literal(literal.to_owned()));
            }
            pieces.push(Piece::Field(*field));
            rest = after;
        }
        if pieces.is_empty() {
            return Err(error(format!("{text:?} has no field")));
        }
        if !rest.is_empty() {
            pieces.push(Piece::Literal(rest.to_owned()));
        }
        Ok(Self::Text(pieces))
    }
}

impl Format {
    /// The line of an entry whose answer ended at `now` after the epoch, with its end.
    pub fn line(&self, entry: &Entry, now: Duration) -> String {
        let mut line = String::with_capacity(512);
        match self {
            Self::Json => json(&mut line, entry, now),
            Self::Text(pieces) => {
                for piece in pieces {
                    match piece {
                        Piece::Literal(text) => line.push_str(text),
                        Piece::Field(field) => {
                            let start = line.len();
                            value(&mut line, *field, entry, now, false);
                            if line.len() == start {
                                line.push('-');
                            }
                        }
                    }
                }
            }
        }
        line.push('\n');
        line
    }
}

fn json(line: &mut String, entry: &Entry, now: Duration) {
    line.push('{');
    for (i, field) in Field::ALL.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        put(line, format_args!("{comma}\"{}\":", field.word()));
        match field {
            Field::Flags => {
                line.push('[');
                for (i, flag) in entry.flags.iter().enumerate() {
                    put(line, format_args!("{}\"{}\"", if i == 0 { "" } else { "," }, flag.word()));
                }
                line.push(']');
            }
            Field::Status | Field::Bytes | Field::Duration | Field::Head | Field::Tries => {
                let start = line.len();
                value(line, *field, entry, now, true);
                if line.len() == start {
                    line.push_str("null");
                }
            }
            _ => {
                line.push('"');
                value(line, *field, entry, now, true);
                line.push('"');
            }
        }
    }
    line.push('}');
}

/// What an entry has; nothing if it has nothing.
fn value(line: &mut String, field: Field, e: &Entry, now: Duration, json: bool) {
    match field {
        Field::Time => time(line, now.saturating_sub(e.took)),
        Field::Direction => line.push_str(e.direction.as_str()),
        Field::Client => put(line, format_args!("{}", e.client)),
        Field::Method => text(line, e.method.as_str(), json),
        Field::Host => text(line, &e.host, json),
        Field::Path => text(line, &e.path, json),
        Field::Protocol => line.push_str(match e.protocol {
            None => "TCP",
            Some(Version::HTTP_10) => "HTTP/1.0",
            Some(Version::HTTP_2) => "HTTP/2",
            Some(_) => "HTTP/1.1",
        }),
        Field::Status => {
            if let Some(status) = e.status {
                line.push_str(status.as_str());
            }
        }
        Field::Flags => put(line, format_args!("{}", e.flags)),
        Field::Bytes => put(line, format_args!("{}", e.bytes)),
        Field::Duration => millis(line, e.took),
        Field::Head => {
            if let Some(head) = e.head {
                millis(line, head);
            }
        }
        Field::Service => text(line, &e.service, json),
        Field::Route => text(line, &e.route, json),
        Field::Endpoint => {
            if let Some(endpoint) = e.endpoint {
                put(line, format_args!("{endpoint}"));
            }
        }
        Field::Tries => put(line, format_args!("{}", e.tries)),
        Field::Trace => line.push_str(&e.trace_id),
    }
}

fn put(line: &mut String, text: fmt::Arguments<'_>) {
    // A string takes everything.
    let _ = line.write_fmt(text);
}

/// Milliseconds with three digits behind the point.
fn millis(line: &mut String, time: Duration) {
    let micros = time.as_micros();
    put(line, format_args!("{}.{:03}", micros / 1000, micros % 1000));
}

/// What a client wrote, so that it makes no line of its own and ends no quotation (CWE-117): as JSON has it in JSON,
/// and as `\xNN` in text.
fn text(line: &mut String, text: &str, json: bool) {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    for c in text[..end].chars() {
        match c {
            '"' | '\\' => {
                line.push('\\');
                line.push(c);
            }
            c if c.is_control() && json => put(line, format_args!("\\u{:04x}", u32::from(c))),
            c if c.is_control() => put(line, format_args!("\\x{:02x}", u32::from(c))),
            c => line.push(c),
        }
    }
}

/// RFC 3339, in UTC, with milliseconds.
fn time(line: &mut String, since_epoch: Duration) {
    let secs = since_epoch.as_secs();
    let (days, of_day) = (secs / 86_400, secs % 86_400);
    // Years from March on, so that the day of leap years is their last (Hinnant, "chrono-compatible low-level date
    // algorithms").
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    put(
        line,
        format_args!(
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
            of_day / 3600,
            of_day % 3600 / 60,
            of_day % 60,
            since_epoch.subsec_millis()
        ),
    );
}
