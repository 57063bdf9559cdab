//! Top-nσ filter.

use serde::{Deserialize, Serialize};

use super::{CandidateFilter, Candidates, Reach, RowContext};
use crate::error::{ConfigError, RowError};

/// Keeps the tokens whose logit is at most `n` standard deviations below the best one, `l ≥ max − n·σ` (Tang et al.,
/// *Top-nσ: Not All Logits Are You Need*, arXiv 2411.07641).
///
/// The maximum and σ are those of the whole row before temperature, over its finite logits, including tokens that
/// earlier filters have dropped ([`RowStats`](super::RowStats)). Temperature divides both sides, so the same tokens
/// are kept at every temperature and in both [orders](crate::TemperatureOrder), up to the rounding of the division.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopNSigma {
    /// Number of standard deviations, at least 0. The paper uses 1; 0 keeps only the best token and its ties.
    pub n: f32,
}

impl CandidateFilter for TopNSigma {
    fn filter(&self, _row: &RowContext<'_>, candidates: &mut Candidates) {
        let Some(stats) = candidates.row_stats() else {
            candidates.refuse(RowError::RowStatsMissing { filter: "top_n_sigma" });
            return;
        };
        // Divided in the same way as the candidates: rounding is monotone, so the temperature does not change which
        // tokens are kept.
        let least = stats.least(self.n) / stats.temperature;
        candidates.retain(|candidate| candidate.logit >= least);
    }

    fn reach(&self) -> Reach {
        Reach::Deviations(self.n)
    }

    fn uses_row_stats(&self) -> bool {
        true
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let holds = self.n.is_finite() && self.n >= 0.0;
        ConfigError::check(holds, "top_n_sigma", "a number of at least 0", self.n)
    }
}
