//! The rows of a step that are contrasted with another model.

use burn::tensor::Tensor;

use super::{StepRow, input::expect_shape, race::Logits};
use crate::{
    candidates::Candidates,
    error::{RowError, StepError},
    hidden::select_rows,
    novelty::Expects,
};

/// Gives the candidates of every row that expects another model their logits in that model, `[rows, vocab]`. Returns the
/// places in the step of the rows that can be reweighted: those whose candidates all have a finite one.
///
/// Only the rows that need it leave the device.
pub(super) fn expect_other(
    rows: &[StepRow<'_>],
    races: &mut [Result<Candidates, RowError>],
    logits: Option<Tensor<2>>,
    vocab: usize,
) -> Result<Vec<usize>, StepError> {
    let contrasted = |&at: &usize| rows[at].expects() == Some(Expects::OtherModel);
    let at: Vec<usize> = (0..rows.len()).filter(contrasted).collect();
    let Some(&first) = at.first() else {
        return Ok(Vec::new());
    };
    let logits = logits.ok_or(StepError::OtherLogitsMissing { row: rows[first].id })?;
    expect_shape("logits of the other model", [rows.len(), vocab], logits.dims())?;
    let logits = Logits::read(select_rows(&logits.inner(), &at))?;
    let mut ready = Vec::with_capacity(at.len());
    for (place, &at) in at.iter().enumerate() {
        let Ok(race) = &mut races[at] else {
            continue;
        };
        let logits = logits.row(place);
        if rows[at].set_expected(race, |_, token| logits[token as usize]) {
            ready.push(at);
        }
    }
    Ok(ready)
}
