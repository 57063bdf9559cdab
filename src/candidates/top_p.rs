//! Top-p filter (nucleus sampling).

use serde::{Deserialize, Serialize};

use super::{CandidateFilter, Candidates, Reach, RowContext};
use crate::error::ConfigError;

/// Keeps the smallest set of best tokens whose probabilities sum to at least `p` (Holtzman et al., *The Curious Case of
/// Neural Text Degeneration*, arXiv 1904.09751).
///
/// The token that crosses `p` is kept. When other filters ran first, probabilities are renormalised over the tokens
/// they kept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopP {
    /// The probability mass to keep, in `(0, 1]`. 1 keeps every token.
    pub p: f32,
}

impl CandidateFilter for TopP {
    fn filter(&self, _row: &RowContext<'_>, candidates: &mut Candidates) {
        if self.p >= 1.0 {
            return;
        }
        let target = f64::from(self.p);
        let mut before = 0.0;
        let kept = candidates.probabilities().into_iter().take_while(|probability| {
            let needed = before < target;
            before += probability;
            needed
        });
        let kept = kept.count();
        candidates.truncate(kept);
    }

    fn reach(&self) -> Reach {
        Reach::Mass(self.p)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let holds = self.p > 0.0 && self.p <= 1.0;
        ConfigError::check(holds, "top_p", "a number in (0, 1]", self.p)
    }
}
