//! The same endpoint for the same key, whichever proxy asks: on a ring of points (Ketama), or by a table with equal
//! shares (Maglev).
//!
//! Both depend on nothing but addresses and weights, so all proxies agree, and an endpoint that comes or goes moves few
//! keys besides its own. The ring moves only those; the table is more even and is read in one step (Eisenbud et al.,
//! "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, §3.4). An endpoint that was tried is
//! passed over: the next point or slot is taken, the same one for the same key.

use std::net::SocketAddr;

use pingora_ketama::{Bucket, Continuum};

use super::picker::Candidates;

/// Slots of a Maglev table, a prime: with it, and 160 endpoints, shares differ by about a hundredth.
const SLOTS: usize = 16_381;

/// For more endpoints than that.
const SLOTS_FOR_MANY: usize = 65_537;
const MANY: usize = 160;

/// Sum of weights on a ring, each unit of which is 160 points. Larger ones are scaled down.
const RING_WEIGHT_MAX: u64 = 2_048;

/// See the module.
pub struct Ring {
    candidates: Candidates,
    points: Continuum,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("candidates", &self.candidates).finish_non_exhaustive()
    }
}

impl Ring {
    pub(crate) fn new(candidates: Candidates) -> Self {
        let total: u64 = candidates.weights.iter().map(|w| u64::from(*w)).sum();
        let bucket = |i: usize| {
            let weight = u64::from(candidates.weights[i]);
            let scaled =
                if total > RING_WEIGHT_MAX { (weight * RING_WEIGHT_MAX / total).max(1) } else { weight };
            // At most the number above.
            Bucket::new(candidates.states[i].addr(), scaled as u32)
        };
        let buckets: Vec<_> = (0..candidates.len().min(usize::from(u16::MAX))).map(bucket).collect();
        Self { points: Continuum::new(&buckets), candidates }
    }

    pub(crate) fn candidates(&self) -> &Candidates {
        &self.candidates
    }

    pub(crate) fn pick(&self, key: u64, tried: &[SocketAddr]) -> Option<usize> {
        let mut at = self.points.node_idx(&key.to_le_bytes());
        // Each endpoint has so many points that all are met well before the ring is round; bounded all the same.
        for _ in 0..self.candidates.len().saturating_mul(512) {
            let addr = self.points.get_addr(&mut at)?;
            if !tried.contains(addr) {
                return self.candidates.index_of(*addr);
            }
            if tried.len() >= self.candidates.len() {
                return (0..self.candidates.len()).find(|i| !self.candidates.is_tried(*i, tried));
            }
        }
        None
    }
}

/// See the module.
#[derive(Debug)]
pub struct Maglev {
    candidates: Candidates,
    table: Box<[u16]>,
}

impl Maglev {
    pub(crate) fn new(candidates: Candidates) -> Self {
        let table = table(&candidates);
        Self { candidates, table }
    }

    pub(crate) fn candidates(&self) -> &Candidates {
        &self.candidates
    }

    pub(crate) fn pick(&self, key: u64, tried: &[SocketAddr]) -> Option<usize> {
        let slots = self.table.len();
        if slots == 0 {
            return None;
        }
        // Below `slots`, so it fits.
        let first = (key % slots as u64) as usize;
        let found = usize::from(self.table[first]);
        if !self.candidates.is_tried(found, tried) {
            return Some(found);
        }
        (1..slots)
            .map(|step| usize::from(self.table[(first + step) % slots]))
            .find(|i| !self.candidates.is_tried(*i, tried))
    }
}

/// Endpoints take turns to claim the next free slot of their own permutation, heavy ones more often.
fn table(candidates: &Candidates) -> Box<[u16]> {
    let len = candidates.len().min(usize::from(u16::MAX));
    if len == 0 {
        return Box::default();
    }
    let slots = if len > MANY { SLOTS_FOR_MANY } else { SLOTS };
    let mut claims: Vec<Claim> = (0..len).map(|i| Claim::new(candidates.states[i].addr(), slots)).collect();
    let heaviest = candidates.weights.iter().copied().max().unwrap_or(1);
    let mut table = vec![u16::MAX; slots];
    let mut free = slots;
    loop {
        for (i, claim) in claims.iter_mut().enumerate() {
            claim.credit += u64::from(candidates.weights[i]);
            if claim.credit < u64::from(heaviest) {
                continue;
            }
            claim.credit -= u64::from(heaviest);
            let slot = claim.next_free(&table);
            // Below u16::MAX by the limit above.
            table[slot] = i as u16;
            free -= 1;
            if free == 0 {
                return table.into();
            }
        }
    }
}

struct Claim {
    at: usize,
    skip: usize,
    credit: u64,
}

impl Claim {
    fn new(addr: SocketAddr, slots: usize) -> Self {
        let hash = hash(addr.to_string().as_bytes());
        let (high, low) = (hash >> 32, hash & 0xffff_ffff);
        // Both below `slots`, so they fit.
        Self { at: (high % slots as u64) as usize, skip: (low % (slots as u64 - 1)) as usize + 1, credit: 0 }
    }

    fn next_free(&mut self, table: &[u16]) -> usize {
        loop {
            let at = self.at;
            self.at = (self.at + self.skip) % table.len();
            if table[at] == u16::MAX {
                return at;
            }
        }
    }
}

/// The same in every release and on every machine, since proxies must agree: FNV-1a, then mixed, because its upper bits
/// differ little for short texts.
pub fn hash(bytes: &[u8]) -> u64 {
    let fnv = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3));
    let mixed = (fnv ^ (fnv >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests;
