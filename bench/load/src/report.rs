//! One line of figures, the same for every measurement: `key value` pairs that `table` and people can read.

use std::time::Duration;

/// What one run showed.
pub struct Report {
    pub what: String,
    /// Operations, or deliveries, that counted.
    pub count: u64,
    pub elapsed: Duration,
    pub took_micros: Vec<u32>,
    pub failures: u64,
    /// Of all measured processes while it counted.
    pub cpu_nanos: u64,
}

impl Report {
    /// Prints the line.
    pub fn print(mut self) {
        self.took_micros.sort_unstable();
        let at = |share: f64| {
            let last = self.took_micros.len().saturating_sub(1);
            let at = (self.took_micros.len() as f64 * share) as usize;
            self.took_micros.get(at.min(last)).copied().unwrap_or(0)
        };
        let cpu = self.cpu_nanos as f64 / 1e9 * 100_000.0 / self.count.max(1) as f64;
        println!(
            "what {} per_s {:.0} p50_us {} p99_us {} p999_us {} cpu_s_per_100k {:.3} failures {}",
            self.what,
            self.count as f64 / self.elapsed.as_secs_f64(),
            at(0.50),
            at(0.99),
            at(0.999),
            cpu,
            self.failures,
        );
    }
}
