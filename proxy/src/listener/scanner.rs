//! A strict reading of the HTTP/1 byte stream in front of the parser, as a value: no socket, no clock.
//!
//! Parsers differ in what they forgive, and request smuggling lives in the difference. This scanner forgives nothing:
//! it follows heads and bodies of a whole connection (RFC 9112), so that it and the parser behind it agree on where
//! each request ends, and stops at the first form that another server could read otherwise.
//!
//! ```text
//!            line           empty line                    last byte
//!  HeadStart ----> Headers ------------> Length(n) ------------------------> HeadStart
//!                                 \----> Chunk…  -> Trailers -- empty line -> HeadStart
//!                                 \----> HeadStart          (no body)
//!                                 \----> Undecided           (CONNECT, Upgrade) -- no switch --> HeadStart
//! ```
//! What follows a CONNECT or an `Upgrade` is either HTTP or not, and its answer says which. Until there is one, nothing
//! of it is passed on and nothing is concluded from it; a client that sends its next bytes too early gains nothing.
//!
//! A head is passed on only when it is complete and clean; a body is passed on as it comes. Lines are looked at once,
//! when their end is there, and the search for that end never starts over, so a client that sends byte by byte costs
//! no more than one that does not. Nothing is allocated for a head.

use memchr::memchr;

use super::refusal::Refusal;
use crate::limits::{CHUNK_LINE_BYTES_MAX, HEAD_BYTES_MAX, HEADERS_MAX, TRAILER_BYTES_MAX, URI_BYTES_MAX};

/// What one look at more bytes found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scanned {
    /// Bytes from the front that may be passed on. Without a refusal the rest is a head that is not complete yet:
    /// give it again, in front of what follows, to the next [`Scanner::scan`].
    pub passable: usize,
    /// What stands after them; nothing more of this connection may be passed on.
    pub refusal: Option<Refused>,
}

/// A refusal with its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// In a head, none of which was passed on: it can be answered.
    Head(Refusal),
    /// In a body whose head was passed on: the request it belongs to must fail.
    Body(Refusal),
}

/// Where the stream is between two reads, as timeouts see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// Between requests.
    Idle,
    /// Part of a head has arrived.
    Head,
    /// In a body, or behind a request that may end HTTP on this connection.
    Body,
}

/// See the module. One per connection.
#[derive(Debug, Default)]
pub struct Scanner {
    state: State,
    heads: u32,
}

impl Scanner {
    /// At the start of a connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks at the next bytes: those not passed on last time, then new ones.
    pub fn scan(&mut self, bytes: &[u8]) -> Scanned {
        let mut at = 0;
        loop {
            let rest = &bytes[at..];
            match &mut self.state {
                State::Head(head) => match head.feed(rest) {
                    Ok(None) => return Scanned { passable: at, refusal: None },
                    Ok(Some((len, next))) => {
                        at += len;
                        self.heads = self.heads.wrapping_add(1);
                        self.state = next;
                    }
                    Err(refusal) => {
                        self.state = State::Opaque;
                        return Scanned { passable: at, refusal: Some(Refused::Head(refusal)) };
                    }
                },
                State::Length(left) => {
                    let take = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    at += take;
                    *left -= take as u64;
                    if *left > 0 {
                        return Scanned { passable: at, refusal: None };
                    }
                    self.state = State::default();
                }
                State::Chunked(chunked) => match chunked.feed(rest) {
                    Ok((taken, done)) => {
                        at += taken;
                        if !done {
                            return Scanned { passable: at, refusal: None };
                        }
                        self.state = State::default();
                    }
                    Err((taken, refusal)) => {
                        self.state = State::Opaque;
                        return Scanned { passable: at + taken, refusal: Some(Refused::Body(refusal)) };
                    }
                },
                State::Undecided | State::Opaque => return Scanned { passable: at, refusal: None },
            }
        }
    }

    /// Where it is; `held` says whether bytes wait to be given again.
    pub fn position(&self, held: bool) -> Position {
        match &self.state {
            State::Head(_) if held => Position::Head,
            State::Head(_) => Position::Idle,
            State::Length(_) | State::Chunked(_) | State::Undecided | State::Opaque => Position::Body,
        }
    }

