//! Whether a problem is solved within k attempts.

use std::collections::BTreeMap;

use super::MetricError;

/// pass@k: the probability that at least one of `k` completions is right, from `samples` completions of
/// which `correct` are right.
///
/// `1 − C(samples − correct, k) / C(samples, k)`, the share of subsets of size `k` that contain a right
/// completion: the unbiased estimate of `1 − (1 − p)^k`, where `p` is the probability that one completion
/// is right (Chen et al., *Evaluating Large Language Models Trained on Code*, arXiv 2107.03374). This is
/// the score of one problem; the score of a set of problems is the mean.
///
/// In `[0, 1]`. Computed as a product of `correct` factors, so nothing overflows.
///
/// # Errors
///
/// [`MetricError::OutOfRange`] if `correct` exceeds `samples`, or if `k` is outside `1..=samples`: with
/// fewer samples than `k` there is no unbiased estimate.
///
/// ```
/// use esamp_eval::metrics::pass_at_k;
///
/// // One right completion of four: 3 of 6 pairs contain it.
/// assert_eq!(pass_at_k(4, 1, 2)?, 0.5);
/// assert!(pass_at_k(4, 1, 5).is_err());
/// # Ok::<(), esamp_eval::metrics::MetricError>(())
/// ```
pub fn pass_at_k(samples: usize, correct: usize, k: usize) -> Result<f64, MetricError> {
    check(samples, k)?;
    MetricError::check(correct <= samples, "correct", format_args!("at most {samples}"), correct)?;
    if samples - correct < k {
        return Ok(1.0);
    }
    let all_wrong: f64 =
        (samples - correct + 1..=samples).map(|i| 1.0 - k as f64 / i as f64).product();
    Ok(1.0 - all_wrong)
}

/// maj@k: the probability that the most frequent answer of `k` completions is the right one (Wang et al.,
/// *Self-Consistency Improves Chain of Thought Reasoning*, arXiv 2203.11171; the name is from Lewkowycz et
/// al., arXiv 2206.14858).
///
/// Exact over all subsets of `k` answers, each equally likely; nothing is drawn at random. Ties are split
/// evenly. A completion without an answer (`None`) has no vote but counts as one of the `k`; without any
/// vote no answer wins. If `k` is the number of answers, this is the plain majority vote. `A` must compare
/// equal answers as equal: whether `1/2` equals `0.5` is up to the caller.
///
/// In `[0, 1]`. Cost: up to `samples·k²·ln k` multiply-adds: microseconds for 16 samples, hundredths of a
/// second for 256.
///
/// # Errors
///
/// [`MetricError::OutOfRange`] if `k` is outside `1..=answers.len()`.
///
/// ```
/// use esamp_eval::metrics::maj_at_k;
///
/// let answers = [Some(7), Some(9), Some(7), None];
/// assert_eq!(maj_at_k(&answers, &7, 4)?, 1.0);
/// // k = 1: half are right. k = 2: 7 7 once; 7 with another four times (7 9 twice, a tie; 7 and none twice);
/// // 9 and none once: (1 + 2/2 + 2) of 6.
/// assert!((maj_at_k(&answers, &7, 1)? - 0.5).abs() < 1e-12);
/// assert!((maj_at_k(&answers, &7, 2)? - 4.0 / 6.0).abs() < 1e-12);
/// # Ok::<(), esamp_eval::metrics::MetricError>(())
/// ```
pub fn maj_at_k<A: Ord>(answers: &[Option<A>], correct: &A, k: usize) -> Result<f64, MetricError> {
    check(answers.len(), k)?;
    let mut votes: BTreeMap<&A, usize> = BTreeMap::new();
    for answer in answers.iter().flatten() {
        *votes.entry(answer).or_default() += 1;
    }
    let silent = answers.iter().filter(|answer| answer.is_none()).count();
    let Some(right) = votes.remove(correct) else {
        return Ok(0.0);
    };
    // C(m, s) overflows; the binomial distribution with probability k/n does not. Its factors k/n and 1 −
    // k/n have the same power in every subset of size k, so they cancel in the share.
    let chance = k as f64 / answers.len() as f64;
    let all = binomial(answers.len(), chance)[k];
    let right = binomial(right, chance);
    let silent = binomial(silent, chance);
    let others: Vec<Vec<f64>> = votes.values().map(|&votes| binomial(votes, chance)).collect();
    let mut won = 0.0;
    for (votes, weight) in right.iter().enumerate().take(k + 1).skip(1) {
        for (ties, ways) in beaten(&silent, &others, votes, k - votes).iter().enumerate() {
            won += weight * ways / (ties + 1) as f64;
        }
    }
    Ok((won / all).min(1.0))
}

/// The weight of the ways in which the other answers and the completions without one fill `places` places
/// while no answer has more than `votes`. Index `i` holds those where `i` answers reach `votes`.
fn beaten(silent: &[f64], others: &[Vec<f64>], votes: usize, places: usize) -> Vec<f64> {
    let most_ties = (places / votes).min(others.len());
    let mut ways = vec![vec![0.0; places + 1]; most_ties + 1];
    for (taken, weight) in silent.iter().enumerate().take(places + 1) {
        ways[0][taken] = *weight;
    }
    for other in others {
        let mut next = vec![vec![0.0; places + 1]; most_ties + 1];
        for (ties, row) in ways.iter().enumerate() {
            for (taken, weight) in row.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
                let left = places - taken;
                for (its, share) in other.iter().enumerate().take(votes.min(left) + 1) {
                    // Each further tie takes `votes` more places, so `ties` stays within `most_ties`.
                    next[ties + usize::from(its == votes)][taken + its] += weight * share;
                }
            }
        }
        ways = next;
    }
    ways.iter().map(|row| row[places]).collect()
}

