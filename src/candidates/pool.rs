//! Collecting the candidates of a row of logits without sorting the vocabulary.

use super::{
    Candidate, Candidates, Reach, RowStats, TokenMask,
    order::{place, sort},
};
use crate::{
    error::RowError,
    host::{exp_of_negative, vectorised},
    id::TokenId,
};

/// Collects the candidates of one row: every token that is neither masked nor certain to be dropped by the row's
/// first filter, whose reach is `reach`. Logits are divided by `temperature`. With `wants_stats` the candidates carry
/// the statistics of the row.
///
/// Cost: one pass that finds the largest logit and checks for NaN and +inf, one pass that collects (plus one
/// exponential per token if the reach is a mass or a probability), and two short passes for the statistics.
pub(crate) fn pool(
    logits: &[f32],
    temperature: f32,
    allowed: Option<&TokenMask>,
    reach: Reach,
    wants_stats: bool,
) -> Result<Candidates, RowError> {
    let masked;
    let logits = match allowed {
        None => logits,
        Some(allowed) => {
            masked = allowed.apply(logits)?;
            &masked
        }
    };
    let max = largest(logits)?;
    // Checking the largest is enough: a lower logit can only become −inf, which `candidate` replaces.
    if !(max / temperature).is_finite() {
        let token = logits.iter().position(|&logit| logit == max).unwrap_or_default();
        return Err(RowError::Score { token: token as TokenId, got: max / temperature });
    }
    let wants_stats = wants_stats || matches!(reach, Reach::Deviations(_));
    let stats = wants_stats.then(|| RowStats::of(logits, max, temperature));
    let mut candidates = match reach {
        Reach::Best(k) => {
            // A filter may ask for none or for more than there are. At least the best token must be left.
            let k = k.clamp(1, logits.len());
            Candidates::gathered(best(logits, temperature, k), 0.0)
        }
        Reach::Nats(nats) => {
            // A reach that is NaN must not lose the best token, and an infinite one must not admit masked tokens.
            let least = max - (nats.max(0.0) + slack(max, temperature)) * temperature;
            Candidates::gathered(above(logits, temperature, least.max(f32::MIN)), 0.0)
        }
        Reach::Mass(p) if p < 1.0 => nucleus(logits, temperature, max, f64::from(p)),
        Reach::Probability(p) => likely(logits, temperature, max, f64::from(p)),
        Reach::Deviations(n) => {
            let least = stats.map_or(f32::MIN, |stats| stats.least(n));
            let least = least - slack(max, temperature) * temperature;
            Candidates::gathered(above(logits, temperature, least), 0.0)
        }
        _ => Candidates::gathered(above(logits, temperature, f32::MIN), 0.0),
    };
    candidates.stats = stats;
    Ok(candidates)
}

/// By how many nats the pool reaches further than its first filter. The filter decides; the pool must not lose a
/// token that the filter would keep to rounding.
pub(super) fn slack(max: f32, temperature: f32) -> f32 {
    // The second term covers the rounding of scores, which grows with their size: f32 is exact to 6e-8 of it.
    1e-3 + max.abs() / temperature * 1e-5
}

/// `log Σ exp(logit)` over a row, in nats. −inf logits contribute nothing; at least one logit must be finite.
pub(crate) fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    f64::from(max) + mass(logits, 1.0, max).ln()
}

/// The share of a row's probability mass, at `temperature`, that is not on `candidates`: the mass that filters
/// removed. Tokens masked by `allowed` or by −inf have no mass. Returns an error in the same cases as [`pool`].
///
/// Cost: one pass over the row with an exponential per token, or only a count if every token is a candidate. The
/// absolute error is below 1e-5.
pub(crate) fn mass_outside(
    logits: &[f32],
    temperature: f32,
    allowed: Option<&TokenMask>,
    candidates: &Candidates,
) -> Result<f64, RowError> {
    let masked;
    let logits = match allowed {
        None => logits,
        Some(allowed) => {
            masked = allowed.apply(logits)?;
            &masked
        }
    };
    // Nothing was removed. The difference of the two sums below would only be close to 0.
    if candidates.len() == logits.iter().filter(|&&logit| logit > f32::NEG_INFINITY).count() {
        return Ok(0.0);
    }
    let max = largest(logits)?;
    let total = mass(logits, temperature, max);
    let weight = |token: TokenId| f64::from((logits[token as usize] - max) / temperature).exp();
    let inside: f64 = candidates.as_slice().iter().map(|c| weight(c.token)).sum();
    Ok(((total - inside) / total).clamp(0.0, 1.0))
}

