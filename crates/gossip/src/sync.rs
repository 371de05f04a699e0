//! Anti-entropy: two members compare all they know over a stream. It is what makes large advertisements and missed
//! broadcasts converge (G04). Only bookkeeping is here; the pool applies what comes.
//!
//! ```text
//! caller                                    called
//!   Offer: members, digest  ------------->
//!            <-------------  Records* (newer here), Want: members, owners newer there
//!   Records* (wanted), End  ------------->
//! ```
//! Only records of owners that are up are offered: those of others are shown nowhere, and come back with their owner.

use weft_core::id::NodeId;

use crate::instance::{Advertisement, RecordVersion};
use crate::wire::{self, Frame};

/// Where one session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Session {
    /// We called; the answer is still coming.
    Called,
    /// We were called; the offer is still to come.
    Accepted,
    /// We answered; what we wanted is still coming.
    Answered,
}

impl Session {
    pub(crate) fn is_ours(self) -> bool {
        self == Self::Called
    }
}

/// Members named in one frame. A larger pool is told in random parts.
pub(crate) const MEMBERS_PER_FRAME_MAX: usize = 3_000;
/// Records are put together in frames up to about this size.
const RECORDS_FRAME_BYTES: usize = 256 * 1024;
/// Frames of records that one side sends in one session; what is left comes with the next one.
pub(crate) const RECORDS_FRAMES_MAX: usize = 64;

/// Of `ours`, what the other side lacks or has in an older version.
pub(crate) fn lacking<'a>(
    ours: impl Iterator<Item = &'a Advertisement>,
    theirs: &[(NodeId, RecordVersion)],
) -> Vec<&'a Advertisement> {
    let theirs: std::collections::BTreeMap<_, _> = theirs.iter().copied().collect();
    ours.filter(|a| theirs.get(&a.owner).is_none_or(|version| *version < a.version)).collect()
}

/// Owners of whom the other side has a record that is newer than ours.
pub(crate) fn wanted(
    ours: impl Fn(NodeId) -> Option<RecordVersion>,
    theirs: &[(NodeId, RecordVersion)],
) -> Vec<NodeId> {
    theirs.iter().filter(|(owner, version)| ours(*owner) < Some(*version)).map(|(owner, _)| *owner).collect()
}

/// Puts records in as few frames as their size allows.
pub(crate) fn frames<'a>(records: impl IntoIterator<Item = &'a Advertisement>) -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut batch = Vec::new();
    let mut bytes = 0;
    for record in records {
        let size = wire::encode(record).len();
        if bytes + size > RECORDS_FRAME_BYTES && !batch.is_empty() {
            frames.push(Frame::Records(std::mem::take(&mut batch)));
            bytes = 0;
            if frames.len() == RECORDS_FRAMES_MAX {
                return frames;
            }
        }
        bytes += size;
        batch.push(record.clone());
    }
    if !batch.is_empty() {
        frames.push(Frame::Records(batch));
    }
    frames
}

#[cfg(test)]
mod tests {
    use weft_core::limits::GOSSIP_ADVERTISEMENT_BYTES_MAX;

    use super::*;
    use crate::catalog::tests::{advertisement, record};

    #[test]
    fn each_side_gets_what_it_lacks() {
        let ours =
            [advertisement(1, 1, 1, vec![]), advertisement(2, 1, 5, vec![]), advertisement(3, 2, 1, vec![])];
        let version = |incarnation, seq| RecordVersion { incarnation, seq };
        let theirs = [(NodeId(2), version(1, 5)), (NodeId(3), version(1, 9)), (NodeId(4), version(1, 1))];
        let lacking: Vec<_> = lacking(ours.iter(), &theirs).iter().map(|a| a.owner.0).collect();
        assert_eq!(lacking, [1, 3]);
        let known = |owner| ours.iter().find(|a| a.owner == owner).map(|a| a.version);
        assert_eq!(wanted(known, &theirs), [NodeId(4)]);
    }

    #[test]
    fn frames_of_the_largest_records_stay_within_the_limit() {
        let mut large = record("web", "1");
        large.metadata.insert("k".into(), "v".repeat(GOSSIP_ADVERTISEMENT_BYTES_MAX - 200));
        let large = advertisement(1, 1, 1, vec![large]);
        large.check().unwrap();
        let records: Vec<_> =
            (0..5).flat_map(|_| [large.clone(), advertisement(2, 1, 1, vec![record("a", "1")])]).collect();
        let frames = frames(&records);
        assert_eq!(frames.len(), 10);
        for frame in &frames {
            wire::frame(frame).unwrap();
        }
    }

    #[test]
    fn small_records_share_a_frame() {
        let records: Vec<_> = (1..=500).map(|i| advertisement(i, 1, 1, vec![record("a", "1")])).collect();
        assert_eq!(frames(&records).len(), 1);
    }
}
