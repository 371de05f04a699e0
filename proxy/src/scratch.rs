//! Room for one read, a worker's and not a connection's: what stands still holds none.

use std::cell::RefCell;

use crate::limits::TUNNEL_READ_BYTES;

thread_local! {
    static ROOM: RefCell<Box<[u8]>> = RefCell::new(vec![0; TUNNEL_READ_BYTES].into());
}

/// Lends the room. It is not to be asked for again meanwhile.
pub(crate) fn with<R>(f: impl FnOnce(&mut [u8]) -> R) -> R {
    ROOM.with_borrow_mut(|room| f(room))
}
