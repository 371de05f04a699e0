//! How long the caller still waits, so that no work is done for whom nobody waits any more (P41).
//!
//! | field | who sends it | meaning |
//! |---|---|---|
//! | `grpc-timeout: 250m` | gRPC clients | time left, at most 8 digits and a unit `H`, `M`, `S`, `m`, `u` or `n` (the gRPC protocol, "Requests") |
//! | `weft-deadline: 250` | sidecars, and apps that pass it on | milliseconds left |
//!
//! Both say what is left and not until when, because clocks of machines differ. The shorter one holds. Whatever is
//! forwarded has what is left at that moment.

use std::time::Duration;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

/// See the module.
pub const WEFT_DEADLINE: HeaderName = HeaderName::from_static("weft-deadline");
/// See the module.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Longer deadlines are cut to this: eight digits of hours would be eleven thousand years.
const DEADLINE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// A field that says no time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {seen:?} is no time, allowed are {allowed}")]
pub struct BadDeadline {
    field: HeaderName,
    seen: String,
    allowed: &'static str,
}

/// The time that the caller gives; none if it does not say.
///
/// # Errors
/// If a field is there and says no time, or stands twice.
pub fn of(headers: &HeaderMap) -> Result<Option<Duration>, BadDeadline> {
    let weft = field(headers, &WEFT_DEADLINE, millis, "1 to 10 digits, milliseconds")?;
    let grpc = field(headers, &GRPC_TIMEOUT, grpc_timeout, "1 to 8 digits and one of H, M, S, m, u, n")?;
    Ok([weft, grpc].into_iter().flatten().min().map(|d| d.min(DEADLINE_MAX)))
}

fn field(
    headers: &HeaderMap,
    name: &HeaderName,
    parse: fn(&str) -> Option<Duration>,
    allowed: &'static str,
) -> Result<Option<Duration>, BadDeadline> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    match value.to_str().ok().and_then(parse).filter(|_| values.next().is_none()) {
        Some(time) => Ok(Some(time)),
        None => {
            let seen = String::from_utf8_lossy(value.as_bytes()).chars().take(64).collect();
            Err(BadDeadline { field: name.clone(), seen, allowed })
        }
    }
}

fn millis(text: &str) -> Option<Duration> {
    Some(Duration::from_millis(digits(text, 10)?))
}

fn grpc_timeout(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let n = digits(number, 8)?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

fn digits(text: &str, max: usize) -> Option<u64> {
    let plain = !text.is_empty() && text.len() <= max && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

/// Tells the next hop what is left.
pub fn tell(headers: &mut HeaderMap, left: Duration) {
    // Rounded up: 0 would say that nobody waits.
    let millis = left.as_nanos().div_ceil(1_000_000);
    headers.insert(WEFT_DEADLINE, HeaderValue::from(u64::try_from(millis).unwrap_or(u64::MAX)));
    if headers.contains_key(&GRPC_TIMEOUT) {
        headers.insert(GRPC_TIMEOUT, grpc_value(left));
    }
}

/// In the finest unit that has room for it.
fn grpc_value(left: Duration) -> HeaderValue {
    const UNITS: [(u128, char); 4] =
        [(1_000, 'u'), (1_000_000, 'm'), (1_000_000_000, 'S'), (60_000_000_000, 'M')];
    let nanos = left.as_nanos();
    let fits = |(unit, _): &&(u128, char)| nanos.div_ceil(*unit) <= 99_999_999;
    let (unit, letter) = UNITS.iter().find(fits).unwrap_or(&UNITS[3]);
    let text = format!("{}{letter}", nanos.div_ceil(*unit).min(99_999_999));
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("99999999S"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(fields: &[(&HeaderName, &str)]) -> HeaderMap {
        fields.iter().map(|(n, v)| ((*n).clone(), HeaderValue::from_str(v).unwrap())).collect()
    }

    #[test]
    fn the_shorter_of_both_fields_holds() {
        assert_eq!(of(&HeaderMap::new()), Ok(None));
        let both = headers(&[(&WEFT_DEADLINE, "1500"), (&GRPC_TIMEOUT, "2S")]);
        assert_eq!(of(&both), Ok(Some(Duration::from_millis(1500))));
        let both = headers(&[(&WEFT_DEADLINE, "1500"), (&GRPC_TIMEOUT, "20000u")]);
        assert_eq!(of(&both), Ok(Some(Duration::from_millis(20))));
        assert_eq!(of(&headers(&[(&GRPC_TIMEOUT, "99999999H")])), Ok(Some(DEADLINE_MAX)));
    }

    #[test]
    fn what_is_no_time_is_refused_by_field() {
        for bad in ["", "S", "1", "1s", "-1S", "1.5S", "123456789S", " 1S", "1 S", "é"] {
            let e = of(&headers(&[(&GRPC_TIMEOUT, bad)])).unwrap_err();
            assert!(e.to_string().starts_with("grpc-timeout: "), "{e}");
        }
        for bad in ["", "1m", "-1", "1.5", "12345678901", "+1"] {
            assert!(of(&headers(&[(&WEFT_DEADLINE, bad)])).is_err(), "{bad}");
        }
        assert!(of(&headers(&[(&WEFT_DEADLINE, "1"), (&WEFT_DEADLINE, "2")])).is_err(), "twice");
    }

    #[test]
    fn grpc_timeout_is_only_told_to_who_was_told_one() {
        let mut plain = HeaderMap::new();
        tell(&mut plain, Duration::from_micros(1));
        assert_eq!((plain[WEFT_DEADLINE].as_bytes(), plain.len()), (b"1".as_slice(), 1));
        let mut grpc = headers(&[(&GRPC_TIMEOUT, "2S")]);
        tell(&mut grpc, Duration::from_millis(1200));
        assert_eq!(grpc[GRPC_TIMEOUT], "1200000u");
    }

    proptest! {
        /// A told deadline is never shorter than what is left, and longer by less than a part in ten thousand.
        #[test]
        fn what_is_told_is_read_as_what_is_left(nanos in 1u64..20_000_000_000_000_000) {
            let left = Duration::from_nanos(nanos);
            let read = grpc_timeout(grpc_value(left).to_str().unwrap()).unwrap();
            prop_assert!(read >= left && read - left <= (left / 10_000).max(Duration::from_micros(1)), "{read:?}");
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,12}") {
            let _ = (grpc_timeout(&text), millis(&text));
        }
    }
}
