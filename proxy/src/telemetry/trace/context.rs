//! W3C Trace Context (Recommendation of 2021, and Level 2 for the random flag): `traceparent` says which trace a request
//! is of, which span sent it, and whether it is sampled; `tracestate` is for others and passes as it came.

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

/// See the module.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// See the module.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Longest `tracestate` that is sent to a collector, in bytes (§3.3.1.5 asks for at least 512).
const STATE_BYTES_MAX: usize = 512;
/// §3.3.1.1.
const STATE_MEMBERS_MAX: usize = 32;

const SAMPLED: u8 = 1;
const RANDOM: u8 = 2;

/// What a `traceparent` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// Not all zero.
    pub trace_id: [u8; 16],
    /// Not all zero.
    pub span_id: [u8; 8],
    /// Whether its spans are wanted.
    pub sampled: bool,
    /// Whether the last seven bytes of the trace id are random.
    pub random: bool,
}

/// What a caller sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incoming {
    /// Nothing usable: the trace begins here.
    None,
    /// Its context.
    Valid(TraceContext),
}

impl TraceContext {
    /// As they are sent.
    pub fn flags(self) -> u8 {
        (u8::from(self.sampled) * SAMPLED) | (u8::from(self.random) * RANDOM)
    }
}

/// Reads the caller's context. What is not valid is taken out, and so is a `tracestate` without a valid `traceparent`
/// (§4.3): whoever comes next must not take it for ours.
pub fn read(headers: &mut HeaderMap) -> Incoming {
    let mut values = headers.get_all(&TRACEPARENT).iter();
    let parsed = match (values.next(), values.next()) {
        (Some(one), None) => parse(one.as_bytes()),
        _ => None,
    };
    match parsed {
        Some(context) => {
            if headers.contains_key(&TRACESTATE) && !is_state(headers) {
                headers.remove(&TRACESTATE);
            }
            Incoming::Valid(context)
        }
        None => {
            headers.remove(&TRACEPARENT);
            headers.remove(&TRACESTATE);
            Incoming::None
        }
    }
}

/// Puts the context of this hop in the place of the caller's.
pub fn write(headers: &mut HeaderMap, context: &TraceContext) {
    let mut text = [0; 55];
    text[..3].copy_from_slice(b"00-");
    hex(&context.trace_id, &mut text[3..35]);
    text[35] = b'-';
    hex(&context.span_id, &mut text[36..52]);
    text[52] = b'-';
    hex(&[context.flags()], &mut text[53..]);
    if let Ok(value) = HeaderValue::from_bytes(&text) {
        headers.insert(TRACEPARENT, value);
    }
}

/// The trace id of a request, in hex; empty if it has none.
pub fn trace_id_of(headers: &HeaderMap) -> String {
    let value = headers.get(&TRACEPARENT).map(|v| v.as_bytes());
    let valid = value.filter(|v| parse(v).is_some()).and_then(|v| std::str::from_utf8(&v[3..35]).ok());
    valid.unwrap_or_default().to_owned()
}

/// What a span tells of a `tracestate`.
pub fn state_of(headers: &HeaderMap) -> String {
    let values = headers.get_all(&TRACESTATE).iter().filter_map(|v| v.to_str().ok());
    let state = values.collect::<Vec<_>>().join(",");
    if state.len() <= STATE_BYTES_MAX { state } else { String::new() }
}

/// A new trace.
pub fn trace_id(random: &mut impl FnMut() -> u64) -> [u8; 16] {
    // One of them is not 0, whatever the source gives.
    let [a, b] = [random(), random().max(1)];
    let mut id = [0; 16];
    id[..8].copy_from_slice(&a.to_be_bytes());
    id[8..].copy_from_slice(&b.to_be_bytes());
    id
}

/// A new span.
pub fn span_id(random: &mut impl FnMut() -> u64) -> [u8; 8] {
    random().max(1).to_be_bytes()
}

