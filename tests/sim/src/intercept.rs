//! The two things that a program asks the system for and that differ from run to run: the time and random bytes.
//!
//! Hash maps of the standard library, tokio's choice between ready branches and openraft's election timeouts all start
//! from `getrandom`; `std::time::Instant` and hyper's date start from `clock_gettime`. Both symbols are defined here, and
//! so are linked before the C library's, in the programs that contain the simulator and in no others. On a thread that
//! does not simulate they ask the kernel as ever.
#![allow(unsafe_code)] // Defining symbols of the C library cannot be said otherwise; the bodies touch one buffer each.

use std::cell::Cell;
use std::time::Duration;

/// Where simulated time begins, in nanoseconds since 1970: a round number in 2026.
const EPOCH_NANOS: u64 = 1_780_000_000_000_000_000;

const NANOS_PER_SEC: u64 = 1_000_000_000;

thread_local! {
    /// Nanoseconds of the monotonic clock; 0: this thread does not simulate.
    static NOW: Cell<u64> = const { Cell::new(0) };
    /// Added to the time of day only.
    static WALL_OFFSET: Cell<i64> = const { Cell::new(0) };
    /// State of the generator; 0: this thread does not simulate.
    static RANDOM: Cell<u64> = const { Cell::new(0) };
}

/// From here on this thread's random bytes follow from `seed`.
pub(crate) fn seed(seed: u64) {
    RANDOM.set(mix(seed) | 1);
}

/// Sets this thread's monotonic clock.
pub(crate) fn set_now(now: Duration) {
    NOW.set(now.as_nanos() as u64);
}

/// By how much the time of day is off.
pub(crate) fn set_wall_offset(millis: i64) {
    WALL_OFFSET.set(millis);
}

/// splitmix64 (Steele, Lea, Flood 2014).
fn mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// # Safety
/// As the C library's: `time` points to a `timespec`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    let now = NOW.try_with(Cell::get).unwrap_or(0);
    if now == 0 {
        // SAFETY: passes on what the caller vouches for.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as libc::c_int };
    }
    let nanos = if clock == libc::CLOCK_REALTIME {
        let offset = WALL_OFFSET.try_with(Cell::get).unwrap_or(0);
        (EPOCH_NANOS + now).saturating_add_signed(offset * 1_000_000)
    } else {
        now
    };
    let answer = libc::timespec {
        tv_sec: (nanos / NANOS_PER_SEC) as libc::time_t,
        tv_nsec: (nanos % NANOS_PER_SEC) as libc::c_long,
    };
    // SAFETY: the caller vouches for the pointer.
    unsafe { time.write(answer) };
    0
}

/// # Safety
/// As the C library's: `buffer` points to `bytes` bytes that may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(
    buffer: *mut libc::c_void,
    bytes: libc::size_t,
    flags: libc::c_uint,
) -> libc::ssize_t {
    let mut state = RANDOM.try_with(Cell::get).unwrap_or(0);
    if state == 0 {
        // SAFETY: passes on what the caller vouches for.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, bytes, flags) as libc::ssize_t };
    }
    for at in 0..bytes {
        state = mix(state) | 1;
        // SAFETY: `at` is below `bytes`.
        unsafe { buffer.cast::<u8>().add(at).write((state >> 32) as u8) };
    }
    RANDOM.set(state);
    bytes as libc::ssize_t
}

/// Random bytes for code that takes them from no symbol of the C library: from the seed on a thread that simulates.
pub(crate) fn random_bytes(bytes: &mut [u8]) -> std::io::Result<()> {
    // SAFETY: the slice may be written as far as it is long.
    let filled = unsafe { getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if filled == bytes.len() as libc::ssize_t { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Instant;

    use super::*;

    fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::spawn(work).join().expect("does not panic")
    }

    #[test]
    fn a_thread_that_simulates_has_the_clock_it_was_given() {
        let passed = on_a_thread(|| {
            set_now(Duration::from_secs(5));
            let start = Instant::now();
            set_now(Duration::from_secs(7));
            start.elapsed()
        });
        assert_eq!(passed, Duration::from_secs(2));
    }

    #[test]
    fn hash_maps_of_a_thread_that_simulates_have_the_order_of_its_seed() {
        let order = |of| {
            on_a_thread(move || {
                seed(of);
                (0..100).collect::<HashSet<u32>>().into_iter().collect::<Vec<_>>()
            })
        };
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
    }

    #[test]
    fn other_threads_ask_the_system() {
        let start = Instant::now();
        std::hint::black_box((0..100_000).sum::<u64>());
        assert!(start.elapsed() > Duration::ZERO);
        let random = || std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 1);
        assert_ne!(on_a_thread(random), on_a_thread(random));
    }
}
