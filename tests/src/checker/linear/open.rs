//! Which operations are not taken yet, and which sets of them were visited.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hash, Hasher};

use foldhash::fast::FixedState;

use crate::checker::model::Model;
use crate::history::Operation;

/// Operations that are not taken yet.
///
/// Calls and answers of answered operations form one list in the order of events, from which those of taken operations
/// are unlinked, as in Lowe's algorithm: the calls that stand before the first answer may come next.
pub(super) struct Open {
    /// The list: for each event the next and the previous one. Its head and end is one place more.
    next: Vec<u32>,
    prev: Vec<u32>,
    events: Vec<Event>,
    places: Vec<Place>,
    /// Operations of unknown end, in the order of their calls.
    unknown: Vec<(u64, usize)>,
    hints: Vec<Option<i64>>,
    answered_taken: Bits,
    unknown_taken: Bits,
    answered_left: usize,
}

#[derive(Clone, Copy)]
struct Event {
    seq: u64,
    op: usize,
    is_call: bool,
}

/// Where an operation stands.
#[derive(Clone, Copy)]
enum Place {
    /// Events of call and answer, and the bit.
    Answered {
        call: u32,
        answer: u32,
        bit: usize,
    },
    Unknown {
        bit: usize,
    },
}

impl Open {
    pub(super) fn new<M: Model>(model: &M, operations: &[&Operation<M::Call, M::Answer>]) -> Self {
        let mut events = Vec::with_capacity(2 * operations.len());
        let mut places = Vec::with_capacity(operations.len());
        let mut unknown = Vec::new();
        let mut answered = 0;
        for (op, operation) in operations.iter().enumerate() {
            let invoked = operation.invoked.seq;
            if let Some(end) = operation.ended() {
                events.push(Event { seq: invoked, op, is_call: true });
                events.push(Event { seq: end.seq, op, is_call: false });
                places.push(Place::Answered { call: 0, answer: 0, bit: answered });
                answered += 1;
            } else {
                places.push(Place::Unknown { bit: unknown.len() });
                unknown.push((invoked, op));
            }
        }
        events.sort_by_key(|event| event.seq);
        for (at, event) in events.iter().enumerate() {
            if let Place::Answered { call, answer, .. } = &mut places[event.op] {
                *(if event.is_call { call } else { answer }) = at as u32;
            }
        }
        let len = events.len() as u32 + 1;
        Self {
            next: (0..len).map(|at| (at + 1) % len).collect(),
            prev: (0..len).map(|at| (at + len - 1) % len).collect(),
            hints: operations.iter().map(|op| op.answer().and_then(|a| model.order_hint(a))).collect(),
            answered_taken: Bits::new(answered),
            unknown_taken: Bits::new(unknown.len()),
            answered_left: answered,
            events,
            places,
            unknown,
        }
    }

    /// Operations with an answer that are not taken.
    pub(super) fn answered_left(&self) -> usize {
        self.answered_left
    }

    /// What may come next: answered operations by their hints, then those of unknown end.
    pub(super) fn candidates(&self) -> Vec<usize> {
        let head = self.events.len() as u32;
        let mut found = Vec::new();
        let mut until = u64::MAX;
        let mut at = self.next[head as usize];
        while at != head {
            let event = self.events[at as usize];
            if !event.is_call {
                until = event.seq;
                break;
            }
            found.push(event.op);
            at = self.next[at as usize];
        }
        found.sort_by_key(|&op| self.hints[op]);
        let started = self.unknown.iter().enumerate().take_while(|(_, (called, _))| *called < until);
        found.extend(started.filter(|(bit, _)| !self.unknown_taken.contains(*bit)).map(|(_, (_, op))| *op));
        found
    }

    pub(super) fn take(&mut self, op: usize) {
        match self.places[op] {
            Place::Answered { call, answer, bit } => {
                self.answered_taken.set(bit);
                self.answered_left -= 1;
                for at in [call, answer] {
                    let (prev, next) = (self.prev[at as usize], self.next[at as usize]);
                    self.next[prev as usize] = next;
                    self.prev[next as usize] = prev;
                }
            }
            Place::Unknown { bit } => self.unknown_taken.set(bit),
        }
    }

    /// Undoes `take`; called in the reverse order of takes.
    pub(super) fn give_back(&mut self, op: usize) {
        match self.places[op] {
            Place::Answered { call, answer, bit } => {
                self.answered_taken.clear(bit);
                self.answered_left += 1;
                for at in [answer, call] {
                    let (prev, next) = (self.prev[at as usize], self.next[at as usize]);
                    self.next[prev as usize] = at;
                    self.prev[next as usize] = at;
                }
            }
            Place::Unknown { bit } => self.unknown_taken.clear(bit),
        }
    }
}

/// A set as bits. Answered operations are taken nearly in the order of their calls: all words before `full` are ones,
/// none from `end` on is set, and only what lies between tells two sets apart.
struct Bits {
    words: Vec<u64>,
    full: usize,
    end: usize,
}

impl Bits {
    fn new(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(64)], full: 0, end: 0 }
    }

    fn contains(&self, bit: usize) -> bool {
        self.words[bit / 64] >> (bit % 64) & 1 == 1
    }

    fn set(&mut self, bit: usize) {
        self.words[bit / 64] |= 1 << (bit % 64);
        self.end = self.end.max(bit / 64 + 1);
        while self.words.get(self.full) == Some(&u64::MAX) {
            self.full += 1;
        }
    }

    fn clear(&mut self, bit: usize) {
        self.words[bit / 64] &= !(1 << (bit % 64));
        self.full = self.full.min(bit / 64);
        while self.end > 0 && self.words[self.end - 1] == 0 {
            self.end -= 1;
        }
    }
}

impl Hash for Bits {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_usize(self.full);
        state.write_usize(self.end);
        for word in &self.words[self.full.min(self.end)..self.end] {
            state.write_u64(*word);
        }
    }
}

/// What was visited, as 128-bit digests: a million visits take 32 MB whatever the size of a state. That two different
/// ones among a million share a digest has a chance of about 2⁻⁸⁹.
#[derive(Default)]
pub(super) struct Seen(HashSet<u128, FixedState>);

impl Seen {
    /// Whether this was not there yet.
    pub(super) fn insert<S: Hash>(&mut self, open: &Open, state: &S) -> bool {
        let digest = |seed: u64| {
            let mut hasher = foldhash::quality::FixedState::with_seed(seed).build_hasher();
            open.answered_taken.hash(&mut hasher);
            open.unknown_taken.hash(&mut hasher);
            state.hash(&mut hasher);
            hasher.finish()
        };
        self.0.insert(u128::from(digest(1)) << 64 | u128::from(digest(2)))
    }
}
