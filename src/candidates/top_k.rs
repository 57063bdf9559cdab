use serde::{Deserialize, Serialize};

use super::{CandidateFilter, Candidates, RowContext};

/// Filter.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopK {
    /// Setting.
    pub k: usize,
}

impl CandidateFilter for TopK {
    fn filter(&self, _row: &RowContext<'_>, _candidates: &mut Candidates) {
        todo!()
    }
}
