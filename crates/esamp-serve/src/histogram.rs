//! Histograms of times.

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// The upper bounds of the buckets, in seconds: three per factor of ten, from a token on a GPU to a long chat on a CPU.
const BOUNDS: [f64; 18] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0,
    100.0, 250.0, 500.0,
];

/// How many times were at most so long.
#[derive(Debug, Default)]
pub struct Histogram {
    /// Times in each bucket, and those above all bounds.
    counts: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Histogram {
    pub fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = BOUNDS.partition_point(|&bound| bound < seconds);
        self.counts[bucket].fetch_add(1, Relaxed);
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Relaxed);
    }

    /// Writes the lines of Prometheus' text format.
    pub(crate) fn write(&self, out: &mut String, name: &str) {
        let mut count = 0;
        for (at, times) in self.counts.iter().enumerate() {
            count += times.load(Relaxed);
            let bound = BOUNDS.get(at).map_or("+Inf".to_owned(), f64::to_string);
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let sum = Duration::from_nanos(self.nanoseconds.load(Relaxed)).as_secs_f64();
        let _ = writeln!(out, "{name}_sum {sum}\n{name}_count {count}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_count_all_times_up_to_their_bound() {
        let times = Histogram::default();
        for milliseconds in [1, 9, 10, 11, 10_000, 700_000] {
            times.observe(Duration::from_millis(milliseconds));
        }
        let mut out = String::new();
        times.write(&mut out, "t");
        for line in [
            "t_bucket{le=\"0.001\"} 1\n",
            "t_bucket{le=\"0.005\"} 1\n",
            "t_bucket{le=\"0.01\"} 3\n",
            "t_bucket{le=\"0.025\"} 4\n",
            "t_bucket{le=\"5\"} 4\n",
            "t_bucket{le=\"10\"} 5\n",
            "t_bucket{le=\"500\"} 5\n",
            "t_bucket{le=\"+Inf\"} 6\n",
            "t_sum 710.031\n",
            "t_count 6\n",
        ] {
            assert!(out.contains(line), "{line}: {out}");
        }
    }
}
