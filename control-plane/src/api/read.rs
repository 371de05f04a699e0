//! Linearizable reads with an honest fallback, and the label that says which one an answer is.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use weft_state::command::Revision;
use weft_state::machine::Machine;

use crate::raft::{Coordinator, ProposeError};

/// How much an answer can be relied on. Shown with every answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Label {
    /// Sees every write that was answered before the question.
    Linearizable {
        /// Revision that was read.
        revision: Revision,
    },
    /// What this server had, without asking the others.
    Serializable {
        /// Revision that was read.
        revision: Revision,
        /// How long ago this server was last sure to be current, at most.
        age: Duration,
    },
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Linearizable { revision } => write!(f, "linearizable({revision})"),
            Self::Serializable { revision, age } => {
                write!(f, "serializable({revision}, {}ms)", age.as_millis())
            }
        }
    }
}

/// What a caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Linearizable, or an error.
    Linearizable,
    /// Linearizable if that takes no longer than [`PATIENCE`], else what there is, and say so.
    Best,
    /// What there is, at once.
    Serializable,
}

/// How long discovery waits for the group before it answers from what it has: longer than a healthy
/// barrier takes by far, shorter than the patience of whoever wants to find a service.
pub const PATIENCE: Duration = Duration::from_millis(750);

/// Reads the machine and remembers when that was last sure to be current. Clones share the memory.
#[derive(Clone)]
pub struct Reader {
    coordinator: Coordinator,
    confirmed: Arc<Mutex<Instant>>,
}

impl Reader {
    /// Never confirmed so far: ages count from now.
    pub fn new(coordinator: Coordinator) -> Self {
        Self { coordinator, confirmed: Arc::new(Mutex::new(Instant::now())) }
    }

    /// Reads as wanted. The label belongs to exactly what `f` saw.
    ///
    /// # Errors
    /// If `Linearizable` was wanted and cannot be had, or this server is new to its group.
    pub async fn read<R>(
        &self,
        wanted: Wanted,
        f: impl FnOnce(&Machine) -> R,
    ) -> Result<(R, Label), ProposeError> {
        let asked = Instant::now();
        let confirmed = match wanted {
            Wanted::Serializable => false,
            Wanted::Linearizable => {
                self.coordinator.read_barrier().await?;
                true
            }
            Wanted::Best => {
                matches!(tokio::time::timeout(PATIENCE, self.coordinator.read_barrier()).await, Ok(Ok(())))
            }
        };
        if confirmed {
            // The barrier vouches for the moment it was asked for, not for that of its answer.
            let mut last = self.confirmed.lock();
            *last = (*last).max(asked);
        } else {
            self.coordinator.check_taken_in()?;
        }
        let (answer, revision) = self.coordinator.read(|machine| (f(machine), machine.revision()));
        let label = if confirmed {
            Label::Linearizable { revision }
        } else {
            Label::Serializable { revision, age: self.confirmed.lock().elapsed() }
        };
        Ok((answer, label))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_read_as_the_guarantee_they_are() {
        assert_eq!(Label::Linearizable { revision: 42 }.to_string(), "linearizable(42)");
        let stale = Label::Serializable { revision: 41, age: Duration::from_millis(1_500) };
        assert_eq!(stale.to_string(), "serializable(41, 1500ms)");
    }
}
