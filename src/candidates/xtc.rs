//! Now and then, without the obvious choices.

use serde::{Deserialize, Serialize};

use super::{CandidateFilter, Candidates, RowContext};
use crate::error::ConfigError;

/// Excludes the top choices, by chance: with `probability`, all tokens at least as likely as `threshold` are dropped
/// except for the least likely of them (p-e-w, *Exclude Top Choices*, 2024,
/// <https://github.com/oobabooga/text-generation-webui/pull/6335>; there is no paper).
///
/// Where fewer than two tokens reach the threshold nothing is dropped: a viable choice always stays. The chance is
/// decided for each row and position by `row.draw.apart("xtc")`, so the number that selects the token is the same with
/// and without this filter. Two of them in one list are decided by the same number.
///
/// No token is exempt. The original leaves a row alone when the end of the text or a line break would be dropped; as in
/// llama.cpp, that is left to the caller here (a mask or a bias can do it): with a high `probability` texts run on.
///
/// After other filters, probabilities are those among the tokens that these have left; usually it is the last. As the
/// first it looks at every token: it costs a sort of the vocabulary, like having no filter.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Xtc {
    /// From which probability on a token is a top choice, in `(0, 0.5]`: above 0.5 there is never more than one.
    pub threshold: f32,
    /// How often they are excluded, in `[0, 1]`.
    pub probability: f32,
}

impl CandidateFilter for Xtc {
    fn filter(&self, row: &RowContext<'_>, candidates: &mut Candidates) {
        if row.draw.apart("xtc").uniform() >= f64::from(self.probability) {
            return;
        }
        let threshold = f64::from(self.threshold);
        let top = candidates.probabilities().partition_point(|&p| p >= threshold);
        let mut place = 0;
        candidates.retain(|_| {
            place += 1;
            place >= top
        });
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let holds = self.threshold > 0.0 && self.threshold <= 0.5;
        ConfigError::check(holds, "xtc threshold", "a number in (0, 0.5]", self.threshold)?;
        let holds = (0.0..=1.0).contains(&self.probability);
        ConfigError::check(holds, "xtc probability", "a number in [0, 1]", self.probability)
    }
}
