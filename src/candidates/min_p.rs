//! Tokens that are likely compared with the best one.

use serde::{Deserialize, Serialize};

use super::{CandidateFilter, Candidates, Reach, RowContext};
use crate::error::ConfigError;

/// Keeps tokens at least `p` times as likely as the best one (Nguyen et al., *Turning Up the Heat: Min-p Sampling*,
/// arXiv 2407.01082).
///
/// `p_i ≥ p · p_max` is `logit_i ≥ logit_max + ln p`: the other tokens' probabilities do not matter.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MinP {
    /// The share of the best token's probability, in `(0, 1]`; 1 keeps the best and those equal to it.
    pub p: f32,
}

impl CandidateFilter for MinP {
    fn filter(&self, _row: &RowContext<'_>, candidates: &mut Candidates) {
        let least = candidates.best().logit + self.p.ln();
        candidates.retain(|candidate| candidate.logit >= least);
    }

    fn reach(&self) -> Reach {
        Reach::Nats(-self.p.ln())
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let holds = self.p > 0.0 && self.p <= 1.0;
        ConfigError::check(holds, "min_p", "a number in (0, 1]", self.p)
    }
}