fn is_bad(logit: &f32) -> bool {
    logit.is_nan() || *logit == f32::INFINITY
}

/// An error for the first logit that is NaN or +inf.
pub(crate) fn check_numbers(logits: &[f32]) -> Result<(), RowError> {
    match logits.iter().position(is_bad) {
        Some(token) => Err(RowError::NotANumber { token: token as TokenId, got: logits[token] }),
        None => Ok(()),
    }
}

/// The largest logit of a row. An error if a logit is NaN or +inf, or if all are −inf.
fn largest(logits: &[f32]) -> Result<f32, RowError> {
    const LANES: usize = 16;
    let rest = logits.chunks_exact(LANES).remainder();
    let (max, bad) = vectorised(
        logits,
        #[inline(always)]
        |logits: &[f32]| {
            let mut max = [f32::NEG_INFINITY; LANES];
            let mut bad = [false; LANES];
            for chunk in logits.chunks_exact(LANES) {
                for lane in 0..LANES {
                    // Only noted here, because a branch would prevent vectorisation. The token is looked up
                    // afterwards.
                    bad[lane] |= chunk[lane].is_nan() | (chunk[lane] == f32::INFINITY);
                    max[lane] = if chunk[lane] > max[lane] { chunk[lane] } else { max[lane] };
                }
            }
            (max, bad)
        },
    );
    if rest.iter().any(is_bad) || bad.contains(&true) {
        check_numbers(logits)?;
    }
    let max = max.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        return Err(RowError::AllMasked { vocab: logits.len() });
    }
    Ok(max)
}

/// Every token whose logit is at least `least`, masked tokens excluded.
pub(super) fn above(logits: &[f32], temperature: f32, least: f32) -> Vec<Candidate> {
    /// Tokens are tested in chunks of this size. Most chunks contain no match and are skipped after one test.
    const TOGETHER: usize = 64;
    // Masked tokens are −inf and must fail the comparison, even if the filter's reach is infinite or NaN.
    let least = least.max(f32::MIN);
    vectorised(
        logits,
        #[inline(always)]
        |logits: &[f32]| {
            let mut items = Vec::new();
            for (at, chunk) in logits.chunks(TOGETHER).enumerate() {
                // `|` compares the whole chunk, with vector instructions. `any` would stop at the first match and
                // compare one by one.
                if !chunk.iter().fold(false, |any, &logit| any | (logit >= least)) {
                    continue;
                }
                for (token, &logit) in chunk.iter().enumerate() {
                    if logit >= least {
                        items.push(candidate(at * TOGETHER + token, logit, temperature));
                    }
                }
            }
            items
        },
    )
}

/// The `k` best tokens, at least 1, in any order. Reads each logit once and keeps at most `2k` items.
pub(super) fn best(logits: &[f32], temperature: f32, k: usize) -> Vec<Candidate> {
    let mut items: Vec<Candidate> = Vec::with_capacity(2 * k.min(logits.len()));
    let mut least = f32::MIN;
    for (token, &logit) in logits.iter().enumerate() {
        if logit >= least {
            items.push(candidate(token, logit, temperature));
            // Selecting once per k added items takes constant time per item on average. It also raises `least`, so
            // that most of the remaining tokens are not added at all.
            if items.len() >= 2 * k {
                let (_, worst, _) = items.select_nth_unstable_by_key(k - 1, place);
                // In units of logits again: a later token may still tie after the division.
                least = logits[worst.token as usize];
                items.truncate(k);
            }
        }
    }
    if items.len() > k {
        items.select_nth_unstable_by_key(k - 1, place);
        items.truncate(k);
    }
    items
}

/// The `k` best tokens of a row, best first, ties in ascending order; fewer if the others are masked.
pub(crate) fn best_tokens(logits: &[f32], k: usize) -> Vec<TokenId> {
    let k = k.min(logits.len());
    if k == 0 {
        return Vec::new();
    }
    let mut items = best(logits, 1.0, k);
    sort(&mut items);
    items.into_iter().map(|candidate| candidate.token).collect()
}

/// The best tokens that hold at least `p` of the mass, and possibly more tokens. The mass of the rest is recorded.
fn nucleus(logits: &[f32], temperature: f32, max: f32, p: f64) -> Candidates {
    let total = mass(logits, temperature, max);
    // Exceeds `p` by more than the error of the sums, so that the filter never needs a token that is missing.
    let target = p * total * (1.0 + 1e-5);
    // Small reaches first, so that few tokens are collected and sorted. A larger one costs another pass over the row.
    for nats in [6.0, 12.0, 24.0] {
        let least = (max - nats * temperature).max(f32::MIN);
        let items = above(logits, temperature, least);
        let weight = |c: &Candidate| f64::from(c.logit - max / temperature).exp();
        let seen: f64 = items.iter().map(weight).sum();
        if seen >= target {
            return Candidates::gathered(items, (total - seen).max(0.0));
        }
    }
    Candidates::gathered(above(logits, temperature, f32::MIN), 0.0)
}

