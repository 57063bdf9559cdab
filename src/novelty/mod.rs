//! What to do with a token that was, or was not, expected: ESamp, orthogonal novelty and contrastive decoding.
//!
//! `docs/design/reweighters-and-controls.md` puts them side by side.

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

/// Where the expected logits of a row come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Expects {
    /// From nowhere: [`Candidate::expected`](crate::filters::Candidate::expected) stays 0. The row costs no distiller work:
    /// nothing is predicted, nothing learned from it.
    Nothing,
    /// From the prompt's distiller, through the model's head. Rows in [`Phase::Decode`](crate::Phase::Decode) only:
    /// a distiller has nothing to say about a prompt.
    Distiller,
    /// From the logits of another model, which come with the step
    /// ([`StepInput::with_other_logits`](crate::StepInput::with_other_logits)). In every phase: the other model has
    /// read the prompt too. No distiller work.
    OtherModel,
}

/// Rescores the candidates of a row from two numbers each: the reference logit and the expected one.
///
/// The first token of a completion is not rescored, unless the reweighter expects the logits of another model.
///
/// ```
/// use esamp::{filters::{Candidates, RowContext}, reweighters::NoveltyReweighter};
///
/// /// Adds a bonus to whatever was expected less than it is likely, however much less.
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
/// Which tokens are in the race has been decided on the reference: a reweighter gives scores and drops nobody.
pub trait NoveltyReweighter: Debug + Send + Sync {
    /// Gives every candidate a new score.
    fn reweight(&self, row: &RowContext<'_>, candidates: &mut Candidates);

    /// Where the expected logits come from, the distiller unless said otherwise.
    fn expects(&self) -> Expects {
        Expects::Distiller
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

/// A reweighter of a request's settings, by name or of your own. The strength of the named ones is
/// [`Sampling::beta`](crate::Sampling::beta); with 0 each of them is plain sampling.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ReweighterConfig {
    /// [`Extrapolate`]: ESamp.
    #[default]
    Extrapolate,
    /// [`Orthogonal`]: ESamp without what only sharpens.
    Orthogonal,
    /// [`Contrast`]: contrastive decoding.
    Contrast,
    /// A reweighter of your own: see [`custom`](Self::custom). Its strength is its own, β is not looked at. Settings that
    /// hold one cannot be serialised.
    #[serde(skip_deserializing)]
    Custom(Custom<dyn NoveltyReweighter>),
}

impl ReweighterConfig {
    /// A reweighter of your own.
    pub fn custom(reweighter: impl NoveltyReweighter + 'static) -> Self {
        Self::Custom(Custom(Arc::new(reweighter)))
    }

    /// The strength that is usual for it.
    ///
    /// | reweighter | β | from |
    /// |---|---|---|
    /// | `Extrapolate` | 0.25 | the setting of ESamp's paper, arXiv 2604.24927 |
    /// | `Contrast` | 0.5 | arXiv 2309.09117 |
    /// | `Orthogonal` | 1 | an independent study on SmolLM2-135M, one seed: in no paper |
    pub fn usual_beta(&self) -> f32 {
        match self {
            Self::Orthogonal => Orthogonal::USUAL_BETA,
            Self::Contrast => Contrast::USUAL_BETA,
            Self::Extrapolate | Self::Custom(_) => Extrapolate::USUAL_BETA,
        }
    }

    /// The reweighter with strength `beta`.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] for a strength that is negative or not finite.
    pub fn init(&self, beta: f32) -> Result<Arc<dyn NoveltyReweighter>, ConfigError> {
        let reweighter = self.unchecked(beta);
        reweighter.validate()?;
        Ok(reweighter)
    }

    /// The reweighter, whatever its strength is.
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

/// The distiller, unless the strength is 0.
fn distiller_if(beta: f32) -> Expects {
    if beta == 0.0 { Expects::Nothing } else { Expects::Distiller }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{draw::DrawKey, id::CompletionId};

    /// A row at `position`, without a past.
    pub(super) fn context(position: u64) -> RowContext<'static> {
        let draw = DrawKey::new(3, &[1, 2], 0).at(position);
        RowContext::new(CompletionId::new(0, 0), position, draw)
    }

    /// Candidates with these reference and expected logits; token `i` is number `i`.
    pub(super) fn race(reference: &[f32], expected: &[f32]) -> Candidates {
        let mut candidates = Candidates::from_logits(reference).unwrap();
        candidates.set_expected(|_, token| expected[token as usize]);
        candidates
    }

    /// The new scores, by token.
    pub(super) fn scores(
        reweighter: &dyn NoveltyReweighter,
        position: u64,
        reference: &[f32],
        expected: &[f32],
    ) -> Vec<f32> {
        let mut candidates = race(reference, expected);
        reweighter.reweight(&context(position), &mut candidates);
        assert_eq!(candidates.refused(), None);
        let mut scores = vec![f32::NAN; reference.len()];
        candidates.as_slice().iter().for_each(|c| scores[c.token as usize] = c.logit);
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
    fn a_distiller_that_expected_everything_leaves_the_reference() {
        for config in ALL {
            let reweighter = config.init(0.7).unwrap();
            let got = scores(&*reweighter, 0, &REFERENCE, &REFERENCE);
            assert_near(&got, &REFERENCE, 1e-6);
        }
    }

    #[test]
    fn a_race_of_one_or_two_and_one_without_variance_are_no_trouble() {
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
