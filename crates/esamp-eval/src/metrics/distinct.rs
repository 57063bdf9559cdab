//! The diversity of n-grams in a set of texts.

use std::collections::BTreeSet;

use super::MetricError;
use esamp::TokenId;

/// distinct-n: the number of different n-grams of all `texts` together, divided by the number of all their
/// n-grams (Li et al., *A Diversity-Promoting Objective Function for Neural Conversation Models*, arXiv
/// 1510.03055).
///
/// In `(0, 1]`; 1 if no n-gram occurs twice. Texts shorter than `n` have no n-grams, and n-grams do not
/// span texts. The score falls with the length of the texts regardless of their content: compare at equal
/// numbers of tokens, or use [`expectation_adjusted_distinct`]. Cost: a sort of the n-grams.
///
/// # Errors
///
/// [`MetricError::OutOfRange`] if `n` is 0, and [`MetricError::TooFew`] if no text has `n` tokens.
///
/// ```
/// use esamp_eval::metrics::distinct_n;
///
/// // 1-2 2-1 1-2, and 2-1: two different bigrams of four.
/// assert_eq!(distinct_n(&[vec![1, 2, 1, 2], vec![2, 1]], 2)?, 0.5);
/// # Ok::<(), esamp_eval::metrics::MetricError>(())
/// ```
pub fn distinct_n<T: AsRef<[TokenId]>>(texts: &[T], n: usize) -> Result<f64, MetricError> {
    let (distinct, total) = count(texts, n)?;
    Ok(distinct as f64 / total as f64)
}

/// Expectation-adjusted distinct-n: the number of different n-grams of all `texts` together, divided by the
/// number expected if as many n-grams were drawn uniformly from `kinds` (Liu et al., *Rethinking and
/// Refining the Distinct Metric*, arXiv 2202.13587).
///
/// With `D` different n-grams of `C`: `D / (kinds·(1 − (1 − 1/kinds)^C))`. Unlike [`distinct_n`] it does
/// not fall with the length of texts with uniform tokens. Tokens of a language are not uniform, so part of
/// the effect remains. Above 0; 1 for uniform tokens, and at most 1.59 (`e/(e − 1)`, for C = kinds, all
/// different).
///
/// For `n` = 1, `kinds` is the size of the vocabulary, as in the paper (of the largest one, if several are
/// compared). For larger `n` the paper leaves it open: the n-th power of the vocabulary size hardly
/// corrects anything; the number of different n-grams in a reference corpus does.
///
/// # Errors
///
/// Those of [`distinct_n`], and [`MetricError::OutOfRange`] if `kinds` is less than the number of different
/// n-grams in the texts.
///
/// ```
/// use esamp_eval::metrics::expectation_adjusted_distinct;
///
/// // Two draws from two kinds: 1.5 different ones are expected.
/// assert!((expectation_adjusted_distinct(&[[0, 1]], 1, 2)? - 2.0 / 1.5).abs() < 1e-12);
/// assert!((expectation_adjusted_distinct(&[[0, 0]], 1, 2)? - 1.0 / 1.5).abs() < 1e-12);
/// # Ok::<(), esamp_eval::metrics::MetricError>(())
/// ```
pub fn expectation_adjusted_distinct<T: AsRef<[TokenId]>>(
    texts: &[T],
    n: usize,
    kinds: u64,
) -> Result<f64, MetricError> {
    let (distinct, total) = count(texts, n)?;
    let expected = format_args!("at least the {distinct} in the texts");
    MetricError::check(kinds >= distinct as u64, "kinds", expected, kinds)?;
    let kinds = kinds as f64;
    // 1 − (1 − 1/kinds)^C without cancellation: for many kinds it is about C/kinds.
    let seen = -(total as f64 * (-kinds.recip()).ln_1p()).exp_m1();
    Ok(distinct as f64 / (kinds * seen))
}

/// The number of different n-grams, and of all n-grams.
fn count<T: AsRef<[TokenId]>>(texts: &[T], n: usize) -> Result<(usize, usize), MetricError> {
    MetricError::check(n >= 1, "n", "at least 1", n)?;
    let grams = || texts.iter().flat_map(|text| text.as_ref().windows(n));
    let total = grams().count();
    MetricError::at_least(format_args!("{n}-grams in the texts"), 1, total)?;
    Ok((grams().collect::<BTreeSet<_>>().len(), total))
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;
    use esamp::DrawKey;

    #[test]
    fn distinct_by_hand() {
        let texts: [&[TokenId]; 4] = [&[5, 5, 5], &[5, 6], &[7], &[]];
        let got = [1, 2, 3].map(|n| distinct_n(&texts, n).unwrap());
        assert_eq!(got, [3.0 / 6.0, 2.0 / 3.0, 1.0]);
        let text = |n| distinct_n(&texts, n).unwrap_err().to_string();
        assert_eq!(text(0), "n: expected at least 1, got 0");
        assert_eq!(text(4), "4-grams in the texts: expected at least 1, got 0");
    }

    #[test]
    fn the_adjustment_by_hand_and_at_its_borders() {
        let adjusted = |texts: &[&[TokenId]], n, kinds| {
            expectation_adjusted_distinct(texts, n, kinds).unwrap()
        };
        assert_eq!(adjusted(&[&[3, 3, 3]], 1, 1), 1.0, "there is no other");
        // Three draws from ten: 10·(1 − 0.9³) = 2.71 different ones are expected.
        assert!((adjusted(&[&[1, 2, 3]], 1, 10) - 3.0 / 2.71).abs() < 1e-12);
        assert!((adjusted(&[&[1, 2, 1, 2]], 2, 10) - 2.0 / 2.71).abs() < 1e-12);
        // With this many kinds no two draws are equal: plain distinct-n, although (1 − 1/kinds)^C rounds to
        // 1.
        assert!((adjusted(&[&[1, 1, 2]], 1, u64::MAX) - 2.0 / 3.0).abs() < 1e-12);
        let text = expectation_adjusted_distinct(&[[1, 2, 3]], 1, 2).unwrap_err().to_string();
        assert_eq!(text, "kinds: expected at least the 3 in the texts, got 2");
        assert!(expectation_adjusted_distinct(&[[1]], 1, 0).is_err());
    }

    /// For uniform tokens the score is the same at every length, where distinct-1 falls to a tenth.
    #[test]
    fn length_does_not_matter_for_uniform_tokens() {
        let mut rng = DrawKey::new(1, &[], 0).at(0).rng();
        for length in [30, 300, 3000] {
            let text: Vec<TokenId> = (0..length).map(|_| rng.next_u32() % 300).collect();
            let adjusted = expectation_adjusted_distinct(&[&text], 1, 300).unwrap();
            assert!((adjusted - 1.0).abs() < 0.06, "{length}: {adjusted}");
        }
    }
}
