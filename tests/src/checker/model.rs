//! What a sequential model says: which answers a state allows, and what comes of it.

use std::fmt::Display;
use std::hash::Hash;

/// The sequential specification of an object. Deterministic in what it allows, though an answer that was not seen
/// may leave several states possible.
pub trait Model {
    /// What is asked.
    type Call: Display;
    /// What is answered.
    type Answer: Display;
    /// The object. Equal states behave equally for ever.
    type State: Clone + Eq + Hash + Display;
    /// Independent part of the object: calls that share no key, not even through others, cannot see each other.
    type Key: Ord + Clone + Display;

    /// Before the first operation.
    fn initial(&self) -> Self::State;

    /// Puts every state that `call` may lead to from `state` into `next`; none if `answer` is not allowed there.
    /// Without an answer any would have been. `id` is unique in the history.
    fn step(
        &self,
        state: &Self::State,
        id: u32,
        call: &Self::Call,
        answer: Option<&Self::Answer>,
        next: &mut Vec<Self::State>,
    );

    /// The keys that `call` reads or writes; at least one.
    fn keys(&self, call: &Self::Call) -> Vec<Self::Key>;

    /// Whether `call` never changes anything. Without its answer such a call says nothing.
    fn is_read(&self, call: &Self::Call) -> bool;

    /// A number that grows in the order in which operations took effect, if the answer tells one. It only guides the
    /// search: a wrong one costs time, not truth.
    fn order_hint(&self, _answer: &Self::Answer) -> Option<i64> {
        None
    }

    /// Why `step` allows nothing, for people.
    fn explain(&self, _state: &Self::State, _call: &Self::Call, _answer: &Self::Answer) -> String {
        "not possible in this state".to_owned()
    }
}
