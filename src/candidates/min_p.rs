use serde::{Deserialize, Serialize};

use super::{CandidateFilter, Candidates, RowContext};

/// Filter.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MinP {
    /// Setting.
    pub p: f32,
}

impl CandidateFilter for MinP {
    fn filter(&self, _row: &RowContext<'_>, _candidates: &mut Candidates) {
        todo!()
    }
}
