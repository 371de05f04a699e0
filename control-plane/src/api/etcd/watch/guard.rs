//! Whether a watcher may see its range, also after users or roles have changed.
//!
//! etcd checks a watcher once, when it is created. Here it is checked again whenever users or roles have changed
//! since, before it is told anything: a permission that is revoked ends the watches that needed it.

use weft_state::auth::{Access, AuthError, AuthState, Caller};
use weft_state::watch::WatchRange;

/// One watcher's right to its range.
pub struct Guard {
    caller: Caller,
    range: WatchRange,
    /// The auth revision at which it was found to be right; none while authentication was off.
    checked: Option<u64>,
}

impl Guard {
    pub fn new(caller: Caller, range: WatchRange) -> Self {
        Guard { caller, range, checked: None }
    }

    /// Costs a comparison unless something has changed.
    pub fn check(&mut self, auth: &AuthState) -> Result<(), AuthError> {
        let now = auth.is_enabled().then(|| auth.revision());
        if now.is_some() && now != self.checked {
            auth.check_range(&self.caller, Access::Read, &self.range.key, &self.range.range_end)?;
        }
        self.checked = now;
        Ok(())
    }
}
