//! openraft's histograms, recording nothing.
//!
//! openraft counts batch sizes and durations into histograms of the crate `base2histogram`, to be read through
//! `Raft::runtime_stats`, which exists only with its feature `runtime-stats`. Weft does not turn that on and has
//! metrics of its own. The original makes lookup tables for all sixteen widths as soon as one histogram is made:
//! 24 MiB, half of what an idle server took. This stand-in, put in its place by `[patch]` in the workspace's manifest, has
//! what openraft calls and answers that there were no samples.
//!
//! To be deleted when openraft makes its statistics optional or the tables are made on demand.

use std::{fmt, marker::PhantomData};

/// Takes samples and keeps none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<T = ()>(PhantomData<T>);

impl<T> Histogram<T> {
    /// Without samples.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "as the original")]
    pub fn new() -> Self {
        Self(PhantomData)
    }

    /// Forgets a sample.
    pub fn record(&mut self, _value: u64) {}

    /// Forgets many.
    pub fn record_n(&mut self, _value: u64, _count: u64) {}

    /// What an empty histogram answers.
    #[must_use]
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats::default()
    }
}

/// Percentiles of no samples: all 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n={}", self.samples)
    }
}

/// A chart of nothing.
#[derive(Debug, Default)]
pub struct AsciiChart;

impl AsciiChart {
    /// Without histograms.
    #[must_use]
    pub fn new() -> Self {
        Self
    }

    /// Leaves a histogram out.
    #[must_use]
    pub fn add<T>(self, _name: &str, _histogram: Histogram<T>) -> Self {
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no samples")
    }
}
