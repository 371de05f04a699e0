//! Which services this proxy asks for: those that were called lately. Bounded, so that a client that sends random
//! host names neither grows memory nor pushes out what others use. Pure.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Services that one proxy asks for at a time. Above what any one application calls.
pub const WANTED_MAX: usize = 2_000;

/// A service that exists is given up when nobody has called it for this long; the next call waits for it again.
pub const PRESENT_IDLE_MAX: Duration = Duration::from_secs(600);

/// A service that does not exist, or of which nothing is known yet, is given up sooner.
pub const ABSENT_IDLE_MAX: Duration = Duration::from_secs(30);

/// A service that exists and was called within this time is never given up for a new name.
const PRESENT_KEPT: Duration = Duration::from_secs(60);

/// A name that was just asked for is not given up for the next one before it could be answered.
const NEW_KEPT: Duration = Duration::from_secs(2);

/// What is known of a wanted service. The order is that in which they are given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It does not exist.
    Absent,
    /// No answer yet.
    Pending,
    /// It can be called.
    Present,
}

/// Milliseconds since discovery started, of the last call. Shared with the request path, which only stores.
pub type LastCall = Arc<AtomicU64>;

#[derive(Debug)]
struct Entry {
    last_call: LastCall,
    standing: Standing,
    since: u64,
}

/// The table of wanted services.
#[derive(Debug, Default)]
pub struct Wanted {
    entries: HashMap<String, Entry>,
}

/// No room for another name, and nothing to give up for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{WANTED_MAX} services are in use, no more can be asked for")]
pub struct Full;

impl Wanted {
    /// Adds a name. Answers the name given up for it, if the table was full.
    ///
    /// # Errors
    /// If the table is full of names in use.
    pub fn insert(&mut self, name: &str, now: u64) -> Result<Option<String>, Full> {
        if let Some(entry) = self.entries.get(name) {
            entry.last_call.store(now, Ordering::Relaxed);
            return Ok(None);
        }
        let mut given_up = None;
        if self.entries.len() >= WANTED_MAX {
            let victim = self.least_useful(now).ok_or(Full)?;
            self.entries.remove(&victim);
            given_up = Some(victim);
        }
        let entry =
            Entry { last_call: Arc::new(AtomicU64::new(now)), standing: Standing::Pending, since: now };
        self.entries.insert(name.to_owned(), entry);
        Ok(given_up)
    }

    /// Whether a name is wanted.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Each name with the place where its calls are noted.
    pub fn calls(&self) -> impl Iterator<Item = (&String, &LastCall)> {
        self.entries.iter().map(|(name, e)| (name, &e.last_call))
    }

    /// Notes what is known of a name.
    pub fn set_standing(&mut self, name: &str, standing: Standing) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.standing = standing;
        }
    }

    /// Removes and answers the names that nobody has called for too long. With `keep_present`, those that exist stay:
    /// without a server they could not be had again.
    pub fn expire(&mut self, now: u64, keep_present: bool) -> Vec<String> {
        let mut expired = Vec::new();
        self.entries.retain(|name, entry| {
            let idle_max = match entry.standing {
                Standing::Present if keep_present => return true,
                Standing::Present => PRESENT_IDLE_MAX,
                Standing::Absent | Standing::Pending => ABSENT_IDLE_MAX,
            };
            let keep = entry.idle(now) < idle_max;
            if !keep {
                expired.push(name.clone());
            }
            keep
        });
        expired
    }

    fn least_useful(&self, now: u64) -> Option<String> {
        self.entries
            .iter()
            .filter(|(_, e)| match e.standing {
                Standing::Absent => true,
                Standing::Pending => Duration::from_millis(now.saturating_sub(e.since)) >= NEW_KEPT,
                Standing::Present => e.idle(now) >= PRESENT_KEPT,
            })
            .min_by_key(|(name, e)| (e.standing, e.last_call.load(Ordering::Relaxed), name.as_str()))
            .map(|(name, _)| name.clone())
    }
}

impl Entry {
    fn idle(&self, now: u64) -> Duration {
        Duration::from_millis(now.saturating_sub(self.last_call.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full_of(standing: Standing) -> Wanted {
        let mut w = Wanted::default();
        for i in 0..WANTED_MAX {
            w.insert(&format!("s{i}"), 0).unwrap();
            w.set_standing(&format!("s{i}"), standing);
        }
        w
    }

    #[test]
    fn random_names_push_out_absent_ones_and_never_one_in_use() {
        let mut w = full_of(Standing::Absent);
        w.set_standing("s7", Standing::Present);
        for i in 0..3 * WANTED_MAX {
            let name = format!("random-{i}");
            let given_up = w.insert(&name, 10).unwrap().unwrap();
            assert_ne!(given_up, "s7");
            w.set_standing(&name, Standing::Absent);
        }
        assert!(w.contains("s7"));
        assert_eq!(w.names().count(), WANTED_MAX);
    }

    #[test]
    fn a_table_of_services_in_use_refuses_new_names() {
        let mut w = full_of(Standing::Present);
        assert_eq!(w.insert("new", 59_999), Err(Full));
        assert!(w.insert("new", 60_000).unwrap().is_some());
    }

    #[test]
    fn a_name_without_an_answer_is_kept_long_enough_to_get_one() {
        let mut w = full_of(Standing::Pending);
        assert_eq!(w.insert("new", 1_999), Err(Full));
        assert!(w.insert("new", 2_000).unwrap().is_some());
    }

    #[test]
    fn the_least_recently_called_goes_first() {
        let mut w = full_of(Standing::Absent);
        for i in 0..WANTED_MAX {
            w.insert(&format!("s{i}"), if i == 42 { 1 } else { 2 }).unwrap();
        }
        assert_eq!(w.insert("new", 3), Ok(Some("s42".to_owned())));
    }

    #[test]
    fn unused_names_expire_and_absent_ones_sooner() {
        let mut w = Wanted::default();
        for (name, standing) in [("there", Standing::Present), ("not", Standing::Absent)] {
            w.insert(name, 0).unwrap();
            w.set_standing(name, standing);
        }
        assert_eq!(w.expire(29_999, false), [""; 0]);
        assert_eq!(w.expire(30_000, false), ["not"]);
        assert_eq!(w.expire(599_999, false), [""; 0]);
        assert_eq!(w.expire(600_000, false), ["there"]);
    }

    #[test]
    fn without_a_server_what_exists_does_not_expire() {
        let mut w = Wanted::default();
        w.insert("there", 0).unwrap();
        w.set_standing("there", Standing::Present);
        assert_eq!(w.expire(u64::MAX, true), [""; 0]);
    }

    #[test]
    fn a_call_keeps_a_service() {
        let mut w = Wanted::default();
        w.insert("there", 0).unwrap();
        w.set_standing("there", Standing::Present);
        w.calls().for_each(|(_, last)| last.store(500_000, Ordering::Relaxed));
        assert_eq!(w.expire(1_000_000, false), [""; 0]);
    }
}
