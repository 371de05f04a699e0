//! The search without any cleverness, that the real one is held against.

use crate::checker::model::Model;
use crate::history::{End, Operation};

/// Tries every order and every choice of operations of unknown end.
pub(crate) fn brute_force<M: Model>(model: &M, operations: &[Operation<M::Call, M::Answer>]) -> bool {
    fn go<M: Model>(
        model: &M,
        operations: &[Operation<M::Call, M::Answer>],
        taken: &mut Vec<bool>,
        state: &M::State,
    ) -> bool {
        let open = |i: &usize| !taken[*i];
        if (0..operations.len()).filter(open).all(|i| operations[i].answer().is_none()) {
            return true;
        }
        for i in 0..operations.len() {
            let refused = matches!(operations[i].end, End::Failed { .. });
            let after_an_open_one =
                (0..operations.len()).any(|j| !taken[j] && operations[j].precedes(&operations[i]));
            if taken[i] || refused || after_an_open_one {
                continue;
            }
            let mut next = Vec::new();
            model.step(state, i as u32, &operations[i].call, operations[i].answer(), &mut next);
            taken[i] = true;
            if next.iter().any(|state| go(model, operations, taken, state)) {
                return true;
            }
            taken[i] = false;
        }
        false
    }
    // Refused operations are left out first: they must not hold others up.
    let taken = &mut operations.iter().map(|op| matches!(op.end, End::Failed { .. })).collect();
    go(model, operations, taken, &model.initial())
}
