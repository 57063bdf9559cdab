//! Contrastive decoding.

use super::{Expects, NoveltyReweighter, check_beta, extrapolate::extrapolate};
use crate::{
    candidates::{Candidates, RowContext},
    error::ConfigError,
};

/// Contrastive decoding: `(1 + β)·logit − β·expected`, where the expected logits come from another, weaker model
/// (O'Brien and Lewis, *Contrastive Decoding Improves Reasoning in Large Language Models*, arXiv 2309.09117, after Li
/// et al., arXiv 2210.15097, who call that model the amateur).
///
/// The formula is that of [`Extrapolate`](super::Extrapolate); only the source of the expected logits differs. The
/// paper restricts candidates to tokens at least α times as likely as the best one, which is a
/// [`MinP`](crate::filters::MinP) filter with [`USUAL_ALPHA`](Self::USUAL_ALPHA).
/// [`Sampling::contrastive`](crate::Sampling::contrastive) sets both. The first token of a completion is reweighted
/// too.
///
/// If the other model rules a candidate out (−inf), the row has no finite score: it is sampled from the reference and
/// counted in [`Counters::other_not_finite`](crate::Counters::other_not_finite).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Contrast {
    /// The strength β, at least 0. With 0 this is plain sampling and the other model's logits are not used. Usual:
    /// 0.5.
    pub beta: f32,
}

impl Contrast {
    /// The paper's strength.
    pub const USUAL_BETA: f32 = 0.5;
    /// The paper's α: candidates are at least this many times as likely as the best token.
    pub const USUAL_ALPHA: f32 = 0.1;
}

impl NoveltyReweighter for Contrast {
    fn reweight(&self, _row: &RowContext<'_>, candidates: &mut Candidates) {
        extrapolate(candidates, self.beta);
    }

    fn expects(&self) -> Expects {
        if self.beta == 0.0 { Expects::Nothing } else { Expects::OtherModel }
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
        let contrast = Contrast { beta: 0.5 };
        assert_eq!(contrast.expects(), Expects::OtherModel);
        assert_eq!(scores(&contrast, 0, &[2.0, 1.0], &[1.0, 3.0]), [2.5, 0.0]);
    }
}
