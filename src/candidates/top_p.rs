use serde::{Deserialize, Serialize};

use super::{CandidateFilter, Candidates, RowContext};

/// Filter.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopP {
    /// Setting.
    pub p: f32,
}

impl CandidateFilter for TopP {
    fn filter(&self, _row: &RowContext<'_>, _candidates: &mut Candidates) {
        todo!()
    }
}
