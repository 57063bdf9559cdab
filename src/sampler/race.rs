//! From a row of logits to a token: pool and filters before the fusion, the selection after it.

use burn::tensor::{DType, Tensor, TensorData};

use super::{Choice, StepRow};
use crate::{
    candidates::{Candidates, Reach, log_sum_exp, pool},
    error::{RowError, StepError},
    id::TokenId,
    sampling::TemperatureOrder,
    select::select,
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
}

/// The tokens of one row that its filters leave, on the reference distribution.
pub(super) fn race(row: &StepRow<'_>, logits: &[f32]) -> Result<Candidates, RowError> {
    let (before, after) = match row.sampling.temperature_order() {
        _ if row.sampling.is_greedy() => (1.0, 1.0),
        TemperatureOrder::BeforeFilters => (row.sampling.temperature(), 1.0),
        TemperatureOrder::AfterFilters => (1.0, row.sampling.temperature()),
    };
    let filters = row.sampling.filters();
    let reach = filters.first().map_or(Reach::Everything, |filter| filter.reach());
    let mut candidates = pool(logits, before, row.allowed, reach)?;
    let context = row.context();
    for filter in filters {
        filter.filter(&context, &mut candidates);
    }
    candidates.settle();
    candidates.divide(after);
    Ok(candidates)
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
    let (token, log_prob) = select(&candidates, row.context().draw, row.sampling.is_greedy());
    let reference_log_prob = match row.wants_reference_log_prob {
        true => Some(log_prob_under(logits, token)?),
        false => None,
    };
    Ok(Choice { token, log_prob, reference_log_prob, candidates: candidates.len(), novelty: None })
}

/// Log-probability of a token under the whole row. A mask may have hidden logits that are no numbers from the race, and
/// they count here.
fn log_prob_under(logits: &[f32], token: TokenId) -> Result<f32, RowError> {
    let log_prob = (f64::from(logits[token as usize]) - log_sum_exp(logits)) as f32;
    let is_bad = |logit: &f32| logit.is_nan() || *logit == f32::INFINITY;
    match logits.iter().position(is_bad) {
        Some(bad) => Err(RowError::NotANumber { token: bad as TokenId, got: logits[bad] }),
        None => Ok(log_prob),
    }
}

/// Numbers that have come from the device.
pub(super) fn host(data: TensorData) -> Result<Vec<f32>, StepError> {
    data.try_into_vec::<f32>().map_err(|error| StepError::Execution(format!("{error:?}")))
}
