//! A fast 64-bit hash whose result never changes, unlike those of hash-map crates.
//!
//! Replicas of different builds compare such hashes, so the function is part of the format. It is not
//! for adversaries: it finds divergence, and images carry a CRC beside it.

/// Hash under way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Digest(u64);

impl Digest {
    /// `domain` keeps hashes of different kinds of things apart.
    pub(crate) fn new(domain: u64) -> Self {
        Self(fold(domain ^ SEED, STEP))
    }

    pub(crate) fn word(self, word: u64) -> Self {
        Self(fold(self.0 ^ word, STEP))
    }

    pub(crate) fn int(self, value: i64) -> Self {
        self.word(value.cast_unsigned())
    }

    /// The length goes in first, so that neighbouring fields cannot trade bytes.
    pub(crate) fn bytes(self, bytes: &[u8]) -> Self {
        let mut digest = self.word(bytes.len() as u64);
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            digest = digest.word(u64::from_le_bytes(word.try_into().expect("chunks of 8 bytes")));
        }
        let rest = words.remainder();
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            digest = digest.word(u64::from_le_bytes(last));
        }
        digest
    }

    pub(crate) fn finish(self) -> u64 {
        fold(self.0, SEED)
    }
}

/// Multiply to 128 bits and xor the halves: each input bit reaches every output bit.
fn fold(a: u64, b: u64) -> u64 {
    let wide = u128::from(a).wrapping_mul(u128::from(b));
    (wide as u64) ^ ((wide >> 64) as u64) ^ a.rotate_left(29)
}

/// Odd and without pattern; any such numbers would do, these ones are the format.
const SEED: u64 = 0x9e6c_63d0_876a_58b5;
const STEP: u64 = 0xd1f3_5f4a_93c1_2b07;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_is_part_of_the_format() {
        let digest = Digest::new(1).bytes(b"key").bytes(b"a longer value").int(-7).finish();
        assert_eq!(digest, 0x2780_87a3_6df5_f733);
    }

    #[test]
    fn fields_cannot_trade_bytes() {
        let one = Digest::new(1).bytes(b"ab").bytes(b"c").finish();
        let other = Digest::new(1).bytes(b"a").bytes(b"bc").finish();
        assert_ne!(one, other);
        assert_ne!(Digest::new(1).bytes(b"a").finish(), Digest::new(1).bytes(b"a\0").finish());
        assert_ne!(Digest::new(1).finish(), Digest::new(2).finish());
    }
}
