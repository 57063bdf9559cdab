//! Min-p filter.

use serde::{Deserialize, Serialize};

use super::{CandidateFilter, Candidates, Reach, RowContext};
use crate::error::ConfigError;

/// Keeps the tokens that are at least `p` times as likely as the best one (Nguyen et al., *Turning Up the Heat: Min-p
/// Sampling*, arXiv 2407.01082).
///
/// `p_i ≥ p · p_max` is equivalent to `logit_i ≥ logit_max + ln p`, so the filter needs no normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MinP {
    /// The minimum probability as a fraction of the best token's, in `(0, 1]`. 1 keeps only the best token and its
    /// ties.
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
