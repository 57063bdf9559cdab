//! Novelty reweighters: ESamp, orthogonal novelty and contrastive decoding.
//!
//! `docs/design/reweighters-and-controls.md` compares them.

mod contrast;
mod extrapolate;
mod orthogonal;

use std::{fmt::Debug, sync::Arc};

use serde::{Deserialize, Serialize};

pub use contrast::Contrast;
pub use extrapolate::Extrapolate;
pub use orthogonal::Orthogonal;

use crate::{
    candidates::{Candidates, RowContext},
    custom::Custom,
    error::ConfigError,
};

/// The source of a row's expected logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Expects {
    /// No source: [`Candidate::expected`](crate::filters::Candidate::expected) stays 0. The row causes no distiller
    /// work: nothing is predicted and nothing is learned from it.
    Nothing,
    /// The row's distiller, through the model's LM head. Only for rows in [`Phase::Decode`](crate::Phase::Decode),
    /// because a distiller makes no predictions for a prompt.
    Distiller,
    /// The logits of another model, passed with the step
    /// ([`StepInput::with_other_logits`](crate::StepInput::with_other_logits)). Used in every phase, because the
    /// other model has processed the prompt too. Causes no distiller work.
    OtherModel,
}

/// Rescores the candidates of a row from two numbers each: the reference logit and the expected logit.
///
/// The first token of a completion is not rescored, unless the reweighter expects the logits of another model.
///
/// ```
/// use esamp::{filters::{Candidates, RowContext}, reweighters::NoveltyReweighter};
///
/// /// Adds a fixed bonus to every token whose expected logit is below its logit.
/// #[derive(Debug)]
/// struct Bonus(f32);
///
/// impl NoveltyReweighter for Bonus {
///     fn reweight(&self, _row: &RowContext<'_>, candidates: &mut Candidates) {
///         candidates.rescore(|c| c.logit + if c.expected < c.logit { self.0 } else { 0.0 });
///     }
/// }
/// ```
///
/// The candidates are chosen from the reference distribution before reweighting. A reweighter assigns scores and
/// removes no candidate.
pub trait NoveltyReweighter: Debug + Send + Sync {
    /// Gives every candidate a new score.
    fn reweight(&self, row: &RowContext<'_>, candidates: &mut Candidates);

    /// Where the expected logits come from. Defaults to the distiller.
    fn expects(&self) -> Expects {
        Expects::Distiller
    }

    /// Validates the settings. Called once, before any row is reweighted.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if a setting is out of range.
    fn validate(&self) -> Result<(), ConfigError> {
        Ok(())
    }
}

/// The reweighter in the sampling settings of a request: a built-in reweighter or a custom one. The strength of the
/// built-in ones is [`Sampling::beta`](crate::Sampling::beta); with 0 each of them is plain sampling.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ReweighterConfig {
    /// [`Extrapolate`]: ESamp.
    #[default]
    Extrapolate,
    /// [`Orthogonal`]: ESamp without its sharpening component.
    Orthogonal,
    /// [`Contrast`]: contrastive decoding.
    Contrast,
    /// A custom reweighter: see [`custom`](Self::custom). It has its own strength and ignores β. Settings that
    /// contain one cannot be serialised.
    #[serde(skip_deserializing)]
    Custom(Custom<dyn NoveltyReweighter>),
}

impl ReweighterConfig {
    /// Wraps a custom reweighter.
    pub fn custom(reweighter: impl NoveltyReweighter + 'static) -> Self {
        Self::Custom(Custom(Arc::new(reweighter)))
    }

    /// The usual strength of this reweighter.
    ///
    /// | reweighter | β | source |
    /// |---|---|---|
    /// | `Extrapolate` | 0.25 | the setting of the ESamp paper, arXiv 2604.24927 |
    /// | `Contrast` | 0.5 | arXiv 2309.09117 |
    /// | `Orthogonal` | 1 | an independent study on SmolLM2-135M with one seed; not published in a paper |
    pub fn usual_beta(&self) -> f32 {
        match self {
            Self::Orthogonal => Orthogonal::USUAL_BETA,
            Self::Contrast => Contrast::USUAL_BETA,
            Self::Extrapolate | Self::Custom(_) => Extrapolate::USUAL_BETA,
        }
    }

    /// Returns the reweighter with strength `beta`.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] if the strength is negative or not finite.
    pub fn init(&self, beta: f32) -> Result<Arc<dyn NoveltyReweighter>, ConfigError> {
        let reweighter = self.unchecked(beta);
        reweighter.validate()?;
        Ok(reweighter)
    }

    /// Returns the reweighter without validating its strength.
    pub(crate) fn unchecked(&self, beta: f32) -> Arc<dyn NoveltyReweighter> {
        match self {
            Self::Extrapolate => Arc::new(Extrapolate { beta }),
            Self::Orthogonal => Arc::new(Orthogonal { beta }),
            Self::Contrast => Arc::new(Contrast { beta }),
            Self::Custom(reweighter) => reweighter.0.clone(),
        }
    }
}

