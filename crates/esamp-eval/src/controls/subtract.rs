//! ESamp's ablation.

use esamp::{
    errors::ConfigError,
    filters::{Candidates, RowContext},
    reweighters::{Expects, NoveltyReweighter},
};

use super::{check_beta, distiller_if};

/// `logit − β·expected`: what ESamp's paper compares its fusion with (arXiv 2604.24927, where it does far worse).
///
/// Without `1 + β` on the reference a perfect distiller does not leave the model alone: `expected = logit` gives
/// `(1 − β)·logit`, the plain model at temperature `1 / (1 − β)`, and at β = 1 every candidate is as likely as any
/// other. What penalties and bias have added stays as it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Subtract {
    /// The strength β, at least 0; with 0 the sampler is the plain one. Usual: 0.5.
    pub beta: f32,
}

impl Subtract {
    /// The strength at which the paper's table on AIME25 has it (arXiv 2604.24927: pass@64 of 13.3 against 30.0 for ESamp at
    /// the same β).
    pub const USUAL_BETA: f32 = 0.5;
}

impl NoveltyReweighter for Subtract {
    fn reweight(&self, _row: &RowContext<'_>, candidates: &mut Candidates) {
        let beta = self.beta;
        if beta != 0.0 {
            candidates.rescore_adjusted(|c, added| c.logit - beta * (c.expected - added));
        }
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
        let got = scores(Arc::new(Subtract { beta: 0.5 }), 0, &[2.0, 1.0], &[1.0, 3.0]);
        assert_eq!(got, [1.5, -0.5]); // 2 − 0.5·1, 1 − 0.5·3
    }

    #[test]
    fn a_distiller_that_expected_everything_flattens() {
        let flat = scores(Arc::new(Subtract { beta: 1.0 }), 0, &REFERENCE, &REFERENCE);
        assert_eq!(flat, [0.0; 6]);
    }
}
