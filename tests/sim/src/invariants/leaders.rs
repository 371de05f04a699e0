//! At most one server leads in a term (Raft §5.2: election safety).

use std::collections::BTreeMap;

use weft_core::id::NodeId;

use crate::world::World;

/// Who led in which term.
#[derive(Default)]
pub(crate) struct Leaders {
    by_term: BTreeMap<u64, NodeId>,
}

impl Leaders {
    pub(crate) fn step(&mut self, world: &World) -> Result<(), String> {
        let mut wrong = None;
        world.each(|_, inside| {
            let status = inside.status();
            if !inside.is_leader() || status.leader != Some(status.id) {
                return;
            }
            let first = *self.by_term.entry(status.term).or_insert(status.id);
            if first != status.id {
                let server = status.id;
                wrong = Some(format!("R06: servers {first} and {server} both lead in term {}", status.term));
            }
        });
        wrong.map_or(Ok(()), Err)
    }

    /// Terms that had a leader.
    pub(crate) fn count(&self) -> usize {
        self.by_term.len()
    }
}
