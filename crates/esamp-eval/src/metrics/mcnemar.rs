//! McNemar's test: whether one method solves problems that another does not, more often than by chance.

use serde::{Deserialize, Serialize};

use super::MetricError;

/// The result of [`mcnemar`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct McNemar {
    /// Problems that only the new method solves.
    pub only_new: u64,
    /// Problems that only the old method solves.
    pub only_old: u64,
    /// Probability of a split at least this uneven if neither method were better: two-sided, in `[0, 1]` (0
    /// below 1e-308).
    pub p_value: f64,
}

impl McNemar {
    /// The test from the two counts, which is all it depends on.
    ///
    /// Cost: twice the smaller count in steps.
    pub fn of_counts(only_new: u64, only_old: u64) -> Self {
        let (few, many) = (only_new.min(only_old), only_new.max(only_old));
        let all = few as f64 + many as f64;
        // ln of C(all, few) / 2^all, then the smaller terms by their ratios: the first term is the largest.
        let choose: f64 = (1..=few).map(|i| ((many as f64 + i as f64) / i as f64).ln()).sum();
        let mut term = (choose - all * std::f64::consts::LN_2).exp();
        let mut tail = 0.0;
        for i in (0..=few).rev() {
            tail += term;
            term *= i as f64 / (all - i as f64 + 1.0);
        }
        Self { only_new, only_old, p_value: (2.0 * tail).min(1.0) }
    }
}

/// McNemar's exact test: among the problems that only one of two methods solves, is the split too uneven
/// for chance (McNemar, 1947; exact by the binomial distribution with probability ½)?
///
/// Index `i` is the same problem in `new` and `old`. The p-value is twice the probability of at most the
/// smaller count, capped at 1; it is 1 if both solve the same problems. For one outcome per problem; for
/// graded scores such as pass@k use [`paired_interval`](super::paired_interval).
///
/// # Errors
///
/// [`MetricError::Length`] for different numbers of problems, [`MetricError::TooFew`] without problems.
///
/// ```
/// use esamp_eval::metrics::mcnemar;
///
/// let new = [true, true, true, true, true, true, false];
/// let old = [false, false, false, false, false, true, false];
/// let test = mcnemar(&new, &old)?;
/// assert_eq!((test.only_new, test.only_old), (5, 0));
/// // Five coins that all fall on the same side, either one: 2/32.
/// assert!((test.p_value - 0.0625).abs() < 1e-12);
/// # Ok::<(), esamp_eval::metrics::MetricError>(())
/// ```
pub fn mcnemar(new: &[bool], old: &[bool]) -> Result<McNemar, MetricError> {
    MetricError::at_least("problems", 1, new.len())?;
    MetricError::same_length("old", new.len(), old.len())?;
    let count =
        |a: &[bool], b: &[bool]| a.iter().zip(b).filter(|(a, b)| **a && !**b).count() as u64;
    Ok(McNemar::of_counts(count(new, old), count(old, new)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares with an enumeration of all coin tosses.
    #[test]
    fn the_p_value_is_the_share_of_splits_as_uneven() {
        for only_new in 0..8u32 {
            for only_old in 0..8u32 {
                let all = only_new + only_old;
                let gap = only_new.abs_diff(only_old);
                let uneven = (0u32..1 << all)
                    .filter(|falls| (2 * falls.count_ones()).abs_diff(all) >= gap)
                    .count();
                let expected = uneven as f64 / f64::from(1u32 << all);
                let got = McNemar::of_counts(only_new.into(), only_old.into()).p_value;
                assert!((got - expected).abs() < 1e-12, "{only_new} {only_old}: {got}, {expected}");
            }
        }
    }

    #[test]
    fn large_counts_neither_overflow_nor_vanish() {
        assert_eq!(McNemar::of_counts(50_000, 50_000).p_value, 1.0);
        // 4200 − 3900 of 8100: z = (300 − 1)/90 = 3.32, two-sided 0.00089.
        let p = McNemar::of_counts(4200, 3900).p_value;
        assert!((p - 0.000_89).abs() < 0.000_01, "{p}");
        assert!(McNemar::of_counts(2000, 0).p_value < 1e-300);
    }

    #[test]
    fn problems_must_pair() {
        let text = mcnemar(&[true, false], &[true]).unwrap_err().to_string();
        assert_eq!(text, "old: expected 2 values, got 1");
        let text = mcnemar(&[], &[]).unwrap_err().to_string();
        assert_eq!(text, "problems: expected at least 1, got 0");
        assert_eq!(mcnemar(&[true, false], &[true, false]).unwrap().p_value, 1.0);
    }
}
