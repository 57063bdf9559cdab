//! The control for the size of the reward, independent of its content.

use esamp::{
    errors::ConfigError,
    filters::{Candidates, RowContext},
    reweighters::{Expects, NoveltyReweighter},
};

use super::{check_beta, direction, distiller_if};

/// A control: `logit + s·g`, a random reward per candidate with the variance of ESamp's perturbation in this row.
///
/// `g` is one standard normal number per token, from the row's [`Draw`](esamp::filters::Draw), stream `"random
/// reward"` ([`Draw::apart`](esamp::filters::Draw::apart)), centred and scaled over the row's candidates so that the
/// variance of `s·g` is exactly that of `β·(logit − expected)`. As in the paper's control (arXiv 2604.24927), only
/// the reward is random; with few candidates it still has a slope on the reference by chance.
/// [`MatchedRandom`](super::MatchedRandom) also matches ESamp's slope.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomReward {
    /// The strength β of the ESamp run that this is a control for, at least 0; 0 gives plain sampling.
    pub beta: f32,
}

impl NoveltyReweighter for RandomReward {
    fn reweight(&self, row: &RowContext<'_>, candidates: &mut Candidates) {
        if self.beta == 0.0 {
            return;
        }
        let reward = direction::random(row, "random reward", candidates);
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
    fn the_variance_is_that_of_the_perturbation_and_the_direction_is_random() {
        let control = Arc::new(RandomReward { beta: 0.5 });
        let variance = |values: &[f64]| {
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64
        };
        let difference = |a: &[f32], b: &[f32]| -> Vec<f64> {
            a.iter().zip(b).map(|(a, b)| f64::from(a - b)).collect()
        };
        let wanted = 0.25 * variance(&difference(&REFERENCE, &EXPECTED));
        let mut mean = [0.0; 6];
        for position in 0..400 {
            let new = scores(control.clone(), position, &REFERENCE, &EXPECTED);
            let reward = difference(&new, &REFERENCE);
            assert!((variance(&reward) - wanted).abs() < 1e-5);
            for (m, r) in mean.iter_mut().zip(&reward) {
                *m += r / 400.0;
            }
        }
        // Each reward has standard deviation √wanted = 0.63, so its mean over 400 positions has 0.03.
        assert!(mean.iter().all(|m| m.abs() < 0.14), "{mean:?}");
    }

    #[test]
    fn the_numbers_are_the_rows_own_and_not_those_that_select() {
        let control = Arc::new(RandomReward { beta: 0.5 });
        let a = scores(control.clone(), 3, &REFERENCE, &EXPECTED);
        assert_eq!(a, scores(control.clone(), 3, &REFERENCE, &EXPECTED));
        assert_ne!(a, scores(control.clone(), 4, &REFERENCE, &EXPECTED));
    }
}
