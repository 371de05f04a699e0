//! Requests come first.
//!
//! A sidecar has few CPUs, often a part of one. The kernel lets a thread that works run on for milliseconds while another
//! that a packet has woken waits for the same CPU, so what the control runtime does in bulk (thousands of checks, of
//! endpoints that change) would be seen in the latencies of requests. Its steps, most of them of some ten microseconds, begin with
//! [`make_way`]: a worker that waits goes first. Not while a lock is held that a worker may want, as by the writer of the view.

use bytes::Buf;

/// Lets threads go first that wait for this CPU. Costs less than a microsecond if none does.
pub(crate) fn make_way() {
    std::thread::yield_now();
}

/// Bytes that are decoded step by step.
pub(crate) struct InSteps<'a> {
    left: &'a [u8],
    until_next: usize,
}

/// Bytes of a step: some 30 microseconds of decoding.
const STEP: usize = 2048;

impl<'a> InSteps<'a> {
    /// All of them.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { left: bytes, until_next: STEP }
    }
}

impl Buf for InSteps<'_> {
    fn remaining(&self) -> usize {
        self.left.len()
    }

    fn chunk(&self) -> &[u8] {
        self.left
    }

    fn advance(&mut self, count: usize) {
        self.left.advance(count);
        match self.until_next.checked_sub(count) {
            Some(left) => self.until_next = left,
            None => {
                make_way();
                self.until_next = STEP;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use weft_xds_proto::envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;

    use super::*;

    #[test]
    fn what_is_decoded_in_steps_is_what_was_encoded_and_what_is_cut_off_is_refused() {
        let names = (0..1000).map(|n| (format!("named-{n}"), Default::default())).collect();
        let sent = ClusterLoadAssignment { named_endpoints: names, ..Default::default() };
        let bytes = sent.encode_to_vec();
        assert!(bytes.len() > 4 * STEP);
        assert_eq!(ClusterLoadAssignment::decode(InSteps::new(&bytes)).unwrap(), sent);
        assert!(ClusterLoadAssignment::decode(InSteps::new(&bytes[..bytes.len() - 1])).is_err());
    }
}
