//! From a row of logits to a token: pool and filters before the fusion, the selection after it.

use burn::tensor::{DType, Tensor, TensorData};

use super::{Choice, StepRow};
use crate::{
    candidates::{Candidates, log_sum_exp},
    error::{RowError, StepError},
    select::{Selected, select},
};

/// The logits of a step on the host.
pub(super) struct Logits {
    values: Vec<f32>,
    pub(super) vocab: usize,
}

impl Logits {
    pub(super) fn read(logits: Tensor<2>) -> Result<Self, StepError> {
        let vocab = logits.dims()[1];
        let values = host(logits.inner().cast(DType::F32).try_into_data()?)?;
        Ok(Self { values, vocab })
    }

    pub(super) fn row(&self, at: usize) -> &[f32] {
        &self.values[at * self.vocab..(at + 1) * self.vocab]
    }

    pub(super) fn row_mut(&mut self, at: usize) -> &mut [f32] {
        &mut self.values[at * self.vocab..(at + 1) * self.vocab]
    }
}

/// The tokens of one row that its filters leave, on the reference distribution. Logits are as before afterwards.
pub(super) fn race(row: &StepRow<'_>, logits: &mut [f32]) -> Result<Candidates, RowError> {
    row.sampling.race(&row.context(), logits, row.allowed)
}

/// One token from the race.
pub(super) fn choose(
    row: &StepRow<'_>,
    candidates: Candidates,
    logits: &[f32],
) -> Result<Choice, RowError> {
    if let Some(refused) = candidates.refused() {
        return Err(refused);
    }
    let Selected { token, log_prob, code } = select(&candidates, row.chooser()?);
    let reference_log_prob = row
        .wants_reference_log_prob
        .then(|| (f64::from(logits[token as usize]) - log_sum_exp(logits)) as f32);
    Ok(Choice {
        token,
        log_prob,
        reference_log_prob,
        candidates: candidates.len(),
        novelty: None,
        code: code.or(row.code),
    })
}

/// Numbers that have come from the device.
pub(super) fn host(data: TensorData) -> Result<Vec<f32>, StepError> {
    data.try_into_vec::<f32>().map_err(|error| StepError::Execution(format!("{error:?}")))
}