/// The tokens with probability at least `p` (always including the best one), and possibly more tokens. The mass of
/// the rest is recorded.
fn likely(logits: &[f32], temperature: f32, max: f32, p: f64) -> Candidates {
    let total = mass(logits, temperature, max);
    // exp((logit − max) / T) / total ≥ p is the same as (max − logit) / T ≤ −ln(p · total). It is below 0 if not even
    // the best token reaches p, and NaN if p is; `max` keeps the best token in both cases.
    let nats = (-(p * total).ln()).max(0.0) as f32 + slack(max, temperature);
    let items = above(logits, temperature, max - nats * temperature);
    let weight = |c: &Candidate| f64::from(c.logit - max / temperature).exp();
    let seen: f64 = items.iter().map(weight).sum();
    Candidates::gathered(items, (total - seen).max(0.0))
}

/// `Σ exp((logit − max) / temperature)`.
fn mass(logits: &[f32], temperature: f32, max: f32) -> f64 {
    // Short sums in f32, in independent lanes so that they vectorise; their total in f64.
    const LANES: usize = 16;
    vectorised(
        logits,
        #[inline(always)]
        |logits: &[f32]| {
            let mut total = 0.0f64;
            // A lane sums 16 terms of a chunk, so the rounding of f32 is about 1e-6 of the sum, well within the 1e-5
            // that `nucleus` and `mass_outside` allow for.
            for chunk in logits.chunks(256) {
                let mut sums = [0.0f32; LANES];
                let parts = chunk.chunks_exact(LANES);
                let mut rest = 0.0;
                for logit in parts.remainder() {
                    rest += exp_of_negative((logit - max) / temperature);
                }
                for part in parts {
                    for lane in 0..LANES {
                        sums[lane] += exp_of_negative((part[lane] - max) / temperature);
                    }
                }
                total += f64::from(sums.iter().sum::<f32>() + rest);
            }
            total
        },
    )
}

