//! Contrastive decoding.

use super::{Expects, NoveltyReweighter, check_beta};
use crate::{
    candidates::{Candidates, RowContext},
    error::ConfigError,
};

/// Contrastive decoding: `(1 + β)·logit − β·expected`, where the expected logits are those of another, weaker model, the
/// amateur (O'Brien and Lewis, *Contrastive Decoding Improves Reasoning in Large Language Models*, arXiv 2309.09117,
/// after Li et al., arXiv 2210.15097).
///
/// The same fusion as [`Extrapolate`](super::Extrapolate); only where the expected logits come from differs. Its candidates
/// are the tokens at least α times as likely as the best one, which is a [`MinP`](crate::filters::MinP) filter with
/// [`USUAL_ALPHA`](Self::USUAL_ALPHA): [`Sampling::contrastive`](crate::Sampling::contrastive) has both. It is
/// applied to the first token of a completion too.
///
/// A row for which the other model rules a candidate out (−inf) has no finite score; it is sampled from the reference and
/// counted in [`Counters::other_not_finite`](crate::Counters::other_not_finite).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Contrast {
    /// The strength β, at least 0; with 0 the sampler is the plain one and the other model is not asked. Usual: 0.5.
    pub beta: f32,
}

impl Contrast {
    /// The strength of the paper.
    pub const USUAL_BETA: f32 = 0.5;
    /// The paper's α: candidates are at least this many times as likely as the best one.
    pub const USUAL_ALPHA: f32 = 0.1;
}

impl NoveltyReweighter for Contrast {
    fn reweight(&self, _row: &RowContext<'_>, candidates: &mut Candidates) {
        let beta = self.beta;
        if beta != 0.0 {
            candidates.rescore(|c| (1.0 + beta) * c.logit - beta * c.expected);
        }
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
