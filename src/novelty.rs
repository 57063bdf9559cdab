//! What to do with a token that the distiller did not expect.

use std::fmt::Debug;

use crate::{
    candidates::{Candidates, RowContext},
    error::ConfigError,
};

/// Rescores the candidates of a row from two numbers each: the reference logit and the expected one.
///
/// ```
/// use esamp::{Candidates, NoveltyReweighter, RowContext};
///
/// /// Adds the surprise once, without ESamp's `1 + β` on the reference.
/// #[derive(Debug)]
/// struct Subtract(f32);
///
/// impl NoveltyReweighter for Subtract {
///     fn reweight(&self, _row: &RowContext<'_>, candidates: &mut Candidates) {
///         candidates.rescore(|c| c.logit - self.0 * c.expected);
///     }
/// }
/// ```
pub trait NoveltyReweighter: Debug + Send + Sync {
    /// Gives every candidate a new score.
    fn reweight(&self, row: &RowContext<'_>, candidates: &mut Candidates);

    /// Whether this reweighter uses expected logits. Where it does not, the row costs no distiller work: nothing is
    /// predicted, nothing learned from it.
    fn uses_expected(&self) -> bool {
        true
    }

    /// Checks the settings, once, before any row is reweighted.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when a setting is out of its range.
    fn validate(&self) -> Result<(), ConfigError> {
        Ok(())
    }
}

/// ESamp: `(1 + β)·logit − β·expected` (arXiv 2604.24927).
///
/// The closed form of KL-regularised policy improvement with the reward `log π_ref − log q_distiller`: the new
/// distribution is proportional to `π_ref^(1+β) / q_distiller^β`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Extrapolate {
    /// The exploration strength β, at least 0. With 0 the sampler is the plain one, bit for bit.
    pub beta: f32,
}

impl NoveltyReweighter for Extrapolate {
    fn reweight(&self, _row: &RowContext<'_>, candidates: &mut Candidates) {
        let beta = self.beta;
        if beta != 0.0 {
            candidates.rescore(|c| (1.0 + beta) * c.logit - beta * c.expected);
        }
    }

    fn uses_expected(&self) -> bool {
        self.beta != 0.0
    }

    fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::check(
            self.beta.is_finite() && self.beta >= 0.0,
            "beta",
            "a number of at least 0",
            self.beta,
        )
    }
}
