//! The best so many.

use serde::{Deserialize, Serialize};

use super::{CandidateFilter, Candidates, Reach, RowContext};
use crate::error::ConfigError;

/// Keeps the `k` best tokens (Fan et al., *Hierarchical Neural Story Generation*, arXiv 1805.04833).
///
/// Of tokens with the same logit, those with the smaller id come first, so that exactly `k` are kept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopK {
    /// How many, at least 1.
    pub k: usize,
}

impl CandidateFilter for TopK {
    fn filter(&self, _row: &RowContext<'_>, candidates: &mut Candidates) {
        candidates.truncate(self.k);
    }

    fn reach(&self) -> Reach {
        Reach::Best(self.k)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::at_least_one("top_k", self.k)
    }
}
