//! The control for the learned direction.

use esamp::{
    errors::ConfigError,
    filters::{Candidates, RowContext},
    reweighters::{Expects, NoveltyReweighter},
};
use serde::{Deserialize, Serialize};

use super::{check_beta, direction, distiller_if};

/// With fewer candidates nothing is left after removing the constant and the reference.
const LEAST_CANDIDATES: usize = 3;

/// What a [`MatchedRandom`] control is matched to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Matched {
    /// ESamp's `β·δ`: the same slope on the reference, the same length.
    #[default]
    Extrapolate,
    /// The `β·δ⊥` of [`Orthogonal`](esamp::reweighters::Orthogonal): no slope, the same length. The same rows are
    /// left unchanged.
    Orthogonal,
}

/// A control: a perturbation of the same size and with the same sharpening as ESamp's, in a random direction.
///
/// With `z` and `δ` as in [`Orthogonal`](esamp::reweighters::Orthogonal), `δ = a·z + δ⊥`. The new score is `logit +
/// β·(a·z + ‖δ⊥‖·ĝ)`, where `ĝ` is a random direction of length 1 that is orthogonal to `z` and to constants: one
/// normal number per token, projected. The numbers come from the row's [`Draw`](esamp::filters::Draw), stream
/// `"matched random"` ([`Draw::apart`](esamp::filters::Draw::apart)). The slope on the reference and the length over
/// the row's candidates equal ESamp's, so what ESamp gains over this control comes from what its distiller has
/// learned. The control is from the independent study that found orthogonal novelty (see
/// [`Orthogonal`](esamp::reweighters::Orthogonal)). There, ESamp's gain in diversity at equal perplexity is
/// significant and this control's is not.
///
/// Gaussian noise of the same length in the hidden state ([`GaussianError`](super::GaussianError)) is not a matched
/// control: after the head it moves logits 1.8 times as far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MatchedRandom {
    /// The strength β of the run that this is a control for, at least 0; 0 gives plain sampling.
    pub beta: f32,
    /// Which run that is.
    pub matched: Matched,
}

impl NoveltyReweighter for MatchedRandom {
    fn reweight(&self, row: &RowContext<'_>, candidates: &mut Candidates) {
        if self.beta == 0.0 {
            return;
        }
        let reference = direction::reference(candidates);
        let mut novelty = direction::perturbation(candidates);
        let slope = direction::take_out(&mut novelty, &reference);
        let few = candidates.len() < LEAST_CANDIDATES;
        if self.matched == Matched::Orthogonal && (few || slope.is_none()) {
            return;
        }
        let mut change = direction::random(row, "matched random", candidates);
        direction::take_out(&mut change, &reference);
        // The number of directions left after removing constants, and the reference if it has one.
        let left = candidates.len().saturating_sub(1 + usize::from(slope.is_some()));
        let length = direction::norm(&change);
        let scale = if left > 0 && length > 0.0 { direction::norm(&novelty) / length } else { 0.0 };
        let slope = match self.matched {
            Matched::Extrapolate => slope.unwrap_or(0.0),
            Matched::Orthogonal => 0.0,
        };
        for (change, reference) in change.iter_mut().zip(&reference) {
            *change = scale * *change + slope * reference;
        }
        direction::add(candidates, f64::from(self.beta), &change);
    }

    fn expects(&self) -> Expects {
        distiller_if(self.beta)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        check_beta(self.beta)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use std::sync::Arc;

    use esamp::reweighters::{Extrapolate, Orthogonal};

    use super::*;
    use crate::{
        controls::{direction::centred, tests::*},
        metrics::dot,
    };

    /// The change of the scores minus its mean, and the same for the reference.
    fn change(reweighter: Arc<dyn NoveltyReweighter>, position: u64) -> Vec<f64> {
        let new = scores(reweighter, position, &REFERENCE, &EXPECTED);
        let change = new.iter().zip(&REFERENCE).map(|(n, r)| f64::from(*n) - f64::from(*r));
        centred(change)
    }

    #[test]
    fn slope_and_length_are_those_of_its_twin_and_the_rest_is_random() {
        let z = centred(REFERENCE.iter().map(|&r| f64::from(r)));
        let twins: [(Arc<dyn NoveltyReweighter>, Matched); 2] = [
            (Arc::new(Extrapolate { beta: 0.5 }), Matched::Extrapolate),
            (Arc::new(Orthogonal { beta: 0.5 }), Matched::Orthogonal),
        ];
        for (twin, matched) in twins {
            let control = Arc::new(MatchedRandom { beta: 0.5, matched });
            let wanted = change(twin, 0);
            let slope = dot(&wanted, &z) / dot(&z, &z);
            let residual: Vec<f64> = wanted.iter().zip(&z).map(|(w, z)| w - slope * z).collect();
            let (mut mean, positions) = (0.0, 400);
            for position in 0..positions {
                let got = change(control.clone(), position);
                assert!((dot(&got, &z) / dot(&z, &z) - slope).abs() < 1e-6, "{matched:?}");
                assert!((dot(&got, &got) - dot(&wanted, &wanted)).abs() < 1e-5, "{matched:?}");
                let rest: Vec<f64> = got.iter().zip(&z).map(|(g, z)| g - slope * z).collect();
                mean += dot(&rest, &residual) / dot(&residual, &residual) / positions as f64;
            }
            // A cosine in the 4 remaining directions has standard deviation 1/2; its mean over 400 positions has
            // 0.025.
            assert!(mean.abs() < 0.11, "{matched:?}: {mean}");
        }
    }

    #[test]
    fn two_candidates_have_a_slope_and_nothing_else() {
        let (reference, expected) = ([1.0, 0.0], [0.5, 2.0]);
        let plain = Arc::new(MatchedRandom { beta: 0.5, matched: Matched::Extrapolate });
        // δ = (0.5, −2), centred (1.25, −1.25), and z = (0.5, −0.5): slope 2.5. new = ref + 0.5·2.5·z.
        assert_near(&scores(plain, 0, &reference, &expected), &[1.625, -0.625], 1e-6);
        let orthogonal = Arc::new(MatchedRandom { beta: 0.5, matched: Matched::Orthogonal });
        assert_eq!(scores(orthogonal, 0, &reference, &expected), reference);
    }

    #[test]
    fn a_reference_without_variance_has_no_slope_to_keep() {
        let control = Arc::new(MatchedRandom { beta: 0.5, matched: Matched::Extrapolate });
        let expected = [1.0, -1.0, 3.0, 0.0];
        let got = scores(control, 0, &[1.0; 4], &expected);
        let change = centred(got.iter().map(|&g| f64::from(g)));
        let wanted = centred(expected.iter().map(|&e| 0.5 * f64::from(e)));
        assert!((dot(&change, &change) - dot(&wanted, &wanted)).abs() < 1e-5);
    }
}