    /// Behind a refusal: bytes mean nothing any more.
    pub fn is_opaque(&self) -> bool {
        matches!(self.state, State::Opaque)
    }

    /// Behind a request whose answer decides what the bytes that follow are. They stay unscanned until
    /// [`Scanner::goes_on`].
    pub fn is_undecided(&self) -> bool {
        matches!(self.state, State::Undecided)
    }

    /// Heads passed on so far; it wraps.
    pub fn heads(&self) -> u32 {
        self.heads
    }

    /// The request in question was answered without a switch: what follows is HTTP, as if it had not been asked.
    pub fn goes_on(&mut self) {
        if self.is_undecided() {
            self.state = State::default();
        }
    }
}

#[derive(Debug)]
enum State {
    Head(Head),
    Length(u64),
    Chunked(Chunked),
    Undecided,
    Opaque,
}

impl Default for State {
    fn default() -> Self {
        Self::Head(Head::default())
    }
}

/// What is known of the head so far. Offsets count from its first byte.
#[derive(Debug, Default)]
struct Head {
    line_start: usize,
    /// No line end before this offset, from `line_start` on.
    searched: usize,
    has_request_line: bool,
    http10: bool,
    connect: bool,
    upgrade: bool,
    fields: usize,
    hosts: u8,
    encodings: u8,
    length: Option<u64>,
}

impl Head {
    /// `bytes` start at the head's first byte. Answers its length and what follows it once it is complete.
    fn feed(&mut self, bytes: &[u8]) -> Result<Option<(usize, State)>, Refusal> {
        loop {
            if !self.has_request_line
                && let Some(first) = bytes.get(self.line_start)
                && !is_token(*first)
                && !matches!(first, b'\r' | b'\n')
            {
                return Err(Refusal::NotHttp(*first));
            }
            let Some(found) = memchr(b'\n', &bytes[self.searched.min(bytes.len())..]) else {
                self.searched = bytes.len();
                return self.check_incomplete(bytes).map(|()| None);
            };
            let lf = self.searched + found;
            let end = lf + 1;
            if end > HEAD_BYTES_MAX {
                return Err(self.too_large(lf - self.line_start));
            }
            if lf == self.line_start || bytes[lf - 1] != b'\r' {
                return Err(Refusal::BareLf);
            }
            let line = &bytes[self.line_start..lf - 1];
            self.line_start = end;
            self.searched = end;
            if !self.has_request_line {
                if line.is_empty() && end == 2 {
                    // One empty line before a request is allowed (RFC 9112 §2.2); the parser skips it as well.
                    continue;
                }
                self.request_line(line)?;
            } else if line.is_empty() {
                return self.finish().map(|next| Some((end, next)));
            } else {
                self.field(line)?;
            }
        }
    }

    /// Limits must bite before a line has an end.
    fn check_incomplete(&self, bytes: &[u8]) -> Result<(), Refusal> {
        let line = &bytes[self.line_start.min(bytes.len())..];
        let limit = if self.has_request_line { HEAD_BYTES_MAX } else { REQUEST_LINE_MAX };
        if line.len() > limit || bytes.len() > HEAD_BYTES_MAX {
            return Err(self.too_large(line.len()));
        }
        Ok(())
    }

    fn too_large(&self, line: usize) -> Refusal {
        if !self.has_request_line && line > URI_BYTES_MAX {
            Refusal::UriTooLong
        } else {
            Refusal::HeadTooLarge
        }
    }

