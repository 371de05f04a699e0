//! A worker's clock: ticks, and the date as of the last one.

use std::cell::Cell;
use std::time::SystemTime;

/// See the module.
#[derive(Debug)]
pub(super) struct Clock {
    tick: Cell<u64>,
    /// The time of the last one (RFC 9110 §5.6.7).
    date: Cell<[u8; 29]>,
}

impl Default for Clock {
    fn default() -> Self {
        Self { tick: Cell::new(0), date: Cell::new(date()) }
    }
}

impl Clock {
    /// Ticks so far.
    pub fn get(&self) -> u64 {
        self.tick.get()
    }

    /// The time of the last tick, for the field `Date`.
    pub fn date(&self) -> [u8; 29] {
        self.date.get()
    }

    /// One more tick. Answers their number.
    pub fn advance(&self) -> u64 {
        self.date.set(date());
        self.tick.set(self.tick.get() + 1);
        self.tick.get()
    }
}

#[allow(clippy::disallowed_methods)] // Told to clients; nothing is decided by it.
fn date() -> [u8; 29] {
    let text = httpdate::fmt_http_date(SystemTime::now());
    // It has always as many.
    text.as_bytes().try_into().unwrap_or(*b"Thu, 01 Jan 1970 00:00:00 GMT")
}
