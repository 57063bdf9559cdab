//! The control for novelty that is only rarity.

use esamp::{
    errors::ConfigError,
    filters::{Candidates, RowContext},
    reweighters::{Expects, NoveltyReweighter},
};

use super::{check_beta, direction, distiller_if};

/// A control: `logit + s·(−log p_ref)`, the model's own surprisal as the reward, with the variance of ESamp's
/// perturbation in this row.
///
/// Surprisal is the negated reference logit, up to a constant. So this is the plain model at a higher temperature,
/// one for each row: `logit·(1 − s)` with `s = β·σ(logit − expected) / σ(logit)` over the row's candidates. If the
/// perturbation is larger than the reference (`s > 1`), the order is reversed. What ESamp gains over this control is
/// not due to a preference for rare tokens. Rows whose reference logits are all equal are unchanged. This control is
/// original to this package and scaled like [`RandomReward`](super::RandomReward).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Surprisal {
    /// The strength β of the ESamp run that this is a control for, at least 0; 0 gives plain sampling.
    pub beta: f32,
}

impl NoveltyReweighter for Surprisal {
    fn reweight(&self, _row: &RowContext<'_>, candidates: &mut Candidates) {
        if self.beta == 0.0 {
            return;
        }
        // −log p = −logit + constant: after centring, the negated reference.
        let reward: Vec<f64> = direction::reference(candidates).iter().map(|z| -z).collect();
        direction::add_matched(candidates, self.beta, &reward);
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

    use super::*;
    use crate::controls::tests::*;

    #[test]
    fn by_hand() {
        // z = (1, 0, −1), ‖z‖ = √2. δ = (2, 0, 1) − 1 = (1, −1, 0), ‖δ‖ = √2. Half of it: new = ref − ½ z.
        let got = scores(Arc::new(Surprisal { beta: 0.5 }), 0, &[3.0, 2.0, 1.0], &[1.0, 2.0, 0.0]);
        assert_near(&got, &[2.5, 2.0, 1.5], 1e-6);
        let flat = scores(Arc::new(Surprisal { beta: 0.5 }), 0, &[1.0; 3], &[1.0, 2.0, 0.0]);
        assert_eq!(flat, [1.0; 3]);
    }

    #[test]
    fn the_reward_is_the_surprisal() {
        let new = scores(Arc::new(Surprisal { beta: 0.25 }), 0, &REFERENCE, &EXPECTED);
        let total: f64 = REFERENCE.iter().map(|&r| f64::from(r).exp()).sum();
        let surprisal: Vec<f64> = REFERENCE.iter().map(|&r| total.ln() - f64::from(r)).collect();
        let rate = |a: usize, b: usize| {
            f64::from((new[a] - REFERENCE[a]) - (new[b] - REFERENCE[b]))
                / (surprisal[a] - surprisal[b])
        };
        for other in 2..6 {
            assert!((rate(0, other) - rate(0, 1)).abs() < 1e-5, "proportional to the surprisal");
        }
        assert!(rate(0, 1) > 0.0, "rare tokens gain");
    }
}