    fn request_line(&mut self, line: &[u8]) -> Result<(), Refusal> {
        let method_end = memchr(b' ', line).ok_or(Refusal::RequestLine)?;
        let (method, rest) = (&line[..method_end], &line[method_end + 1..]);
        if method.len() > METHOD_MAX || !method.iter().all(|b| is_token(*b)) {
            return Err(Refusal::RequestLine);
        }
        let target_end = memchr(b' ', rest).ok_or(Refusal::RequestLine)?;
        let (target, version) = (&rest[..target_end], &rest[target_end + 1..]);
        if target.len() > URI_BYTES_MAX {
            return Err(Refusal::UriTooLong);
        }
        if target.is_empty() || !target.iter().all(|b| (0x21..0x7f).contains(b) && *b != b'#') {
            return Err(Refusal::RequestLine);
        }
        match version {
            b"HTTP/1.1" => {}
            b"HTTP/1.0" => self.http10 = true,
            [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
                if major.is_ascii_digit() && minor.is_ascii_digit() =>
            {
                return Err(Refusal::Version);
            }
            _ => return Err(Refusal::RequestLine),
        }
        self.connect = method == b"CONNECT";
        self.has_request_line = true;
        Ok(())
    }

    fn field(&mut self, line: &[u8]) -> Result<(), Refusal> {
        if matches!(line[0], b' ' | b'\t') {
            return Err(Refusal::ObsFold);
        }
        self.fields += 1;
        if self.fields > HEADERS_MAX {
            return Err(Refusal::TooManyHeaders);
        }
        let (name, value) = split_field(line)?;
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                self.hosts += 1;
                if self.hosts > 1 {
                    return Err(Refusal::SeveralHosts);
                }
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => self.upgrade = true,
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                if self.length.is_some() {
                    return Err(Refusal::SeveralLengths);
                }
                self.length = Some(parse_length(value)?);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                self.encodings += 1;
                if self.encodings > 1 {
                    return Err(Refusal::SeveralEncodings);
                }
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Refusal::Encoding);
                }
            }
            14 if name.eq_ignore_ascii_case(b"content_length") => return Err(Refusal::ImitatedFraming),
            17 if name.eq_ignore_ascii_case(b"transfer_encoding") => return Err(Refusal::ImitatedFraming),
            _ => {}
        }
        Ok(())
    }

    fn finish(&self) -> Result<State, Refusal> {
        if self.encodings > 0 {
            if self.length.is_some() {
                return Err(Refusal::LengthAndEncoding);
            }
            if self.http10 {
                return Err(Refusal::EncodingInHttp10);
            }
        }
        if self.hosts == 0 && !self.http10 {
            return Err(Refusal::NoHost);
        }
        let has_body = self.encodings > 0 || self.length.is_some_and(|l| l > 0);
        if self.connect && has_body {
            return Err(Refusal::ConnectBody);
        }
        // HTTP/1.0 knows no upgrades (RFC 9110 §7.8), and one behind a body is never passed on.
        let may_switch = self.connect || self.upgrade && !self.http10;
        Ok(match self.length {
            _ if may_switch && !has_body => State::Undecided,
            _ if self.encodings > 0 => State::Chunked(Chunked::default()),
            None | Some(0) => State::default(),
            Some(length) => State::Length(length),
        })
    }
}

/// A chunked body (RFC 9112 §7.1) between two reads.
#[derive(Debug, Default)]
struct Chunked {
    part: ChunkPart,
    size: u64,
    digits: usize,
    /// Bytes of the size line, or of the whole trailer section.
    line_bytes: usize,
    /// The trailer line that has no end yet.
    line: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy)]
enum ChunkPart {
    #[default]
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    Trailer,
}

impl Chunked {
    /// Bytes taken, and whether the body is complete; or the bytes before the fault.
    fn feed(&mut self, bytes: &[u8]) -> Result<(usize, bool), (usize, Refusal)> {
        let mut at = 0;
        while at < bytes.len() {
            let byte = bytes[at];
            match self.part {
                ChunkPart::Size | ChunkPart::Extension | ChunkPart::SizeLf => {
                    self.size_byte(byte).map_err(|refusal| (at, refusal))?;
                    at += 1;
                }
                ChunkPart::Data => {
                    let take = usize::try_from(self.size).unwrap_or(usize::MAX).min(bytes.len() - at);
                    at += take;
                    self.size -= take as u64;
                    if self.size == 0 {
                        self.part = ChunkPart::DataCr;
                    }
                }
                ChunkPart::DataCr if byte == b'\r' => {
                    self.part = ChunkPart::DataLf;
                    at += 1;
                }
                ChunkPart::DataLf if byte == b'\n' => {
                    *self = Self::default();
                    at += 1;
                }
                ChunkPart::DataCr | ChunkPart::DataLf => return Err((at, Refusal::Chunk)),
                ChunkPart::Trailer => {
                    let end = memchr(b'\n', &bytes[at..]).map(|found| at + found + 1);
                    let piece = &bytes[at..end.unwrap_or(bytes.len())];
                    self.line_bytes += piece.len();
                    if self.line_bytes > TRAILER_BYTES_MAX {
                        return Err((at, Refusal::Trailer));
                    }
                    self.line.extend_from_slice(piece);
                    let before = at;
                    at += piece.len();
                    if end.is_some() {
                        let Some(line) = self.line.strip_suffix(b"\r\n") else {
                            return Err((before, Refusal::BareLf));
                        };
                        if line.is_empty() {
                            return Ok((at, true));
                        }
                        trailer(line).map_err(|refusal| (before, refusal))?;
                        self.line.clear();
                    }
                }
            }
        }
        Ok((at, false))
    }

