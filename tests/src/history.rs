//! What clients asked, when, and what they were told: the one input of every checker.
//!
//! A history is a list of operations. Each has the moment of its call and how it ended: answered, refused (it
//! certainly did nothing), or unknown (it may take effect at any later time, or never). A process has one open
//! operation at a time; after an unknown one it goes on, and the lost one stays open for ever.
//!
//! Order is that of [`Moment::seq`], which the history hands out itself: a call is recorded before the request
//! leaves, an answer after it arrived, so `a` ended before `b` began only if that is true. Times are for people
//! and for checks of leases; they may come from a real or from a simulated clock.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// A client that does one thing after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Process(pub u32);

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{}", self.0)
    }
}

/// A place in the order of a history's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment {
    /// Unique in its history, and growing.
    pub seq: u64,
    /// Since the start of the run.
    pub at: Duration,
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End<A> {
    /// Answered.
    Ok {
        /// When the answer had arrived.
        moment: Moment,
        /// The answer.
        answer: A,
    },
    /// Refused: it had no effect and will have none.
    Failed {
        /// When that was known.
        moment: Moment,
    },
    /// Nobody knows: it may have had its effect, may have it later, or never.
    Unknown,
}

/// One call and its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation<C, A> {
    /// Who called.
    pub process: Process,
    /// What was asked.
    pub call: C,
    /// When, before the request left.
    pub invoked: Moment,
    /// How it ended.
    pub end: End<A>,
}

impl<C, A> Operation<C, A> {
    /// The answer, if there is one.
    pub fn answer(&self) -> Option<&A> {
        match &self.end {
            End::Ok { answer, .. } => Some(answer),
            End::Failed { .. } | End::Unknown => None,
        }
    }

    /// When it was over, if it is.
    pub fn ended(&self) -> Option<Moment> {
        match self.end {
            End::Ok { moment, .. } | End::Failed { moment } => Some(moment),
            End::Unknown => None,
        }
    }

    /// Whether this was over before `other` began.
    pub fn precedes(&self, other: &Self) -> bool {
        self.ended().is_some_and(|end| end.seq < other.invoked.seq)
    }
}

impl<C: fmt::Display, A: fmt::Display> fmt::Display for Operation<C, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secs = |at: Duration| at.as_secs_f64();
        let end = self.ended().map_or_else(|| "?".to_owned(), |end| format!("{:.3}", secs(end.at)));
        let span = format!("[{:.3}..{end}]", secs(self.invoked.at));
        write!(f, "{span:<18} {} {}", self.process, self.call)?;
        match &self.end {
            End::Ok { answer, .. } => write!(f, " → {answer}"),
            End::Failed { .. } => write!(f, " → refused"),
            End::Unknown => write!(f, " → unknown"),
        }
    }
}

/// Names an operation of one history, to end it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(usize);

/// Operations in the order of their calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History<C, A> {
    operations: Vec<Operation<C, A>>,
    next_seq: u64,
}

impl<C, A> Default for History<C, A> {
    fn default() -> Self {
        Self { operations: Vec::new(), next_seq: 0 }
    }
}

impl<C, A> History<C, A> {
    /// Records a call. Its end is unknown until it is told.
    pub fn invoke(&mut self, process: Process, at: Duration, call: C) -> OpId {
        let invoked = self.moment(at);
        self.operations.push(Operation { process, call, invoked, end: End::Unknown });
        OpId(self.operations.len() - 1)
    }

    /// Records an answer.
    pub fn ok(&mut self, id: OpId, at: Duration, answer: A) {
        let moment = self.moment(at);
        self.end(id, End::Ok { moment, answer });
    }

    /// Records a refusal: certainly nothing was done.
    pub fn fail(&mut self, id: OpId, at: Duration) {
        let moment = self.moment(at);
        self.end(id, End::Failed { moment });
    }

    /// All operations, in the order of their calls.
    pub fn operations(&self) -> &[Operation<C, A>] {
        &self.operations
    }

    /// The same, to be changed by what was learnt otherwise.
    pub fn operations_mut(&mut self) -> &mut [Operation<C, A>] {
        &mut self.operations
    }

    /// How many ended how: answered, refused, unknown.
    pub fn tally(&self) -> (usize, usize, usize) {
        self.operations.iter().fold((0, 0, 0), |(ok, failed, unknown), op| match op.end {
            End::Ok { .. } => (ok + 1, failed, unknown),
            End::Failed { .. } => (ok, failed + 1, unknown),
            End::Unknown => (ok, failed, unknown + 1),
        })
    }

    /// A place in the order for something that is not an operation, such as an event of a watch.
    pub fn moment(&mut self, at: Duration) -> Moment {
        let seq = self.next_seq;
        self.next_seq += 1;
        Moment { seq, at }
    }

    fn end(&mut self, id: OpId, end: End<A>) {
        let op = &mut self.operations[id.0];
        assert!(matches!(op.end, End::Unknown), "an operation ends once");
        op.end = end;
    }
}

/// A history that several tasks write to.
#[derive(Debug)]
pub struct Recorder<C, A>(Arc<Mutex<History<C, A>>>);

impl<C, A> Default for Recorder<C, A> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<C, A> Clone for Recorder<C, A> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<C, A> Recorder<C, A> {
    /// The history, locked. Held for one call only.
    pub fn lock(&self) -> MutexGuard<'_, History<C, A>> {
        self.0.lock().expect("no writer panics in between")
    }

    /// The history so far.
    pub fn take(&self) -> History<C, A> {
        std::mem::take(&mut self.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Duration = Duration::from_millis(1500);

    #[test]
    fn an_operation_without_an_end_precedes_nothing() {
        let mut history = History::<&str, i32>::default();
        let lost = history.invoke(Process(1), AT, "put");
        let first = history.invoke(Process(2), AT, "get");
        history.ok(first, AT, 1);
        history.invoke(Process(2), AT, "get");
        let ops = history.operations();
        assert!(!ops[lost.0].precedes(&ops[2]) && ops[1].precedes(&ops[2]) && !ops[1].precedes(&ops[0]));
        assert_eq!(history.tally(), (1, 0, 2));
    }

    #[test]
    fn an_operation_prints_its_span_its_process_and_its_end() {
        let mut history = History::<&str, i32>::default();
        let id = history.invoke(Process(1), AT, "get a");
        assert_eq!(history.operations()[0].to_string(), "[1.500..?]         p1 get a → unknown");
        history.ok(id, 2 * AT, 7);
        assert_eq!(history.operations()[0].to_string(), "[1.500..3.000]     p1 get a → 7");
    }

    #[test]
    #[should_panic(expected = "an operation ends once")]
    fn an_operation_cannot_end_twice() {
        let mut history = History::<&str, i32>::default();
        let id = history.invoke(Process(1), AT, "get a");
        history.fail(id, AT);
        history.ok(id, AT, 7);
    }
}