fn candidate(token: usize, logit: f32, temperature: f32) -> Candidate {
    // A logit that underflows to −inf becomes the smallest finite one instead.
    let logit = (logit / temperature).max(f32::MIN);
    Candidate { token: token as TokenId, logit, reference: logit, expected: 0.0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        candidates::{
            CandidateFilter, EpsilonCutoff, EtaCutoff, MinP, RowContext, TopK, TopNSigma, TopP,
            Typical, Xtc,
        },
        draw::DrawKey,
        id::CompletionId,
    };

    #[test]
    fn log_sum_exp_by_hand() {
        let row = [1.0f32.ln(), 2.0f32.ln(), f32::NEG_INFINITY, 5.0f32.ln()];
        assert!((log_sum_exp(&row) - 8.0f64.ln()).abs() < 1e-6);
        assert!((log_sum_exp(&[1000.0, 1000.0]) - (1000.0 + 2.0f64.ln())).abs() < 1e-6);
    }

    #[test]
    fn best_tokens_by_hand() {
        let row = [1.0, 3.0, f32::NEG_INFINITY, 3.0, 2.0];
        let best = [1, 3, 4, 0];
        for k in 0..7 {
            assert_eq!(best_tokens(&row, k), best[..k.min(4)], "{k}");
        }
    }

    #[test]
    fn mass_outside_by_hand() {
        // Masses 1, 2, 0, 5 at temperature 1, and 1, 4, 0, 25 at temperature 1/2.
        let row = [1.0f32.ln(), 2.0f32.ln(), f32::NEG_INFINITY, 5.0f32.ln()];
        let mut best = Candidates::from_logits(&row).unwrap();
        assert_eq!(mass_outside(&row, 1.0, None, &best), Ok(0.0), "nothing was removed");
        best.truncate(1);
        let close = |got: Result<f64, RowError>, expected: f64| {
            assert!((got.clone().unwrap() - expected).abs() < 1e-6, "{got:?}");
        };
        close(mass_outside(&row, 1.0, None, &best), 3.0 / 8.0);
        close(mass_outside(&row, 0.5, None, &best), 5.0 / 30.0);
        let mut allowed = TokenMask::all(4);
        allowed.set(1, false);
        close(mass_outside(&row, 1.0, Some(&allowed), &best), 1.0 / 6.0);
    }

    #[test]
    fn the_first_bad_logit_is_named_wherever_it_stands() {
        for len in [1, 5, 16, 17, 100] {
            for at in 0..len {
                let mut row = vec![0.5; len];
                row[at] = f32::NAN;
                let error = pool(&row, 1.0, None, Reach::Everything, false).unwrap_err();
                assert!(
                    matches!(error, RowError::NotANumber { token, .. } if token as usize == at)
                );
                row[at] = f32::INFINITY;
                assert!(pool(&row, 1.0, None, Reach::Best(1), false).is_err());
                let mut allowed = TokenMask::all(len);
                allowed.set(at as TokenId, false);
                let rest = pool(&row, 1.0, Some(&allowed), Reach::Everything, true);
                assert_eq!(rest.is_ok(), len > 1, "a masked token is not looked at");
            }
        }
    }

    #[test]
    fn a_row_of_nothing_but_infinities_is_not_a_number() {
        let error = pool(&[f32::INFINITY; 16], 1.0, None, Reach::Everything, false).unwrap_err();
        assert_eq!(error, RowError::NotANumber { token: 0, got: f32::INFINITY });
    }

    /// The number of tokens that are collected. With fewer, the filter would miss tokens; more only cost time.
    fn collected(row: &[f32], temperature: f32, reach: Reach) -> usize {
        pool(row, temperature, None, reach, false).unwrap().len()
    }

    #[test]
    fn the_pool_reaches_as_far_as_its_filter() {
        let nats = [0.0f32, 5.0, 11.0, 23.0, 40.0];
        for (best, temperature) in [(0.0, 1.0), (0.0, 2.0), (100.0, 0.5), (-30.0, 3.0)] {
            let row = nats.map(|nats| best - nats * temperature);
            for (reach, expected) in [
                (Reach::Everything, 5),
                (Reach::Best(2), 2),
                (Reach::Best(3), 3),
                (Reach::Nats(10.0), 2),
                (Reach::Nats(12.0), 3),
                // A mass is looked for within 6, 12 and 24 nats. Beyond 6 nats are 1.7e-5 of it.
                (Reach::Mass(0.9), 2),
                (Reach::Mass(0.999_98), 3),
                // exp(−5) is 0.0067, exp(−11) is 1.7e-5.
                (Reach::Probability(1e-3), 2),
                (Reach::Probability(1e-5), 3),
                // σ is 14.33 nats.
                (Reach::Deviations(0.5), 2),
                (Reach::Deviations(1.0), 3),
            ] {
                assert_eq!(collected(&row, temperature, reach), expected, "{reach:?} of {row:?}");
            }
        }
        // Four tokens of 0.229 and one of 0.084.
        assert_eq!(collected(&[0.0, 0.0, 0.0, 0.0, -1.0], 1.0, Reach::Probability(0.2)), 4);
        // One token of 0.399, and 0.601 on a thousand that are further than 6 nats below it.
        let mut flat = vec![-6.5; 1001];
        flat[7] = 0.0;
        assert_eq!(collected(&flat, 1.0, Reach::Mass(0.3)), 1);
        assert_eq!(collected(&flat, 1.0, Reach::Mass(0.9)), 1001);
    }

    /// The token that the filter decides about last must be there also if the sums are rounded the other way.
    #[test]
    fn a_mass_on_the_border_is_not_missed() {
        // The first token has 0.998499 of the mass, the second is beyond the first 6 nats.
        let context = RowContext::new(CompletionId::new(0, 0), 0, DrawKey::new(0, &[], 0).at(0));
        for (p, expected) in [(0.998_49, 1), (0.998_503, 2)] {
            let filter = TopP { p };
            let mut candidates = pool(&[0.0, -6.5], 1.0, None, filter.reach(), false).unwrap();
            filter.filter(&context, &mut candidates);
            assert_eq!(candidates.len(), expected, "{p}");
        }
    }

    #[test]
    fn the_slack_is_a_thousandth_of_a_nat_and_what_scores_are_rounded_by() {
        for (max, temperature, expected) in
            [(0.0, 1.0, 1e-3), (1e6, 100.0, 0.101), (-1e4, 1.0, 0.101), (500.0, 0.5, 0.011)]
        {
            let got = slack(max, temperature);
            assert!((got - expected).abs() < 1e-6, "{got} for {max} at {temperature}");
        }
        // At a temperature of 100, 10.0005 and 10.002 nats below the best, of which the pool reaches 10.001.
        let row = [0.0, -1000.05, -1000.2];
        let total = 1.0 + 2.0 * (-10.0f32).exp();
        let deviation = RowStats::of(&row, 0.0, 100.0).deviation;
        for reach in [
            Reach::Nats(10.0),
            Reach::Probability((-10.0f32).exp() / total),
            Reach::Deviations(1000.0 / deviation),
        ] {
            assert_eq!(collected(&row, 100.0, reach), 2, "{reach:?}");
        }
    }

    #[test]
    fn nothing_is_outside_if_all_but_masked_tokens_are_candidates() {
        // The sums of these rows are rounded differently in f32 and f64.
        for scale in [0.3, 0.7, 1.1, 1.9] {
            let mut row: Vec<f32> = (0..100).map(|i| (i as f32 * scale).sin()).collect();
            row[3] = f32::NEG_INFINITY;
            let all = Candidates::from_logits(&row).unwrap();
            assert_eq!(mass_outside(&row, 1.0, None, &all), Ok(0.0), "{scale}");
        }
    }

    #[test]
    fn no_reach_empties_the_candidates_or_lets_masked_tokens_in() {
        let row = [1.0, f32::NEG_INFINITY, 3.0, 2.0];
        let tokens = |reach| -> Vec<TokenId> {
            let pool = pool(&row, 1.0, None, reach, false).unwrap();
            pool.as_slice().iter().map(|c| c.token).collect()
        };
        for nats in [f32::NAN, -5.0, f32::NEG_INFINITY, 0.0] {
            assert_eq!(tokens(Reach::Nats(nats)), [2], "{nats}");
        }
        assert_eq!(tokens(Reach::Nats(f32::INFINITY)), [2, 3, 0]);
        for k in [usize::MAX, 1 << 63, 4] {
            assert_eq!(tokens(Reach::Best(k)), [2, 3, 0]);
        }
        assert_eq!(tokens(Reach::Best(0)), [2]);
        for p in [f32::NAN, 1.0, 7.0] {
            assert_eq!(tokens(Reach::Mass(p)), [2, 3, 0], "{p}");
        }
        assert_eq!(tokens(Reach::Mass(-1.0))[0], 2);
    }

    #[test]
    fn scores_are_finite_or_the_error_names_the_token() {
        let huge = pool(&[0.0, 3.0e38], 1e-4, None, Reach::Everything, false).unwrap_err();
        assert_eq!(huge, RowError::Score { token: 1, got: f32::INFINITY });
        let deep = pool(&[0.0, -3.0e38], 1e-4, None, Reach::Everything, false).unwrap();
        assert!(deep.as_slice().iter().all(|c| c.logit.is_finite()));
    }

    /// Rows with ties, masked tokens and extreme values.
    fn row() -> impl Strategy<Value = Vec<f32>> {
        let logit = prop_oneof![
            4 => (-8i32..8).prop_map(|i| i as f32 * 0.5),
            4 => -30.0f32..30.0,
            1 => Just(f32::NEG_INFINITY),
            1 => Just(-0.0f32),
        ];
        prop::collection::vec(logit, 1..120)
            .prop_filter("one token is not masked", |row| row.iter().any(|l| l.is_finite()))
    }

    proptest! {
        #[test]
        fn a_filter_on_its_pool_is_the_filter_on_everything(
            row in row(), k in 1usize..130, p in 0.01f32..1.0, temperature in 0.3f32..3.0,
            forbidden in prop::collection::vec(0u32..120, 0..5),
        ) {
            let mut allowed = TokenMask::all(row.len());
            for &token in &forbidden {
                allowed.set(token, false);
            }
            let context = RowContext::new(CompletionId::new(0, 0), 0, DrawKey::new(0, &[], 0).at(0));
            let filters: [&dyn CandidateFilter; 8] = [
                &TopK { k },
                &TopP { p },
                &MinP { p },
                &TopNSigma { n: p * 3.0 },
                &Typical { mass: p },
                &EpsilonCutoff { epsilon: p * 0.1 },
                &EtaCutoff { epsilon: p * 0.1 },
                &Xtc { threshold: p * 0.1, probability: 1.0 },
            ];
            for filter in filters {
                let asks = filter.uses_row_stats();
                let narrow = pool(&row, temperature, Some(&allowed), filter.reach(), asks);
                let wide = pool(&row, temperature, Some(&allowed), Reach::Everything, asks);
                let (Ok(mut narrow), Ok(mut wide)) = (narrow, wide) else {
                    continue;
                };
                prop_assert!(narrow.len() <= wide.len());
                filter.filter(&context, &mut narrow);
                filter.filter(&context, &mut wide);
                prop_assert_eq!(narrow.as_slice(), wide.as_slice(), "{:?}", filter);
            }
        }
    }
}
