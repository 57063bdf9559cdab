//! Orthogonal novelty: ESamp without its sharpening component.

use super::{Expects, NoveltyReweighter, check_beta, distiller_if};
use crate::{
    candidates::{Candidates, RowContext},
    error::ConfigError,
    numeric::{centred, slope},
};

/// Orthogonal novelty: `logit + β·δ⊥`.
///
/// With `z` the reference logits and `δ = logit − expected`, both centred over the row's candidates, `δ⊥ = δ − z·⟨δ,
/// z⟩ / ⟨z, z⟩` is the part of the novelty that the reference does not explain. The `β·δ` of [`Extrapolate`] has a
/// slope of 0.4 to 0.6 on `z` while a distiller learns, so it amounts to a temperature of `1 / (1 + β·slope)` plus
/// `β·δ⊥`. Removing the slope leaves only the new direction: adding a constant or a multiple of the reference to the
/// expected logits changes nothing.
///
/// This method is not in the ESamp paper. It comes from an independent study of one small model (SmolLM2-135M, one
/// seed, its own perplexity as the quality measure). There, β 1 raised the diversity (Vendi score) of stories by 1.13
/// [0.71, 1.61] at equal perplexity, while random directions of the same length lowered it by 0.34. No gain was found
/// on tasks with one right answer.
///
/// Rows with fewer than 3 candidates, and rows whose reference logits are all equal, are unchanged, because no
/// direction is left. The slope is computed over the candidates that the filters kept. Without a filter that is the
/// whole vocabulary, and the whole row of expected logits is computed. The scores agree to `f32` rounding regardless
/// of the slope of `δ`.
///
/// [`Extrapolate`]: super::Extrapolate
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Orthogonal {
    /// The strength β, at least 0. With 0 this is plain sampling. Usual: 1.
    pub beta: f32,
}

impl Orthogonal {
    /// The strength used in the study.
    pub const USUAL_BETA: f32 = 1.0;
    /// With fewer candidates, nothing is left after removing a constant and the reference.
    const LEAST_CANDIDATES: usize = 3;
}

impl NoveltyReweighter for Orthogonal {
    fn reweight(&self, _row: &RowContext<'_>, candidates: &mut Candidates) {
        if self.beta == 0.0 || candidates.len() < Self::LEAST_CANDIDATES {
            return;
        }
        let slice = || candidates.as_slice().iter();
        let reference = centred(slice().map(|c| f64::from(c.logit)));
        let novelty = centred(slice().map(|c| f64::from(c.logit) - f64::from(c.expected)));
        let Some(slope) = slope(&novelty, &reference) else {
            return;
        };
        // `rescore` visits the candidates in their current order and sorts them only at the end.
        let mut orthogonal = novelty.iter().zip(&reference).map(|(n, r)| n - slope * r);
        let beta = f64::from(self.beta);
        candidates.rescore(|candidate| {
            let added = orthogonal.next().map_or(0.0, |novelty| beta * novelty);
            (f64::from(candidate.logit) + added) as f32
        });
    }

    fn expects(&self) -> Expects {
        distiller_if(self.beta)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        check_beta(self.beta)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::*;
    use super::*;

    /// `⟨new − reference, z⟩ / ⟨z, z⟩` and `Σ (new − reference)`, computed independently of the code under test.
    fn slope_and_sum(new: &[f32], reference: &[f32]) -> (f64, f64) {
        let mean = reference.iter().map(|&r| f64::from(r)).sum::<f64>() / reference.len() as f64;
        let (mut product, mut square, mut sum) = (0.0, 0.0, 0.0);
        for (&new, &reference) in new.iter().zip(reference) {
            let (change, z) = (f64::from(new) - f64::from(reference), f64::from(reference) - mean);
            product += change * z;
            square += z * z;
            sum += change;
        }
        (product / square, sum)
    }

    #[test]
    fn by_hand() {
        // z = (1, 0, −1). δ = (2, 0, 1) − mean 1 = (1, −1, 0). ⟨δ, z⟩ / ⟨z, z⟩ = 1 / 2. δ⊥ = (½, −1, ½).
        let reference = [3.0, 2.0, 1.0];
        let expected = [1.0, 2.0, 0.0];
        for (beta, new) in [(1.0, [3.5, 1.0, 1.5]), (2.0, [4.0, 0.0, 2.0]), (0.0, [3.0, 2.0, 1.0])]
        {
            assert_near(&scores(&Orthogonal { beta }, 0, &reference, &expected), &new, 1e-6);
        }
        // δ = z: the novelty is all slope, so nothing is left.
        let got = scores(&Orthogonal { beta: 1.0 }, 0, &reference, &[0.0; 3]);
        assert_near(&got, &reference, 1e-6);
        // δ = (1, −2, 1) is already orthogonal to z.
        let got = scores(&Orthogonal { beta: 1.0 }, 0, &reference, &[2.0, 4.0, 0.0]);
        assert_near(&got, &[4.0, 0.0, 2.0], 1e-6);
    }

    #[test]
    fn value_stability() {
        let got = scores(&Orthogonal { beta: 0.7 }, 0, &REFERENCE, &EXPECTED);
        let bits = [1072831479, 1050398413, 1066072362, 3208091358, 1049581943, 3227912674];
        assert_eq!(got, bits.map(f32::from_bits));
    }

    #[test]
    fn rows_with_fewer_than_three_candidates_or_no_variance_are_untouched() {
        let strong = Orthogonal { beta: 5.0 };
        for (reference, expected) in [
            (&[1.25f32][..], &[9.0f32][..]),
            (&[1.25, 0.5], &[9.0, -9.0]),
            // The rounding of numbers of this size would show in the scores.
            (&[1e-3, 0.0], &[7.3e9, -3.1e9]),
            (&[1.25, 1.25, 1.25, 1.25], &[9.0, -9.0, 0.0, 1.0]),
        ] {
            assert_eq!(scores(&strong, 0, reference, expected), reference);
        }
    }

    proptest! {
        #[test]
        fn it_has_no_slope_and_ignores_multiples_of_the_reference(
            rows in prop::collection::vec((-8.0f32..8.0, -8.0f32..8.0), 3..40),
            multiple in -3.0f32..3.0, constant in -20.0f32..20.0, beta in 0.05f32..2.0,
        ) {
            let (reference, expected): (Vec<f32>, Vec<f32>) = rows.into_iter().unzip();
            let spread = reference.iter().fold(0.0f32, |s, r| s.max((r - reference[0]).abs()));
            prop_assume!(spread > 0.5);
            let orthogonal = Orthogonal { beta };
            let new = scores(&orthogonal, 0, &reference, &expected);
            let (slope, sum) = slope_and_sum(&new, &reference);
            prop_assert!(slope.abs() < 1e-4 && sum.abs() < 1e-3, "{slope} {sum}");
            let leaning: Vec<f32> = expected.iter().zip(&reference)
                .map(|(e, r)| e + multiple * r + constant).collect();
            let leaning = scores(&orthogonal, 0, &reference, &leaning);
            for (a, b) in new.iter().zip(&leaning) {
                prop_assert!((a - b).abs() < 1e-4, "{a} {b}");
            }
        }
    }
}
