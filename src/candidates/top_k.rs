//! Top-k filter.

use serde::{Deserialize, Serialize};

use super::{CandidateFilter, Candidates, Reach, RowContext};
use crate::error::ConfigError;

/// Keeps the `k` best tokens (Fan et al., *Hierarchical Neural Story Generation*, arXiv 1805.04833).
///
/// Ties are broken by the smaller token id, so that exactly `k` tokens are kept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopK {
    /// Number of tokens to keep, at least 1.
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