    fn size_byte(&mut self, byte: u8) -> Result<(), Refusal> {
        self.line_bytes += 1;
        if self.line_bytes > CHUNK_LINE_BYTES_MAX {
            return Err(Refusal::Chunk);
        }
        self.part = match (self.part, byte) {
            (ChunkPart::Size, b'\r') if self.digits > 0 => ChunkPart::SizeLf,
            (ChunkPart::Size, b';') if self.digits > 0 => ChunkPart::Extension,
            (ChunkPart::Size, _) => {
                let digit = (byte as char).to_digit(16).ok_or(Refusal::Chunk)?;
                self.digits += 1;
                if self.digits > CHUNK_DIGITS_MAX {
                    return Err(Refusal::Chunk);
                }
                self.size = self.size << 4 | u64::from(digit);
                ChunkPart::Size
            }
            (ChunkPart::Extension, b'\r') => ChunkPart::SizeLf,
            (ChunkPart::Extension, b'\t' | b' '..=b'~' | 0x80..) => ChunkPart::Extension,
            (ChunkPart::SizeLf, b'\n') if self.size > 0 => ChunkPart::Data,
            (ChunkPart::SizeLf, b'\n') => {
                self.line_bytes = 0;
                ChunkPart::Trailer
            }
            _ => return Err(Refusal::Chunk),
        };
        Ok(())
    }
}

fn trailer(line: &[u8]) -> Result<(), Refusal> {
    if matches!(line[0], b' ' | b'\t') {
        return Err(Refusal::ObsFold);
    }
    let (name, _) = split_field(line)?;
    let forbidden = ["content-length", "transfer-encoding", "host", "connection"];
    if forbidden.iter().any(|f| name.eq_ignore_ascii_case(f.as_bytes())) {
        return Err(Refusal::Trailer);
    }
    Ok(())
}

/// Name and value without the white space around it. The line is not empty and has no LF.
fn split_field(line: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    let colon = memchr(b':', line).ok_or(Refusal::FieldName)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if matches!(name.last(), Some(b' ' | b'\t')) {
        return Err(Refusal::SpaceBeforeColon);
    }
    if name.is_empty() || !name.iter().all(|b| is_token(*b)) {
        return Err(Refusal::FieldName);
    }
    // Without a branch in the loop, so that the compiler takes many bytes at once.
    let bad = value.iter().fold(false, |bad, &b| bad | ((b < 0x20) & (b != b'\t')) | (b == 0x7f));
    if bad {
        return Err(if value.contains(&b'\r') { Refusal::BareCr } else { Refusal::FieldValue });
    }
    Ok((name, trim(value)))
}

fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

fn parse_length(value: &[u8]) -> Result<u64, Refusal> {
    if value.is_empty() || value.len() > LENGTH_DIGITS_MAX || !value.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::Length);
    }
    Ok(value.iter().fold(0, |n, b| n * 10 + u64::from(b - b'0')))
}

fn is_token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

/// RFC 9110 §5.6.2.
const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut i = 0;
    while i < 256 {
        let b = i as u8;
        table[i] = b.is_ascii_alphanumeric()
            || matches!(
                b,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            );
        i += 1;
    }
    table
};

/// Longest method name; registered ones have at most 17 letters.
pub(crate) const METHOD_MAX: usize = 32;
const REQUEST_LINE_MAX: usize = METHOD_MAX + 1 + URI_BYTES_MAX + 1 + "HTTP/1.1\r".len();
/// All numbers of so many digits fit in 64 bits.
const LENGTH_DIGITS_MAX: usize = 18;
/// 2^60 bytes; all numbers of so many digits fit in 63 bits, as the parser behind needs.
const CHUNK_DIGITS_MAX: usize = 15;

#[cfg(test)]
mod tests;
