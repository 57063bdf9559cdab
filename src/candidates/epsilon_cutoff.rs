//! Epsilon filter.

use serde::{Deserialize, Serialize};

use super::{CandidateFilter, Candidates, Reach, RowContext};
use crate::error::ConfigError;

/// Keeps the tokens whose probability exceeds `epsilon`: epsilon sampling (Hewitt, Manning and Liang, *Truncation
/// Sampling as Language Model Desmoothing*, arXiv 2210.15191). If no token does, the best one stays.
///
/// When other filters ran first, probabilities are renormalised over the tokens they kept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpsilonCutoff {
    /// The probability ε that a token must exceed, in `(0, 1)`. The paper uses 3e-4 to 2e-3.
    pub epsilon: f32,
}

impl CandidateFilter for EpsilonCutoff {
    fn filter(&self, _row: &RowContext<'_>, candidates: &mut Candidates) {
        keep_above(candidates, f64::from(self.epsilon));
    }

    fn reach(&self) -> Reach {
        Reach::Probability(self.epsilon)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        check("epsilon_cutoff", self.epsilon)
    }
}

/// Keeps the candidates whose probability is above `least`.
pub(super) fn keep_above(candidates: &mut Candidates, least: f64) {
    let probabilities = candidates.probabilities();
    let kept = probabilities.partition_point(|&probability| probability > least);
    candidates.truncate(kept);
}

pub(super) fn check(setting: &'static str, epsilon: f32) -> Result<(), ConfigError> {
    let holds = epsilon > 0.0 && epsilon < 1.0;
    ConfigError::check(holds, setting, "a number in (0, 1)", epsilon)
}
