//! The ablation from ESamp's paper.

use esamp::{
    errors::ConfigError,
    filters::{Candidates, RowContext},
    reweighters::{Expects, NoveltyReweighter},
};

use super::{check_beta, distiller_if};

/// `logit − β·expected`: the alternative with which ESamp's paper compares its fusion (arXiv 2604.24927; it does far
/// worse).
///
/// Without the factor `1 + β` on the reference, a perfect distiller changes the model's distribution: `expected =
/// logit` gives `(1 − β)·logit`, the plain model at temperature `1 / (1 − β)`, and at β = 1 all candidates are
/// equally likely. Adjustments by penalties and bias are unchanged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Subtract {
    /// The strength β, at least 0; 0 gives plain sampling. Usual: 0.5.
    pub beta: f32,
}

impl Subtract {
    /// The strength in the paper's table on AIME25 (arXiv 2604.24927: pass@64 of 13.3 against 30.0 for ESamp at the
    /// same β).
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
    fn a_distiller_that_predicts_the_reference_flattens() {
        let flat = scores(Arc::new(Subtract { beta: 1.0 }), 0, &REFERENCE, &REFERENCE);
        assert_eq!(flat, [0.0; 6]);
    }
}
