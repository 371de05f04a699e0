//! Response nonces: they tie an ACK or NACK to the response it answers.

/// Source of nonces for one stream. A nonce means nothing on another stream.
#[derive(Debug, Default)]
pub struct Nonces {
    last: u64,
}

impl Nonces {
    /// A nonce that this stream has not used; never empty, since an empty one marks a first request.
    pub fn issue(&mut self) -> String {
        self.last += 1;
        format!("{:x}", self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonces_are_distinct_and_not_empty() {
        let mut n = Nonces::default();
        let (a, b) = (n.issue(), n.issue());
        assert!(!a.is_empty() && a != b);
    }
}
