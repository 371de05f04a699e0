//! All watchers of one replica.

use crate::{
    command::{Event, Revision},
    defect::{Defect, planted},
    machine::Machine,
    watch::{
        interest::Interest,
        watcher::{
            Offered, Published, WATCHER_PENDING_BYTES_MAX, WatchOptions, WatchPoll, Watcher, WatcherId,
        },
    },
};

/// Who is told about which event.
///
/// Lock order for drivers: the machine first, then the hub. `publish` is called with the machine's write
/// lock still held from the `apply`s whose events it is given, so that whoever holds both locks sees
/// either neither or both of a change and its events: an event is never answered before it can be read.
#[derive(Debug)]
pub struct WatchHub {
    slots: Vec<Slot>,
    free: Vec<u32>,
    interest: Interest,
    /// Revision of the last event that was published.
    published: Revision,
    /// Counts calls of `publish`.
    publication: u64,
    overflows: u64,
    pending_bytes_max: usize,
}

/// Reused; its generation is part of the id, so that a former watcher's id means nobody.
#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    watcher: Option<Watcher>,
}

impl Default for WatchHub {
    fn default() -> Self {
        Self::with_pending_bytes_max(WATCHER_PENDING_BYTES_MAX)
    }
}

impl WatchHub {
    /// A hub without watchers.
    pub fn new() -> Self {
        Self::default()
    }

    /// With another bound than [`WATCHER_PENDING_BYTES_MAX`] on what waits for one watcher.
    pub fn with_pending_bytes_max(pending_bytes_max: usize) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            interest: Interest::default(),
            published: 0,
            publication: 0,
            overflows: 0,
            pending_bytes_max,
        }
    }

    /// Adds a watcher; also answers the current revision. Poll it before waiting to be named by `publish`:
    /// if it starts in the past there is something already.
    pub fn create(&mut self, machine: &Machine, options: WatchOptions) -> (WatcherId, Revision) {
        let current = machine.revision();
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 watchers fit in memory")
        });
        let mut watcher = Watcher::new(options, current);
        watcher.position = self.interest.add(&watcher.options.range, slot);
        let entry = &mut self.slots[slot as usize];
        entry.watcher = Some(watcher);
        (id(entry, slot), current)
    }

    /// Removes a watcher; false if there is none of this id.
    pub fn cancel(&mut self, id: WatcherId) -> bool {
        let Some(slot) = self.find(id) else { return false };
        let entry = &mut self.slots[slot as usize];
        entry.generation = entry.generation.wrapping_add(1);
        let watcher = entry.watcher.take().expect("find() answers slots in use");
        self.free.push(slot);
        if let Some(moved) = self.interest.remove(&watcher.options.range, watcher.position)
            && let Some(moved) = &mut self.slots[moved as usize].watcher
        {
            moved.position = watcher.position;
        }
        true
    }

    /// Takes in the events of one applied batch, whole revisions in order; answers whom to wake, each once.
    pub fn publish(&mut self, events: &[Event]) -> Vec<WatcherId> {
        self.publication += 1;
        let Self { slots, interest, publication, overflows, pending_bytes_max, .. } = self;
        let mut named = Vec::new();
        for event in events {
            let mut published = Published::new(event);
            interest.for_each(&event.kv.key, |slot| {
                let entry = &mut slots[slot as usize];
                let watcher = entry.watcher.as_mut().expect("the interest index holds slots in use");
                match watcher.offer(&mut published, *pending_bytes_max) {
                    Offered::NotWanted => return,
                    Offered::Pending => {}
                    Offered::Overflowed => *overflows += 1,
                }
                if watcher.named_in != *publication {
                    watcher.named_in = *publication;
                    named.push(id(entry, slot));
                }
            });
        }
        if let Some(last) = events.last() {
            debug_assert!(last.kv.mod_revision > self.published, "published in order");
            self.published = self.published.max(last.kv.mod_revision);
        }
        named
    }

    /// The machine was replaced by a newer one (from a Raft snapshot), without events: everyone reads on
    /// from history. Answers whom to wake: all.
    pub fn restored(&mut self, machine: &Machine) -> Vec<WatcherId> {
        let published = std::mem::replace(&mut self.published, machine.revision());
        let mut named = Vec::new();
        for (slot, entry) in (0..).zip(&mut self.slots) {
            let Some(watcher) = &mut entry.watcher else { continue };
            if watcher.synced {
                watcher.next = watcher.next.max(published + 1);
                if planted(Defect::WatchGap) {
                    watcher.next = watcher.next.max(machine.revision() + 1);
                }
                watcher.synced = watcher.next > machine.revision();
            }
            named.push(id(entry, slot));
        }
        named
    }

    /// What the watcher has to tell now: whole revisions until `max_bytes` are reached, at least one. An
    /// id of no watcher is told `Idle`, as it will never have anything.
    pub fn poll(&mut self, id: WatcherId, machine: &Machine, max_bytes: usize) -> WatchPoll {
        let current = machine.revision();
        let Some(slot) = self.find(id) else { return WatchPoll::Idle { synced_to: current } };
        let published = self.published;
        let watcher = self.slots[slot as usize].watcher.as_mut().expect("find() answers slots in use");
        if let Some(answer) = watcher.take(max_bytes) {
            return answer;
        }
        if !watcher.synced
            && let Some(answer) = watcher.catch_up(machine, max_bytes)
        {
            if matches!(answer, WatchPoll::Compacted { .. }) {
                self.cancel(id);
            }
            return answer;
        }
        WatchPoll::Idle { synced_to: published.max(current.min(watcher.next - 1)) }
    }

    /// What [`WatchHub::poll`] would answer, if it is among what was published and the machine is not needed to
    /// find it: then a driver need not lock the machine, which is busy applying. None: poll.
    pub fn take(&mut self, id: WatcherId, max_bytes: usize) -> Option<WatchPoll> {
        let slot = self.find(id)?;
        self.slots[slot as usize].watcher.as_mut()?.take(max_bytes)
    }

    /// How many watchers there are.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether there is no watcher.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How often a watcher's queue was over its bound and the watcher went back to history.
    pub fn overflows(&self) -> u64 {
        self.overflows
    }

    /// The slot of a watcher that is there.
    fn find(&self, id: WatcherId) -> Option<u32> {
        let slot = id.slot() as u32;
        let entry = self.slots.get(slot as usize)?;
        (entry.watcher.is_some() && u64::from(entry.generation) == id.0 >> 32).then_some(slot)
    }
}

fn id(entry: &Slot, slot: u32) -> WatcherId {
    WatcherId(u64::from(entry.generation) << 32 | u64::from(slot))
}
