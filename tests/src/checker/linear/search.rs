//! The search for one order of all operations of one part of a history.

use crate::checker::linear::open::{Open, Seen};
use crate::checker::model::Model;
use crate::history::Operation;

/// What a search came to.
pub(super) enum Outcome<S> {
    /// An order exists.
    Found { steps: u64 },
    /// No order exists; this is how far one came.
    Stuck(Stuck<S>),
    /// The budget is used up.
    OutOfSteps { steps: u64 },
}

/// The longest partial order that was found.
pub(super) struct Stuck<S> {
    pub(super) steps: u64,
    /// Indexes of operations in the order they were taken, each with the state before it.
    pub(super) order: Vec<(usize, S)>,
    /// State after the last of them.
    pub(super) state: S,
    /// Operations that could have been next, by their calls, and were not allowed.
    pub(super) refused: Vec<usize>,
}

impl<S> Outcome<S> {
    pub(super) fn steps(&self) -> u64 {
        match self {
            Self::Found { steps } | Self::OutOfSteps { steps } => *steps,
            Self::Stuck(stuck) => stuck.steps,
        }
    }
}

/// One node on the way down: a state, and what may still be tried from it.
struct Node<S> {
    state: S,
    /// Operations that may come next, tried from the front.
    candidates: Vec<usize>,
    tried: usize,
    /// Further states to which the operation tried last may lead.
    branches: Vec<S>,
    /// The operation that led here; none at the root.
    taken: Option<usize>,
}

impl<S> Node<S> {
    fn new(state: S, candidates: Vec<usize>, taken: Option<usize>) -> Self {
        Self { state, candidates, tried: 0, branches: Vec::new(), taken }
    }
}

/// Looks for an order. `operations` are sorted by their calls.
pub(super) fn run<M: Model>(
    model: &M,
    operations: &[&Operation<M::Call, M::Answer>],
    steps_max: u64,
) -> Outcome<M::State> {
    let mut open = Open::new(model, operations);
    let mut seen = Seen::default();
    let mut steps = 0;
    let mut best: Option<Stuck<M::State>> = None;
    let mut path = vec![Node::new(model.initial(), open.candidates(), None)];
    while open.answered_left() > 0 {
        let Some(node) = path.last_mut() else {
            let stuck = best.expect("the root was left at least once");
            return Outcome::Stuck(Stuck { steps, ..stuck });
        };
        if let Some(state) = node.branches.pop() {
            let op = node.candidates[node.tried - 1];
            open.take(op);
            if seen.insert(&open, &state) {
                path.push(Node::new(state, open.candidates(), Some(op)));
            } else {
                open.give_back(op);
            }
        } else if let Some(&op) = node.candidates.get(node.tried) {
            if steps == steps_max {
                return Outcome::OutOfSteps { steps };
            }
            steps += 1;
            node.tried += 1;
            let operation = operations[op];
            model.step(&node.state, op as u32, &operation.call, operation.answer(), &mut node.branches);
            if operation.answer().is_none() {
                // Taking what changes nothing gains nothing: it may as well never happen.
                node.branches.retain(|next| *next != node.state);
            }
        } else {
            if best.as_ref().is_none_or(|best| path.len() > best.order.len() + 1) {
                best = Some(stuck(&path));
            }
            if let Some(op) = path.pop().and_then(|node| node.taken) {
                open.give_back(op);
            }
        }
    }
    Outcome::Found { steps }
}

fn stuck<S: Clone>(path: &[Node<S>]) -> Stuck<S> {
    let order =
        path.windows(2).map(|two| (two[1].taken.expect("only the root has none"), two[0].state.clone()));
    let last = path.last().expect("called with a path");
    Stuck { steps: 0, order: order.collect(), state: last.state.clone(), refused: last.candidates.clone() }
}
