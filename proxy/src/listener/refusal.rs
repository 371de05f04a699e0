//! Why bytes of a client are not taken for a request.

use http::StatusCode;

use crate::limits;

/// A form that is refused, by what it breaks. Each is answered once and the connection closed, because what follows
/// on it cannot be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// First byte of what should be a request line.
    #[error("this is no HTTP request: it starts with byte 0x{0:02x} (TLS on a plaintext port?)")]
    NotHttp(u8),
    /// Not `METHOD SP target SP HTTP/1.x`.
    #[error("malformed request line")]
    RequestLine,
    /// Not HTTP/1.0 or 1.1.
    #[error("HTTP version is not supported: use HTTP/1.1, or HTTP/2 with prior knowledge")]
    Version,
    /// [`limits::URI_BYTES_MAX`].
    #[error("request target is longer than {} bytes", limits::URI_BYTES_MAX)]
    UriTooLong,
    /// [`limits::HEAD_BYTES_MAX`].
    #[error("request head is larger than {} bytes", limits::HEAD_BYTES_MAX)]
    HeadTooLarge,
    /// [`limits::HEADERS_MAX`].
    #[error("request has more than {} header fields", limits::HEADERS_MAX)]
    TooManyHeaders,
    /// A line ends in LF alone (RFC 9112 §2.2 lets a server refuse it; others read it differently).
    #[error("line ends in a bare LF")]
    BareLf,
    /// A CR that no LF follows.
    #[error("bare CR in the request head")]
    BareCr,
    /// A line that continues the one before (RFC 9112 §5.2).
    #[error("obsolete line folding in the request head")]
    ObsFold,
    /// `Name : value` (RFC 9112 §5.1).
    #[error("white space between field name and colon")]
    SpaceBeforeColon,
    /// Empty name, no colon, or a byte that is none of a token.
    #[error("malformed field name")]
    FieldName,
    /// A control character.
    #[error("control character in a field value")]
    FieldValue,
    /// Names that some servers take for the hyphenated ones.
    #[error("field name imitates Content-Length or Transfer-Encoding")]
    ImitatedFraming,
    /// RFC 9112 §6.3: an attempt to smuggle.
    #[error("both Content-Length and Transfer-Encoding are given")]
    LengthAndEncoding,
    /// Even equal ones.
    #[error("several Content-Length fields")]
    SeveralLengths,
    /// Not one plain decimal number.
    #[error("Content-Length is not a plain decimal number")]
    Length,
    /// Several fields.
    #[error("several Transfer-Encoding fields")]
    SeveralEncodings,
    /// Anything but `chunked` (RFC 9112 §6.1).
    #[error("Transfer-Encoding other than chunked")]
    Encoding,
    /// RFC 9112 §6.1.
    #[error("Transfer-Encoding in an HTTP/1.0 request")]
    EncodingInHttp10,
    /// RFC 9112 §3.2.
    #[error("Host field is missing")]
    NoHost,
    /// RFC 9112 §3.2.
    #[error("several Host fields")]
    SeveralHosts,
    /// RFC 9110 §9.3.6: there is no content in it, so its bytes would be read differently.
    #[error("CONNECT request with a body")]
    ConnectBody,
    /// Size line or separators of a chunk.
    #[error("malformed chunked body")]
    Chunk,
    /// A trailer field that would change framing or routing, or is malformed.
    #[error("malformed or forbidden trailer field")]
    Trailer,
    /// [`limits::HEAD_TIMEOUT`].
    #[error("request head did not arrive within {:?}", limits::HEAD_TIMEOUT)]
    HeadTimeout,
}

impl Refusal {
    /// Status of the answer.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::UriTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTooLarge | Self::TooManyHeaders => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Encoding => StatusCode::NOT_IMPLEMENTED,
            Self::HeadTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::NotHttp(_)
            | Self::RequestLine
            | Self::BareLf
            | Self::BareCr
            | Self::ObsFold
            | Self::SpaceBeforeColon
            | Self::FieldName
            | Self::FieldValue
            | Self::ImitatedFraming
            | Self::LengthAndEncoding
            | Self::SeveralLengths
            | Self::Length
            | Self::SeveralEncodings
            | Self::EncodingInHttp10
            | Self::NoHost
            | Self::SeveralHosts
            | Self::ConnectBody
            | Self::Chunk
            | Self::Trailer => StatusCode::BAD_REQUEST,
        }
    }

    /// Short label for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::UriTooLong | Self::HeadTooLarge | Self::TooManyHeaders => "too_large",
            Self::HeadTimeout => "timeout",
            Self::LengthAndEncoding
            | Self::SeveralLengths
            | Self::Length
            | Self::SeveralEncodings
            | Self::Encoding
            | Self::EncodingInHttp10
            | Self::ConnectBody
            | Self::ImitatedFraming => "framing",
            Self::Chunk | Self::Trailer => "body",
            _ => "malformed",
        }
    }
}
