//! Statistics of a whole row of logits.

/// Statistics of a row of logits before temperature, with penalties and bias applied, over every token that is
/// neither masked nor −inf.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct RowStats {
    /// The largest logit.
    pub best: f32,
    /// The standard deviation σ of the logits, `√(Σ (l − mean)² / count)`.
    pub deviation: f32,
    /// The divisor of the candidates' logits: the temperature if it is applied before the filters, else 1.
    pub temperature: f32,
}

impl RowStats {
    /// Computes the statistics of a row that has at least one finite logit; `best` is the largest.
    pub(super) fn of(logits: &[f32], best: f32, temperature: f32) -> Self {
        let count = sum(logits, |_| 1.0);
        let mean = sum(logits, |logit| logit) / count;
        // A second pass, because `Σ l² / count − mean²` would cancel if the mean is large.
        let squares = sum(logits, |logit| (logit - mean) * (logit - mean));
        Self { best, deviation: (squares / count).sqrt() as f32, temperature }
    }

    /// The logit that is `n` standard deviations below the best, before temperature.
    pub(super) fn least(&self, n: f32) -> f32 {
        self.best - n * self.deviation
    }
}

/// Sums `term` over the logits that are not −inf, in `f64`, so that one very low logit does not absorb the others.
fn sum(logits: &[f32], term: impl Fn(f64) -> f64) -> f64 {
    const LANES: usize = 8;
    let of = |&logit: &f32| if logit == f32::NEG_INFINITY { 0.0 } else { term(f64::from(logit)) };
    // Independent lanes, so that the compiler can vectorise the sum.
    let mut lanes = [0.0; LANES];
    let chunks = logits.chunks_exact(LANES);
    let rest: f64 = chunks.remainder().iter().map(of).sum();
    for chunk in chunks {
        for (lane, logit) in lanes.iter_mut().zip(chunk) {
            *lane += of(logit);
        }
    }
    lanes.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let row = [1.0, f32::NEG_INFINITY, 5.0, 3.0, 3.0, f32::NEG_INFINITY];
        let stats = RowStats::of(&row, 5.0, 2.0);
        assert_eq!(stats, RowStats { best: 5.0, deviation: 2.0f32.sqrt(), temperature: 2.0 });
        assert_eq!(RowStats::of(&[7.0], 7.0, 1.0).deviation, 0.0);
        assert_eq!(RowStats::of(&[1e4 + 1.0, 1e4 - 1.0], 1e4 + 1.0, 1.0).deviation, 1.0);
        // 1e8 plus 0, 8 and 8: neighbours in f32, whose mean is not a number that f64 has.
        let far = RowStats::of(&[1e8, 1e8 + 8.0, 1e8 + 8.0], 1e8 + 8.0, 1.0).deviation;
        assert!((far - 8.0 * 2.0f32.sqrt() / 3.0).abs() < 1e-5, "{far}");
        let extreme = RowStats::of(&[f32::MAX, f32::MIN], f32::MAX, 1.0);
        assert_eq!(extreme.deviation, f32::MAX, "no overflow on the way");
    }
}
