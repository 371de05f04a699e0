//! Where the body of a message ends (RFC 9112 §6), and what is left of one that is being read.

use bytes::{Bytes, BytesMut};
use http::HeaderMap;

use super::chunked::Chunked;

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(u64),
    Chunked,
    /// Of answers only.
    UntilClose,
}

impl Framing {
    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self == Self::Length(0)
    }
}

/// What comes next of a body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    /// More has to be read first.
    More,
}

/// What is left of a body.
#[derive(Debug)]
pub(crate) enum Left {
    Length(u64),
    Chunked(Box<Chunked>),
    UntilClose,
}

impl From<Framing> for Left {
    fn from(framing: Framing) -> Self {
        match framing {
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(Box::default()),
            Framing::UntilClose => Self::UntilClose,
        }
    }
}

impl Left {
    /// Whether nothing is.
    pub fn is_end(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunked) => chunked.is_end(),
            Self::UntilClose => false,
        }
    }

    /// Passes over what was read of it. Answers whether that was the rest.
    pub fn pass_over(&mut self, input: &mut BytesMut) -> bool {
        loop {
            match self.next(input) {
                Ok(Piece::End) => return true,
                Ok(Piece::More) | Err(_) => return false,
                Ok(Piece::Data(_) | Piece::Trailers(_)) => {}
            }
        }
    }

    /// The next piece of what was read.
    ///
    /// # Errors
    /// If it is not framed as it should be.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Piece, &'static str> {
        match self {
            Self::Length(0) => Ok(Piece::End),
            Self::Chunked(chunked) => chunked.next(input),
            Self::Length(_) | Self::UntilClose if input.is_empty() => Ok(Piece::More),
            Self::Length(left) => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                *left -= take as u64;
                Ok(Piece::Data(input.split_to(take).freeze()))
            }
            Self::UntilClose => Ok(Piece::Data(input.split().freeze())),
        }
    }
}
