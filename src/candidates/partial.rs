//! Collecting the candidates of a row of which the host has only the best logits.

use super::{
    Candidates, Reach, TokenMask,
    pool::{above, best, slack},
};
use crate::id::TokenId;

/// A row of logits of which the host knows the best ones, possibly some others, and the mass of all.
///
/// No unknown logit exceeds `bound`. This decides whether the row's first filter can have every token that it could
/// keep, or needs the whole row.
#[derive(Clone, Debug)]
pub(crate) struct PartialRow {
    vocab: usize,
    /// The known logits, in ascending token order.
    known: Vec<(TokenId, f32)>,
    /// The smallest of the best logits.
    bound: f32,
    /// The largest logit of the row.
    max: f32,
    masses: Masses,
}

/// `Σ exp((logit − max) / T)` over a row, as a device has summed it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Masses {
    /// At the temperature that divides the row's logits before its filters.
    pub(crate) divided: f32,
    /// At temperature 1, if the row's log-probabilities were asked for.
    pub(crate) at_1: Option<f32>,
}

/// The relative error of a mass that a device has summed in `f32`. Decisions that are closer than this need the whole
/// row.
const MASS_ERROR: f64 = 1e-5;

impl PartialRow {
    /// A row whose best logits are `best`, with `others` known in addition. `None` if these are not the best logits of
    /// a row of numbers: one is not finite, a token is unknown or occurs twice, or a mass is not a number.
    ///
    /// A device returns such a thing for a row with fewer finite logits than were asked for, or with a logit that is
    /// NaN or +inf, which makes the mass NaN.
    pub(crate) fn new(
        vocab: usize,
        best: impl Iterator<Item = (i64, f32)>,
        others: impl Iterator<Item = (TokenId, f32)>,
        masses: Masses,
    ) -> Option<Self> {
        let mut known = Vec::with_capacity(best.size_hint().0);
        let (mut max, mut bound) = (f32::MIN, f32::MAX);
        for (token, logit) in best {
            let token = TokenId::try_from(token).ok().filter(|&token| (token as usize) < vocab)?;
            // A kernel that searches for the largest numbers may begin with the smallest one.
            if !logit.is_finite() || logit == f32::MIN {
                return None;
            }
            (max, bound) = (max.max(logit), bound.min(logit));
            known.push((token, logit));
        }
        known.sort_unstable_by_key(|&(token, _)| token);
        if known.is_empty() || known.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return None;
        }
        // The largest logit alone has mass 1.
        let is_mass = |mass: f32| mass.is_finite() && mass > 0.5;
        if !is_mass(masses.divided) || !masses.at_1.is_none_or(is_mass) {
            return None;
        }
        known.extend(others);
        known.sort_by_key(|&(token, _)| token);
        known.dedup_by_key(|&mut (token, _)| token);
        Some(Self { vocab, known, bound, max, masses })
    }

    /// Size of the vocabulary.
    pub(crate) fn vocab(&self) -> usize {
        self.vocab
    }

    /// The logit of a token, if it is known.
    pub(crate) fn logit(&self, token: TokenId) -> Option<f32> {
        let found = self.known.binary_search_by_key(&token, |&(known, _)| known);
        found.ok().map(|at| self.known[at].1)
    }

    /// `log Σ exp(logit)` over the row, in nats, and the `k` best tokens, best first, ties in ascending order. `None`
    /// if the mass was not asked for or unknown tokens could be among the best.
    pub(crate) fn log_sum_and_best(&self, k: usize) -> Option<(f64, Vec<TokenId>)> {
        let log_sum = f64::from(self.max) + f64::from(self.masses.at_1?).ln();
        let mut certain: Vec<_> =
            self.known.iter().filter(|&&(_, logit)| logit > self.bound).collect();
        if certain.len() < k {
            return None;
        }
        certain.sort_by(|a, b| b.1.total_cmp(&a.1));
        Some((log_sum, certain.into_iter().take(k).map(|&(token, _)| token).collect()))
    }

    /// The share of the mass that is not on `candidates`, which were collected from this row at the temperature of its
    /// mass. `None` if the mass is not known well enough.
    pub(crate) fn mass_outside(&self, temperature: f32, candidates: &Candidates) -> Option<f64> {
        let raw = candidates.adjustments().iter();
        let deltas: Vec<_> = raw.map(|&(token, delta)| (token, delta * temperature)).collect();
        let logits: Vec<f32> = self.adjusted(&deltas, None).collect();
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total = self.total(&logits, &deltas, temperature, max, None)?;
        let inside = candidates.as_slice().iter().map(|candidate| {
            let at = self.known.binary_search_by_key(&candidate.token, |&(token, _)| token);
            at.map_or(0.0, |at| f64::from((logits[at] - max) / temperature).exp())
        });
        Some(((total - inside.sum::<f64>()) / total).clamp(0.0, 1.0))
    }

    /// [`pool`](super::pool) for this row, with `deltas` added to the logits of some tokens, in ascending token order.
    /// `None` if an unknown token could belong to the pool, or if the row has an error; the whole row then decides.
    ///
    /// The pool may be smaller than that of the whole row, by tokens that the first filter is certain to drop.
    pub(crate) fn pool(
        &self,
        deltas: &[(TokenId, f32)],
        temperature: f32,
        allowed: Option<&TokenMask>,
        reach: Reach,
    ) -> Option<Candidates> {
        if allowed.is_some_and(|allowed| allowed.vocab_size() != self.vocab) {
            return None;
        }
        let logits: Vec<f32> = self.adjusted(deltas, allowed).collect();
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if max <= self.bound || !(max / temperature).is_finite() {
            return None;
        }
        let (items, unseen) = match reach {
            Reach::Best(k) => {
                let k = k.clamp(1, self.vocab);
                let certain = logits.iter().filter(|&&logit| logit > self.bound).count();
                (certain >= k).then(|| (best(&logits, temperature, k), 0.0))?
            }
            Reach::Nats(nats) => {
                let least = max - (nats.max(0.0) + slack(max, temperature)) * temperature;
                (least > self.bound).then(|| (above(&logits, temperature, least), 0.0))?
            }
            Reach::Mass(p) if p < 1.0 => {
                let total = self.total(&logits, deltas, temperature, max, allowed)?;
                self.nucleus(&logits, temperature, max, total, p.into())?
            }
            Reach::Probability(p) => {
                let total = self.total(&logits, deltas, temperature, max, allowed)?;
                self.likely(&logits, temperature, max, total, p.into())?
            }
            _ => return None,
        };
        let named = items.into_iter().map(|mut item| {
            item.token = self.known[item.token as usize].0;
            item
        });
        Some(Candidates::gathered(named.collect(), unseen))
    }

    /// The known logits with `deltas` added and without masked tokens, in ascending token order.
    fn adjusted<'a>(
        &'a self,
        deltas: &'a [(TokenId, f32)],
        allowed: Option<&'a TokenMask>,
    ) -> impl Iterator<Item = f32> + 'a {
        let mut deltas = deltas.iter().peekable();
        self.known.iter().map(move |&(token, logit)| {
            let delta = deltas.next_if(|delta| delta.0 == token).map_or(0.0, |delta| delta.1);
            let is_allowed = allowed.is_none_or(|allowed| allowed.allows(token));
            if is_allowed { logit + delta } else { f32::NEG_INFINITY }
        })
    }

    /// `Σ exp((logit − max) / T)` over the whole row with `deltas`, where `max` is the largest logit with them. `None`
    /// if it is not known well enough.
    fn total(
        &self,
        adjusted: &[f32],
        deltas: &[(TokenId, f32)],
        temperature: f32,
        max: f32,
        allowed: Option<&TokenMask>,
    ) -> Option<f64> {
        if allowed.is_some() {
            return None; // the mass of the tokens that are masked is not known
        }
        let weight = |logit: f32, max: f32| f64::from((logit - max) / temperature).exp();
        let raw = f64::from(self.masses.divided);
        if deltas.is_empty() {
            return Some(raw);
        }
        let changes = self.known.iter().zip(adjusted).filter(|((_, raw), new)| raw != *new);
        let changes: f64 =
            changes.map(|((_, old), new)| weight(*new, self.max) - weight(*old, self.max)).sum();
        // A difference of almost equal masses has lost the digits that the filters need.
        let total = raw + changes;
        (total > 0.1 * raw).then(|| total * weight(self.max, max))
    }

    /// Every token that is better than all unknown ones, with the mass of the rest, if they hold at least `p` of the
    /// mass.
    fn nucleus(
        &self,
        logits: &[f32],
        temperature: f32,
        max: f32,
        total: f64,
        p: f64,
    ) -> Option<(Vec<super::Candidate>, f64)> {
        let mut items = above(logits, temperature, self.bound.next_up());
        super::order::sort(&mut items);
        let (mut seen, mut is_clear) = (0.0, true);
        for item in &items {
            seen += f64::from(item.logit - max / temperature).exp();
            is_clear &= (seen / total - p).abs() > MASS_ERROR;
        }
        (is_clear && seen > p * total).then(|| (items, (total - seen).max(0.0)))
    }

    /// Every token that is better than all unknown ones, with the mass of the rest, if all tokens with probability `p`
    /// are among them.
    fn likely(
        &self,
        logits: &[f32],
        temperature: f32,
        max: f32,
        total: f64,
        p: f64,
    ) -> Option<(Vec<super::Candidate>, f64)> {
        let probability = |logit: f32| f64::from((logit - max) / temperature).exp() / total;
        let items = above(logits, temperature, self.bound.next_up());
        let is_clear = |logit: f32| (probability(logit) / p - 1.0).abs() > MASS_ERROR;
        let is_certain = probability(self.bound) < p * (1.0 - MASS_ERROR);
        let seen: f64 =
            items.iter().map(|item| f64::from(item.logit - max / temperature).exp()).sum();
        (is_certain && logits.iter().all(|&logit| is_clear(logit)))
            .then(|| (items, (total - seen).max(0.0)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        candidates::{
            CandidateFilter, EpsilonCutoff, MinP, RowContext, TopK, TopNSigma, TopP, Typical,
            best_tokens, log_sum_exp, pool,
        },
        draw::DrawKey,
        id::CompletionId,
    };

    /// What a device returns of a row.
    fn partial(row: &[f32], k: usize, temperature: f32, others: &[TokenId]) -> Option<PartialRow> {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mass = |t: f32| row.iter().map(|l| ((l - max) / t).exp()).sum();
        let best = best_tokens(row, k).into_iter();
        let masses = Masses { divided: mass(temperature), at_1: Some(mass(1.0)) };
        PartialRow::new(
            row.len(),
            best.map(|token| (token.into(), row[token as usize])),
            others.iter().map(|&token| (token, row[token as usize])),
            masses,
        )
    }

    fn context() -> RowContext<'static> {
        RowContext::new(CompletionId::new(0, 0), 0, DrawKey::new(0, &[], 0).at(0))
    }

    /// Tokens with descending logits, one nat apart.
    const STAIRS: [f32; 6] = [0.0, -1.0, -2.0, -3.0, -4.0, -5.0];

    #[test]
    fn the_pool_is_refused_where_an_unknown_token_could_belong_to_it() {
        let of = |k: usize, deltas: &[(TokenId, f32)], reach| {
            let others: Vec<TokenId> = deltas.iter().map(|&(token, _)| token).collect();
            let row = partial(&STAIRS, k, 1.0, &others).unwrap();
            let pooled = row.pool(deltas, 1.0, None, reach);
            pooled.map(|pooled| pooled.as_slice().iter().map(|c| c.token).collect::<Vec<_>>())
        };
        // The third best is the bound: a fourth could equal it.
        assert_eq!(of(3, &[], Reach::Nats(1.5)), Some(vec![0, 1]));
        assert_eq!(of(3, &[], Reach::Nats(2.0)), None);
        assert_eq!(of(3, &[], Reach::Best(2)), Some(vec![0, 1]));
        assert_eq!(of(3, &[], Reach::Best(3)), None);
        // e⁰ and e⁻¹ are .864 of the mass.
        assert_eq!(of(3, &[], Reach::Mass(0.85)), Some(vec![0, 1]));
        assert_eq!(of(3, &[], Reach::Mass(0.87)), None);
        assert_eq!(of(3, &[], Reach::Probability(0.1)), Some(vec![0, 1]));
        assert_eq!(of(3, &[], Reach::Probability(0.08)), None);
        for reach in [Reach::Everything, Reach::Deviations(0.1), Reach::Mass(1.0)] {
            assert_eq!(of(5, &[], reach), None, "{reach:?}");
        }
        // A bias brings a token in, a penalty lets one fall below the bound or the best below unknown ones.
        assert_eq!(of(3, &[(5, 6.0)], Reach::Nats(2.5)), Some(vec![5, 0, 1]));
        assert_eq!(of(3, &[(1, -2.0)], Reach::Nats(1.5)), Some(vec![0]));
        assert_eq!(of(3, &[(0, -9.0), (1, -9.0)], Reach::Nats(1.0)), None);
        // Without the best, little mass is left, and its digits are lost.
        assert_eq!(of(5, &[(0, -9.0)], Reach::Mass(0.5)), Some(vec![1, 2, 3]));
        assert_eq!(of(5, &[(0, -9.0), (1, -9.0), (2, -9.0)], Reach::Mass(0.5)), None);
    }

    #[test]
    fn a_boundary_that_rounding_could_move_needs_the_whole_row() {
        let row = partial(&STAIRS, 5, 1.0, &[]).unwrap();
        let total: f64 = STAIRS.iter().map(|&l| f64::from(l).exp()).sum();
        let (one, two) = ((1.0 / total) as f32, ((1.0 + (-1.0f64).exp()) / total) as f32);
        for p in [one, two, two * (1.0 + 3e-6)] {
            assert!(row.pool(&[], 1.0, None, Reach::Mass(p)).is_none(), "{p}");
        }
        assert!(row.pool(&[], 1.0, None, Reach::Mass(two * (1.0 + 3e-5))).is_some());
        assert!(row.pool(&[], 1.0, None, Reach::Probability(one * (1.0 + 3e-6))).is_none());
        assert!(row.pool(&[], 1.0, None, Reach::Probability(one * (1.0 + 3e-5))).is_some());
    }

    #[test]
    fn numbers_that_are_not_a_rows_best_are_refused() {
        let of = |best: &[(i64, f32)], mass| {
            let masses = Masses { divided: mass, at_1: None };
            PartialRow::new(4, best.iter().copied(), std::iter::empty(), masses).is_some()
        };
        assert!(of(&[(3, 1.0), (0, 0.5)], 1.5));
        for (best, mass) in [
            (&[(3, 1.0), (0, f32::MIN)][..], 1.5),
            (&[(3, 1.0), (0, f32::NEG_INFINITY)], 1.5),
            (&[(3, f32::NAN), (0, 0.5)], 1.5),
            (&[(3, f32::INFINITY)], 1.5),
            (&[(3, 1.0), (3, 1.0)], 1.5),
            (&[(4, 1.0)], 1.5),
            (&[(-1, 1.0)], 1.5),
            (&[], 1.5),
            (&[(3, 1.0), (0, 0.5)], f32::NAN),
            (&[(3, 1.0), (0, 0.5)], f32::INFINITY),
            (&[(3, 1.0), (0, 0.5)], 0.0),
        ] {
            assert!(!of(best, mass), "{best:?} {mass}");
        }
    }

    #[test]
    fn log_probabilities_need_tokens_above_the_bound() {
        let row = partial(&STAIRS, 3, 0.5, &[]).unwrap();
        let (log_sum, best) = row.log_sum_and_best(2).unwrap();
        assert_eq!(best, [0, 1]);
        assert!((log_sum - log_sum_exp(&STAIRS)).abs() < 1e-6);
        assert!(row.log_sum_and_best(3).is_none());
    }

    /// Rows with ties and masked tokens.
    fn row() -> impl Strategy<Value = Vec<f32>> {
        let logit = prop_oneof![
            4 => (-8i32..8).prop_map(|i| i as f32 * 0.5),
            8 => -30.0f32..30.0,
            1 => Just(f32::NEG_INFINITY),
        ];
        prop::collection::vec(logit, 20..200)
    }

    proptest! {
        /// Whenever the best logits suffice, the filter keeps what it keeps of the whole row.
        #[test]
        fn a_filter_on_the_best_is_the_filter_on_the_row(
            row in row(), k in 1usize..40, p in 0.01f32..1.0, temperature in 0.3f32..3.0,
            forbidden in prop::collection::vec(0u32..200, 0..5), has_mask: bool,
            deltas in prop::collection::btree_map(0u32..20, -9.0f32..9.0, 0..4),
        ) {
            let deltas: Vec<(TokenId, f32)> =
                deltas.into_iter().filter(|&(token, _)| row[token as usize].is_finite()).collect();
            let others: Vec<TokenId> = deltas.iter().map(|&(token, _)| token).collect();
            let Some(best) = partial(&row, k, temperature, &others) else {
                let finite = row.iter().filter(|logit| logit.is_finite()).count();
                prop_assert!(finite == 0);
                return Ok(());
            };
            let mut allowed = TokenMask::all(row.len());
            forbidden.iter().for_each(|&token| allowed.set(token, false));
            let allowed = has_mask.then_some(&allowed);
            let mut adjusted = row.clone();
            deltas.iter().for_each(|&(token, delta)| adjusted[token as usize] += delta);
            let filters: [&dyn CandidateFilter; 6] = [
                &TopK { k: k / 2 }, &TopP { p }, &MinP { p }, &EpsilonCutoff { epsilon: p * 0.1 },
                &TopNSigma { n: p }, &Typical { mass: p },
            ];
            for filter in filters {
                let pooled = best.pool(&deltas, temperature, allowed, filter.reach());
                let Some(mut pooled) = pooled else {
                    continue;
                };
                let whole = pool(&adjusted, temperature, allowed, filter.reach(), true);
                let mut whole = whole.unwrap();
                filter.filter(&context(), &mut pooled);
                filter.filter(&context(), &mut whole);
                prop_assert_eq!(pooled.as_slice(), whole.as_slice(), "{:?}", filter);
            }
        }
    }
}
