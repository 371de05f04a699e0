//! What the first bytes of a connection are, where nobody has said it.

use crate::limits::HEAD_BYTES_MAX;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Longest method that is taken for one.
const METHOD_BYTES_MAX: usize = 24;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sniffed {
    /// A request with this `Host`.
    Http1 {
        host: String,
    },
    Http2,
    Tls,
    Other,
}

/// `None` if more has to be seen.
pub(crate) fn sniff(seen: &[u8]) -> Option<Sniffed> {
    if seen.is_empty() {
        return None;
    }
    let common = seen.len().min(PREFACE.len());
    if seen[..common] == PREFACE[..common] {
        return (common == PREFACE.len()).then_some(Sniffed::Http2);
    }
    if seen[0] == 0x16 {
        // A record with a handshake, of any version (RFC 8446 §5.1).
        return seen.get(1).map(|major| if *major == 3 { Sniffed::Tls } else { Sniffed::Other });
    }
    if seen.len() > HEAD_BYTES_MAX {
        return Some(Sniffed::Other);
    }
    let method = seen.iter().take_while(|b| b.is_ascii_uppercase() || **b == b'-').count();
    if method == seen.len() && method <= METHOD_BYTES_MAX {
        return None;
    }
    if method == 0 || method > METHOD_BYTES_MAX || seen[method] != b' ' {
        return Some(Sniffed::Other);
    }
    let mut lines = seen.split_inclusive(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r\n").ok_or(line));
    match lines.next() {
        Some(Ok(line)) if line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0") => {}
        // Not ended yet, which is no reason to wait for what can be no request line.
        Some(Err(line)) if !line.contains(&b'\n') => return None,
        _ => return Some(Sniffed::Other),
    }
    for line in lines {
        let Ok(line) = line else {
            // A line that ends without CR is not HTTP; one that has not ended may be.
            return line.is_err_and(|line| line.ends_with(b"\n")).then_some(Sniffed::Other);
        };
        if line.is_empty() {
            return Some(Sniffed::Other);
        }
        if let Some(colon) = line.iter().position(|b| *b == b':')
            && line[..colon].eq_ignore_ascii_case(b"host")
        {
            let host = String::from_utf8_lossy(line[colon + 1..].trim_ascii()).into_owned();
            return Some(Sniffed::Http1 { host });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn http(host: &str) -> Option<Sniffed> {
        Some(Sniffed::Http1 { host: host.to_owned() })
    }

    #[test]
    fn first_bytes_say_what_they_are() {
        assert_eq!(sniff(b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n"), http("orders"));
        assert_eq!(sniff(b"POST http://a/ HTTP/1.0\r\nx: y\r\nhOST:orders:80 \r\n"), http("orders:80"));
        assert_eq!(sniff(PREFACE), Some(Sniffed::Http2));
        assert_eq!(sniff(&[0x16, 3, 1, 0]), Some(Sniffed::Tls));
        for other in [
            &b"\x00\x00\x00\x08"[..],
            b"SSH-2.0-OpenSSH\r\n",
            b"EHLO there\r\n",
            b"get / HTTP/1.1\r\n",
            b"GET / HTTP/1.1\nHost: orders\n\n",
            b"GET / HTTP/1.1\r\nHost: orders\n",
            b"GET / HTTP/1.1\r\n\r\nHost: orders\r\n",
            b"GET / FTP/1\r\n",
            &[0x16, 2],
            &[b'A'; 30],
        ] {
            assert_eq!(sniff(other), Some(Sniffed::Other), "{}", String::from_utf8_lossy(other));
        }
        for short in [&b""[..], b"G", b"GET", b"GET /", b"GET / HTTP/1.1\r\nHo", b"PRI * HT", &[0x16]] {
            assert_eq!(sniff(short), None, "{}", String::from_utf8_lossy(short));
        }
    }

    proptest! {
        /// What was decided stays decided: pieces of a stream may come in any size.
        #[test]
        fn more_bytes_change_no_decision(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..200) {
            let at = at.min(bytes.len());
            if let Some(decided) = sniff(&bytes[..at]) {
                prop_assert_eq!(sniff(&bytes), Some(decided));
            }
        }

        #[test]
        fn a_request_is_found_however_it_is_cut(at in 1usize..40) {
            let whole = b"GET /a HTTP/1.1\r\nx: y\r\nhost: orders\r\n\r\n";
            let decided = sniff(&whole[..at]);
            prop_assert!(decided.is_none() || decided == http("orders"), "{:?}", decided);
        }
    }
}