/// The probabilities of 0, 1, … `trials` successes, adding one trial at a time: only positive terms are
/// summed.
fn binomial(trials: usize, chance: f64) -> Vec<f64> {
    let mut chances = vec![0.0; trials + 1];
    chances[0] = 1.0;
    for done in 0..trials {
        for at in (0..=done + 1).rev() {
            let below = if at == 0 { 0.0 } else { chances[at - 1] };
            chances[at] = chances[at] * (1.0 - chance) + below * chance;
        }
    }
    chances
}

fn check(samples: usize, k: usize) -> Result<(), MetricError> {
    let holds = (1..=samples).contains(&k);
    MetricError::check(holds, "k", format_args!("1 to {samples} (the samples)"), k)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All subsets of `k` of `n`, as bit masks.
    fn subsets(n: usize, k: usize) -> impl Iterator<Item = u32> {
        (0u32..1 << n).filter(move |mask| mask.count_ones() as usize == k)
    }

    #[test]
    fn pass_at_k_is_the_share_of_subsets_with_a_right_one() {
        for n in 1..=10 {
            for correct in 0..=n {
                for k in 1..=n {
                    let right = (1u32 << correct) - 1;
                    let total = subsets(n, k).count() as f64;
                    let with = subsets(n, k).filter(|mask| mask & right != 0).count() as f64;
                    let got = pass_at_k(n, correct, k).unwrap();
                    assert!((got - with / total).abs() < 1e-12, "{n} {correct} {k}: {got}");
                }
            }
        }
    }

    #[test]
    fn pass_at_k_by_hand_and_at_its_borders() {
        assert_eq!(pass_at_k(10, 0, 10).unwrap(), 0.0);
        assert_eq!(pass_at_k(10, 10, 1).unwrap(), 1.0);
        assert_eq!(pass_at_k(10, 3, 8).unwrap(), 1.0, "only 7 are wrong");
        assert!((pass_at_k(200, 13, 1).unwrap() - 13.0 / 200.0).abs() < 1e-14, "p itself");
        // C(100000, 50000) overflows; half of these subsets contain the right completion.
        assert!((pass_at_k(100_000, 1, 50_000).unwrap() - 0.5).abs() < 1e-12);
        let text = |samples, correct, k| pass_at_k(samples, correct, k).unwrap_err().to_string();
        assert_eq!(text(4, 1, 5), "k: expected 1 to 4 (the samples), got 5");
        assert_eq!(text(4, 1, 0), "k: expected 1 to 4 (the samples), got 0");
        assert_eq!(text(4, 5, 1), "correct: expected at most 4, got 5");
        assert!(pass_at_k(0, 0, 0).is_err() && pass_at_k(0, 0, 1).is_err());
    }

    /// Averages the vote over all subsets.
    fn majority_by_enumeration(answers: &[Option<u8>], correct: u8, k: usize) -> f64 {
        let (mut won, mut total) = (0.0, 0.0);
        for mask in subsets(answers.len(), k) {
            let mut votes = [0; 256];
            for (at, answer) in answers.iter().enumerate() {
                if let (Some(answer), true) = (answer, mask >> at & 1 == 1) {
                    votes[usize::from(*answer)] += 1;
                }
            }
            let most = votes.into_iter().max().unwrap();
            let winners = votes.iter().filter(|&&v| v == most).count() as f64;
            if most > 0 && votes[usize::from(correct)] == most {
                won += 1.0 / winners;
            }
            total += 1.0;
        }
        won / total
    }

    proptest! {
        #[test]
        fn maj_at_k_is_the_mean_over_all_subsets(
            answers in prop::collection::vec(prop::option::of(0u8..5), 1..12),
            correct in 0u8..5,
            k in any::<prop::sample::Index>(),
        ) {
            let k = 1 + k.index(answers.len());
            let got = maj_at_k(&answers, &correct, k).unwrap();
            let expected = majority_by_enumeration(&answers, correct, k);
            prop_assert!((got - expected).abs() < 1e-12, "{got}, expected {expected}");
        }
    }

    #[test]
    fn maj_at_k_at_its_borders() {
        let votes = |right: usize, wrong: usize| -> Vec<Option<bool>> {
            (0..right + wrong).map(|i| Some(i < right)).collect()
        };
        assert_eq!(maj_at_k(&votes(0, 3), &true, 2).unwrap(), 0.0, "never given");
        assert_eq!(maj_at_k(&[None, None], &1, 2).unwrap(), 0.0, "nobody votes");
        assert_eq!(maj_at_k(&votes(2, 2), &true, 4).unwrap(), 0.5, "a tie");
        assert_eq!(maj_at_k(&votes(3, 2), &true, 5).unwrap(), 1.0);
        // Subsets of size 500 of 2000 with as many right as wrong answers: a half by symmetry, and C(2000,
        // 500) would overflow.
        let even = maj_at_k(&votes(600, 600), &true, 300).unwrap();
        assert!((even - 0.5).abs() < 1e-9, "{even}");
        let text = maj_at_k(&votes(1, 1), &true, 3).unwrap_err().to_string();
        assert_eq!(text, "k: expected 1 to 2 (the samples), got 3");
    }
}
