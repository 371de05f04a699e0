//! Bodies in chunks (RFC 9112 §7.1).

use bytes::{Buf, BytesMut};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use memchr::memchr;

use super::body::Piece;
use crate::limits::{CHUNK_LINE_BYTES_MAX, HEADERS_MAX, TRAILER_BYTES_MAX};

/// More digits would not fit; leading zeros are no reason for more.
const DIGITS_MAX: usize = 16;

/// Takes the chunks apart.
#[derive(Debug, Default)]
pub(crate) struct Chunked {
    part: Part,
    trailers: HeaderMap,
    /// Of the trailer section so far.
    trailer_bytes: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Part {
    #[default]
    Size,
    Data(u64),
    /// The end of a chunk's line.
    DataEnd,
    Trailer,
    End,
}

impl Chunked {
    pub fn is_end(&self) -> bool {
        self.part == Part::End && self.trailers.is_empty()
    }

    /// The next piece of what is there.
    ///
    /// # Errors
    /// If it is not in chunks.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Piece, &'static str> {
        loop {
            match self.part {
                Part::Size => {
                    let Some(line) = line(input, CHUNK_LINE_BYTES_MAX, "the line of a chunk is too long")?
                    else {
                        return Ok(Piece::More);
                    };
                    let size = size(&line)?;
                    self.part = if size == 0 { Part::Trailer } else { Part::Data(size) };
                }
                Part::Data(left) => {
                    if input.is_empty() {
                        return Ok(Piece::More);
                    }
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                    let left = left - take as u64;
                    self.part = if left == 0 { Part::DataEnd } else { Part::Data(left) };
                    let data = input.split_to(take).freeze();
                    self.pass_end(input)?;
                    return Ok(Piece::Data(data));
                }
                Part::DataEnd => {
                    if !self.pass_end(input)? {
                        return Ok(Piece::More);
                    }
                }
                Part::Trailer => {
                    let left = TRAILER_BYTES_MAX - self.trailer_bytes;
                    let Some(line) = line(input, left, "its trailer section is too long")? else {
                        return Ok(Piece::More);
                    };
                    self.trailer_bytes += (line.len() + 2).min(left);
                    if line.is_empty() {
                        self.part = Part::End;
                    } else {
                        self.trailer(&line)?;
                    }
                }
                Part::End if self.trailers.is_empty() => return Ok(Piece::End),
                Part::End => return Ok(Piece::Trailers(std::mem::take(&mut self.trailers))),
            }
        }
    }

    /// Passes over the end of a chunk, if it is there, so that the last data of a body is known to be the last. Answers
    /// whether it was.
    fn pass_end(&mut self, input: &mut BytesMut) -> Result<bool, &'static str> {
        if self.part != Part::DataEnd || input.len() < 2 {
            return Ok(false);
        }
        if !input.starts_with(b"\r\n") {
            return Err("a chunk is longer than it says");
        }
        input.advance(2);
        self.part = Part::Size;
        // The usual end of a body.
        if input.starts_with(b"0\r\n\r\n") {
            input.advance(5);
            self.part = Part::End;
        }
        Ok(true)
    }

    fn trailer(&mut self, line: &[u8]) -> Result<(), &'static str> {
        let colon = memchr(b':', line).ok_or("a trailer without a name")?;
        let name = HeaderName::from_bytes(&line[..colon]).map_err(|_| "the name of a trailer")?;
        let value =
            HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).map_err(|_| "the value of a trailer")?;
        if self.trailers.len() >= HEADERS_MAX {
            return Err("too many trailers");
        }
        self.trailers.append(name, value);
        Ok(())
    }
}

