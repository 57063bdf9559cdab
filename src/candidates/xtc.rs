//! XTC filter (exclude top choices).

use serde::{Deserialize, Serialize};

use super::{CandidateFilter, Candidates, RowContext};
use crate::error::ConfigError;

/// Excludes the top choices at random: with `probability`, drops all tokens at least as likely as `threshold` except
/// the least likely of them (p-e-w, *Exclude Top Choices*, 2024,
/// <https://github.com/oobabooga/text-generation-webui/pull/6335>; there is no paper).
///
/// If fewer than two tokens reach the threshold, nothing is dropped, so a viable choice always stays. The random
/// decision uses `row.draw.apart("xtc")` for each row and position, so the random number that selects the token is
/// the same with and without this filter. Two XTC filters in one list use the same random number.
///
/// No token is exempt. The original skips a row if the EOS token or a newline would be dropped. As in llama.cpp, this
/// is left to the caller here, who can use a mask or a bias. With a high `probability`, completions tend not to end.
///
/// When other filters ran first, probabilities are renormalised over the tokens they kept; XTC is usually the last
/// filter. As the first filter it reads every token, which costs a sort of the vocabulary, the same as no filter.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Xtc {
    /// Tokens with at least this probability are top choices. In `(0, 0.5]`: above 0.5 there is never more than one.
    pub threshold: f32,
    /// Probability that the top choices of a row are excluded, in `[0, 1]`.
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