/// §3.2.2 and, for versions of the future, §3.2.4.
fn parse(value: &[u8]) -> Option<TraceContext> {
    let version = byte(value.get(..2)?)?;
    let whole = value.len() == 55 || (version > 0 && value.get(55) == Some(&b'-'));
    if version == 0xff || !whole || [2, 35, 52].iter().any(|at| value[*at] != b'-') {
        return None;
    }
    let mut context = TraceContext { trace_id: [0; 16], span_id: [0; 8], sampled: false, random: false };
    for (to, from) in context.trace_id.iter_mut().zip(value[3..35].chunks(2)) {
        *to = byte(from)?;
    }
    for (to, from) in context.span_id.iter_mut().zip(value[36..52].chunks(2)) {
        *to = byte(from)?;
    }
    let flags = byte(&value[53..55])?;
    context.sampled = flags & SAMPLED != 0;
    context.random = flags & RANDOM != 0;
    (context.trace_id != [0; 16] && context.span_id != [0; 8]).then_some(context)
}

/// Two lower-case digits.
fn byte(text: &[u8]) -> Option<u8> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    Some((digit(text[0])? << 4) | digit(text[1])?)
}

fn hex(bytes: &[u8], to: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (byte, to) in bytes.iter().zip(to.chunks_mut(2)) {
        to[0] = DIGITS[usize::from(byte >> 4)];
        to[1] = DIGITS[usize::from(byte & 15)];
    }
}

/// §3.3.1: members `key=value`, each key once.
fn is_state(headers: &HeaderMap) -> bool {
    let mut keys: Vec<&str> = Vec::new();
    for value in headers.get_all(&TRACESTATE) {
        let Ok(text) = value.to_str() else { return false };
        for member in text.split(',').map(str::trim).filter(|m| !m.is_empty()) {
            let Some((key, value)) = member.split_once('=') else { return false };
            let is_key = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-*/@".contains(&b);
            let fine = (1..=256).contains(&key.len())
                && key.bytes().all(is_key)
                && (1..=256).contains(&value.len())
                && value.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=');
            if !fine || keys.contains(&key) {
                return false;
            }
            keys.push(key);
        }
    }
    keys.len() <= STATE_MEMBERS_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn headers(fields: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn a_context_is_read_and_written_as_it_is() {
        let mut map = headers(&[(TRACEPARENT, PARENT), (TRACESTATE, "a=1, b@c=x:y")]);
        let Incoming::Valid(context) = read(&mut map) else { panic!("it is valid") };
        assert_eq!((context.sampled, context.random), (true, false));
        assert_eq!(trace_id_of(&map), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(state_of(&map), "a=1, b@c=x:y");
        write(&mut map, &context);
        assert_eq!(map[TRACEPARENT], PARENT);
    }

    #[test]
    fn a_version_of_the_future_is_read_as_far_as_it_is_known() {
        for text in [
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more.of.it",
        ] {
            assert!(parse(text.as_bytes()).is_some_and(|c| c.sampled), "{text}");
        }
    }

    #[test]
    fn what_is_no_context_is_taken_out_with_its_state() {
        for bad in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01.x",
            "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            let mut map = headers(&[(TRACEPARENT, bad), (TRACESTATE, "a=1")]);
            assert_eq!(read(&mut map), Incoming::None, "{bad}");
            assert!(map.is_empty(), "{bad}");
        }
        let mut twice = headers(&[(TRACEPARENT, PARENT), (TRACEPARENT, PARENT)]);
        assert_eq!(read(&mut twice), Incoming::None);
    }

    #[test]
    fn a_state_that_is_none_is_taken_out_alone() {
        let many = (0..33).map(|i| format!("k{i}=v")).collect::<Vec<_>>().join(",");
        for bad in ["a", "A=1", "a=1,a=2", "a=", "=1", "a=b=c", &many] {
            let mut map = headers(&[(TRACEPARENT, PARENT), (TRACESTATE, bad)]);
            assert!(matches!(read(&mut map), Incoming::Valid(_)), "{bad}");
            assert!(!map.contains_key(TRACESTATE), "{bad}");
        }
    }

    #[test]
    fn ids_are_never_zero() {
        assert_ne!(trace_id(&mut || 0), [0; 16]);
        assert_ne!(span_id(&mut || 0), [0; 8]);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_stop_the_reader(bytes in proptest::collection::vec(0_u8..128, 0..80)) {
            let _ = parse(&bytes);
        }
    }
}
