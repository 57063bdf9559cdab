//! From a row of logits to its candidates.

use super::{Candidates, Reach, TokenMask};
use crate::error::RowError;

/// The candidates of one row: every token that is neither masked nor sure to be dropped by the first filter.
///
/// `scale` multiplies every logit (1/T where temperature comes first). Errors as [`RowError`] says.
pub(crate) fn pool(
    logits: &[f32],
    scale: f32,
    allowed: Option<&TokenMask>,
    reach: Reach,
) -> Result<Candidates, RowError> {
    todo!()
}
pub(crate) fn log_sum_exp(_l: &[f32]) -> f64 {
    todo!()
}
