//! The counterexample: the shortest part of a history that still has no order, and where the search got stuck.

use std::fmt;

use crate::checker::linear::search::{self, Outcome, Stuck};
use crate::checker::model::Model;
use crate::history::{End, Operation};

/// How many of the operations before the violation are printed; the state before them stands for the rest.
const SHOWN_MAX: usize = 12;

/// Why a history is not linearizable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counterexample {
    /// Connected keys of this part.
    pub keys: String,
    /// Operations of the smallest part found that has no order, and of the part as it was.
    pub operations: (usize, usize),
    /// State after those of the longest order that are not shown.
    pub before: String,
    /// The last operations of the longest order.
    pub order: Vec<String>,
    /// State after them.
    pub state: String,
    /// Operations of which one had to be next, and why it could not.
    pub refused: Vec<(String, String)>,
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (smallest, all) = self.operations;
        writeln!(f, "not linearizable: {} (shown: {smallest} operations of {all})", self.keys)?;
        writeln!(f, "the longest order that fits ends so:")?;
        writeln!(f, "  state  {}", self.before)?;
        for op in &self.order {
            writeln!(f, "  {op}")?;
        }
        writeln!(f, "  state  {}", self.state)?;
        writeln!(f, "one of these must come next, and none can:")?;
        for (op, why) in &self.refused {
            writeln!(f, "  {op}\n      {why}")?;
        }
        Ok(())
    }
}

/// Shrinks a part that has no order, and describes it. Only changes that keep every order are made: events are cut off
/// the end (what was not over by then becomes unknown), and reads are left out.
pub(super) fn explain<M: Model>(
    model: &M,
    keys: String,
    operations: Vec<&Operation<M::Call, M::Answer>>,
    stuck: Stuck<M::State>,
    steps_max: u64,
) -> Counterexample
where
    M::Call: Clone,
    M::Answer: Clone,
{
    let all = operations.len();
    let mut shrink = Shrink { model, steps_left: steps_max, stuck };
    let operations = shrink.cut_end(operations.into_iter().cloned().collect());
    let operations = shrink.leave_out_reads(operations);
    let stuck = shrink.stuck;

    let show = |op: &usize| operations[*op].to_string();
    let hidden = stuck.order.len().saturating_sub(SHOWN_MAX);
    let refused = stuck.refused.iter().filter_map(|op| {
        let answer = operations[*op].answer()?;
        Some((show(op), model.explain(&stuck.state, &operations[*op].call, answer)))
    });
    Counterexample {
        keys,
        operations: (operations.len(), all),
        before: stuck.order.get(hidden).map_or(&stuck.state, |(_, state)| state).to_string(),
        order: stuck.order[hidden..].iter().map(|(op, _)| show(op)).collect(),
        state: stuck.state.to_string(),
        refused: refused.collect(),
    }
}

type Ops<M> = Vec<Operation<<M as Model>::Call, <M as Model>::Answer>>;

struct Shrink<'a, M: Model> {
    model: &'a M,
    steps_left: u64,
    /// Of the smallest part so far.
    stuck: Stuck<M::State>,
}

impl<M: Model> Shrink<'_, M>
where
    M::Call: Clone,
    M::Answer: Clone,
{
    /// Whether these still have no order. If that cannot be decided, they do not count.
    fn still_stuck(&mut self, operations: &Ops<M>) -> bool {
        let refs: Vec<_> = operations.iter().collect();
        let outcome = search::run(self.model, &refs, self.steps_left);
        self.steps_left -= outcome.steps();
        match outcome {
            Outcome::Stuck(stuck) => {
                self.stuck = stuck;
                true
            }
            Outcome::Found { .. } | Outcome::OutOfSteps { .. } => false,
        }
    }

    /// The shortest beginning without an order. A beginning of one that has an order has one too, so halving finds it.
    fn cut_end(&mut self, operations: Ops<M>) -> Ops<M> {
        let mut ends: Vec<u64> = operations.iter().filter_map(|op| op.ended()).map(|end| end.seq).collect();
        ends.sort_unstable();
        // Invariant: up to ends[high] there is no order.
        let (mut low, mut high) = (0, ends.len() - 1);
        let mut shortest = operations;
        while low < high {
            let middle = usize::midpoint(low, high);
            let beginning = self.until(&shortest, ends[middle]);
            if self.still_stuck(&beginning) {
                shortest = beginning;
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        shortest
    }

    /// What was known at `seq`.
    fn until(&self, operations: &Ops<M>, seq: u64) -> Ops<M> {
        let begun = operations.iter().filter(|op| op.invoked.seq < seq).cloned();
        let known = begun.map(|mut op| {
            if op.ended().is_some_and(|end| end.seq > seq) {
                op.end = End::Unknown;
            }
            op
        });
        known.filter(|op| op.answer().is_some() || !self.model.is_read(&op.call)).collect()
    }

    /// Leaves out reads that are not needed, in shrinking handfuls.
    fn leave_out_reads(&mut self, mut operations: Ops<M>) -> Ops<M> {
        let mut handful = operations.len().next_power_of_two() / 2;
        while handful > 0 && self.steps_left > 0 {
            let mut from = 0;
            while from < operations.len() {
                let range = from..(from + handful).min(operations.len());
                let mut fewer = operations.clone();
                let mut at = 0;
                fewer.retain(|op| {
                    at += 1;
                    !(range.contains(&(at - 1)) && self.model.is_read(&op.call))
                });
                if fewer.len() < operations.len() && self.still_stuck(&fewer) {
                    operations = fewer;
                } else {
                    from += handful;
                }
            }
            handful /= 2;
        }
        operations
    }
}