/// Takes a line that ends with CRLF, without its end.
fn line(input: &mut BytesMut, max: usize, too_long: &'static str) -> Result<Option<BytesMut>, &'static str> {
    let Some(lf) = memchr(b'\n', &input[..input.len().min(max + 1)]) else {
        return if input.len() > max { Err(too_long) } else { Ok(None) };
    };
    let mut line = input.split_to(lf + 1);
    line.truncate(lf);
    if line.last() != Some(&b'\r') {
        return Err("a line without CR");
    }
    line.truncate(lf - 1);
    if line.contains(&b'\r') {
        return Err("a CR within a line");
    }
    Ok(Some(line))
}

/// Hexadecimal digits, and an extension that nobody looks at.
fn size(line: &[u8]) -> Result<u64, &'static str> {
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let rest = &line[digits..];
    // "BWS" before the extension (RFC 9112 §7.1.1).
    if digits == 0 || digits > DIGITS_MAX || !matches!(rest.trim_ascii_start(), [] | [b';', ..]) {
        return Err("the size of a chunk");
    }
    let digit = |b: &u8| u64::from((*b as char).to_digit(16).unwrap_or(0));
    Ok(line[..digits].iter().fold(0, |n, b| n << 4 | digit(b)))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    /// Data and trailers of a body that arrives in these parts.
    fn read(parts: &[&[u8]]) -> Result<(Vec<u8>, HeaderMap, bool), &'static str> {
        let (mut chunked, mut input) = (Chunked::default(), BytesMut::new());
        let (mut data, mut trailers) = (Vec::new(), HeaderMap::new());
        for part in parts {
            input.extend_from_slice(part);
            loop {
                match chunked.next(&mut input)? {
                    Piece::Data(more) => data.extend_from_slice(&more),
                    Piece::Trailers(found) => trailers = found,
                    Piece::More => break,
                    Piece::End => return Ok((data, trailers, input.is_empty())),
                }
            }
        }
        Err("incomplete")
    }

    #[test]
    fn data_and_trailers_are_found_and_nothing_behind_them_is_taken() {
        let (data, trailers, empty) =
            read(&[b"5;a=\"b\"\r\nhello\r\n1 ;x\r\n!\r\n000\r\nX-Sum: 1\r\nX-Sum:2 \r\n\r\n"]).unwrap();
        assert!(data == b"hello!" && empty);
        assert_eq!(trailers.get_all("x-sum").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert!(!read(&[b"0\r\n\r\nHTTP/1.1 200 OK"]).unwrap().2);
    }

    #[test]
    fn the_last_data_is_known_to_be_the_last() {
        let mut chunked = Chunked::default();
        let mut input = BytesMut::from(&b"2\r\nhi\r\n0\r\n\r\n"[..]);
        assert_eq!(chunked.next(&mut input), Ok(Piece::Data(Bytes::from_static(b"hi"))));
        assert!(chunked.is_end());
    }

    /// D02: what two readers could read in two ways is read by nobody.
    #[test]
    fn what_is_not_in_chunks_is_refused() {
        for (bad, expected) in [
            ("\r\n", "the size of a chunk"),
            ("x\r\n", "the size of a chunk"),
            ("-1\r\n", "the size of a chunk"),
            ("0x5\r\nhello", "the size of a chunk"),
            (" 5\r\nhello", "the size of a chunk"),
            ("5 5\r\nhello", "the size of a chunk"),
            ("11111111111111111\r\n", "the size of a chunk"),
            ("5\nhello\r\n", "a line without CR"),
            ("5;a\rb\r\nhello\r\n", "a CR within a line"),
            ("5\r\nhello!\r\n", "a chunk is longer than it says"),
            ("5\r\nhello\n0\r\n", "a chunk is longer than it says"),
            ("0\r\nno name\r\n\r\n", "a trailer without a name"),
            ("0\r\nA B: c\r\n\r\n", "the name of a trailer"),
            ("0\r\n a: c\r\n\r\n", "the name of a trailer"),
            ("0\r\na: \u{1}c\r\n\r\n", "the value of a trailer"),
        ] {
            assert_eq!(read(&[bad.as_bytes()]), Err(expected), "{bad:?}");
        }
        let long = format!("5;{}\r\n", "x".repeat(CHUNK_LINE_BYTES_MAX));
        assert_eq!(read(&[long.as_bytes()]), Err("the line of a chunk is too long"));
        let many = format!("0\r\n{}", "a: 1234567890123456\r\n".repeat(1000));
        assert!(matches!(
            read(&[many.as_bytes()]),
            Err("too many trailers" | "its trailer section is too long")
        ));
        let endless = format!("0\r\na: {}", "1".repeat(TRAILER_BYTES_MAX));
        assert_eq!(read(&[endless.as_bytes()]), Err("its trailer section is too long"));
    }

    proptest! {
        #[test]
        fn whatever_the_chunks_and_the_reads_the_data_is_the_same(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..8),
            cuts in proptest::collection::vec(1usize..30, 0..40),
        ) {
            let mut text = Vec::new();
            for chunk in &chunks {
                text.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                text.extend_from_slice(chunk);
                text.extend_from_slice(b"\r\n");
            }
            text.extend_from_slice(b"0\r\n\r\n");
            let (mut rest, mut parts) = (&text[..], Vec::new());
            for cut in cuts {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                parts.push(now);
                rest = later;
            }
            parts.push(rest);
            let (data, trailers, empty) = read(&parts).unwrap();
            prop_assert_eq!(data, chunks.concat());
            prop_assert!(trailers.is_empty() && empty);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&[&bytes]);
            let _ = read(&[b"5\r\nhello\r\n0\r\n", &bytes]);
        }
    }
}
