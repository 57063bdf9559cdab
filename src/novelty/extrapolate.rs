//! ESamp reweighter.

use super::{Expects, NoveltyReweighter, check_beta, distiller_if};
use crate::{
    candidates::{Candidates, RowContext},
    error::ConfigError,
};

/// ESamp: `(1 + β)·logit − β·expected` (arXiv 2604.24927).
///
/// The closed form of KL-regularised policy improvement with the reward `log π_ref − log q_distiller`: the new
/// distribution is proportional to `π_ref^(1+β) / q_distiller^β`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Extrapolate {
    /// The exploration strength β, at least 0. With 0 the result is bit-identical to plain sampling.
    pub beta: f32,
}

impl Extrapolate {
    /// The paper's exploration strength.
    pub const USUAL_BETA: f32 = 0.25;
}

/// Sets every score to `(1 + β)·logit − β·expected`.
pub(super) fn extrapolate(candidates: &mut Candidates, beta: f32) {
    if beta != 0.0 {
        candidates.rescore(|c| (1.0 + beta) * c.logit - beta * c.expected);
    }
}

impl NoveltyReweighter for Extrapolate {
    fn reweight(&self, _row: &RowContext<'_>, candidates: &mut Candidates) {
        extrapolate(candidates, self.beta);
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
    use super::super::tests::*;
    use super::*;

    #[test]
    fn by_hand() {
        let got = scores(&Extrapolate { beta: 0.5 }, 0, &[2.0, 1.0], &[1.0, 3.0]);
        assert_eq!(got, [2.5, 0.0]); // 1.5·2 − 0.5·1, 1.5·1 − 0.5·3
    }
}