fn check_beta(beta: f32) -> Result<(), ConfigError> {
    ConfigError::check(beta.is_finite() && beta >= 0.0, "beta", "a number of at least 0", beta)
}

/// Returns [`Expects::Distiller`], or [`Expects::Nothing`] if the strength is 0.
fn distiller_if(beta: f32) -> Expects {
    if beta == 0.0 { Expects::Nothing } else { Expects::Distiller }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{draw::DrawKey, id::CompletionId};

    /// A row context at `position` without prompt or generated tokens.
    pub(super) fn context(position: u64) -> RowContext<'static> {
        let draw = DrawKey::new(3, &[1, 2], 0).at(position);
        RowContext::new(CompletionId::new(0, 0), position, draw)
    }

    /// Candidates with these reference and expected logits, indexed by token.
    pub(super) fn candidates(reference: &[f32], expected: &[f32]) -> Candidates {
        let mut candidates = Candidates::from_logits(reference).unwrap();
        candidates.set_expected(|_, token| expected[token as usize]);
        candidates
    }

    /// The new scores, indexed by token.
    pub(super) fn scores(
        reweighter: &dyn NoveltyReweighter,
        position: u64,
        reference: &[f32],
        expected: &[f32],
    ) -> Vec<f32> {
        let mut candidates = candidates(reference, expected);
        reweighter.reweight(&context(position), &mut candidates);
        assert_eq!(candidates.refused(), None);
        let mut scores = vec![f32::NAN; reference.len()];
        for c in candidates.as_slice() {
            scores[c.token as usize] = c.logit;
        }
        scores
    }

    pub(super) fn assert_near(got: &[f32], expected: &[f32], tolerance: f32) {
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() <= tolerance, "{got} instead of {expected}");
        }
    }

    pub(super) const REFERENCE: [f32; 6] = [2.0, 1.0, 0.5, -0.25, -1.0, -3.0];
    pub(super) const EXPECTED: [f32; 6] = [1.0, 1.5, -0.5, 0.75, -2.0, 0.0];

    pub(super) const ALL: [ReweighterConfig; 3] =
        [ReweighterConfig::Extrapolate, ReweighterConfig::Orthogonal, ReweighterConfig::Contrast];

    #[test]
    fn strength_zero_changes_nothing_and_expects_nothing() {
        for config in ALL {
            let reweighter = config.init(0.0).unwrap();
            assert_eq!(reweighter.expects(), Expects::Nothing, "{config:?}");
            assert_eq!(scores(&*reweighter, 0, &REFERENCE, &EXPECTED), REFERENCE, "{config:?}");
            for beta in [-0.1, f32::NAN, f32::INFINITY] {
                let error = config.init(beta).unwrap_err().to_string();
                assert_eq!(error, format!("beta: expected a number of at least 0, got {beta}"));
            }
        }
    }

    #[test]
    fn usual_strengths_are_those_of_their_sources() {
        let got = ALL.map(|config| config.usual_beta());
        assert_eq!(got, [0.25, 1.0, 0.5]);
    }

    #[test]
    fn a_distiller_that_predicts_the_reference_changes_nothing() {
        for config in ALL {
            let reweighter = config.init(0.7).unwrap();
            let got = scores(&*reweighter, 0, &REFERENCE, &REFERENCE);
            assert_near(&got, &REFERENCE, 1e-6);
        }
    }

    #[test]
    fn rows_with_one_or_two_candidates_or_no_variance_stay_finite() {
        for config in ALL {
            let reweighter = config.init(0.7).unwrap();
            for (reference, expected) in [
                (&[1.5f32][..], &[-2.0f32][..]),
                (&[1.5, 0.5], &[-2.0, 3.0]),
                (&[1.5, 1.5], &[-2.0, 3.0]),
                (&[1.5, 1.5, 1.5], &[-2.0, 3.0, 0.0]),
                (&[1.5, 0.5, 0.0], &[1.0, 1.0, 1.0]),
            ] {
                let got = scores(&*reweighter, 0, reference, expected);
                assert!(got.iter().all(|score| score.is_finite()), "{config:?} {got:?}");
            }
        }
    }

    #[test]
    fn names_are_written_down_as_they_are_read() {
        let names: Vec<String> =
            ALL.iter().map(|config| serde_json::to_string(config).unwrap()).collect();
        assert_eq!(names, [r#""extrapolate""#, r#""orthogonal""#, r#""contrast""#,]);
        for (name, config) in names.iter().zip(ALL) {
            assert_eq!(serde_json::from_str::<ReweighterConfig>(name).unwrap(), config);
        }
    }
}
