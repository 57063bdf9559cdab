//! From a row of logits to a token: pool and filters before the fusion, the selection after it.

use burn::tensor::{DType, Tensor, TensorData};

use super::{Choice, StepRow};
use crate::{
    candidates::{Candidates, log_sum_exp},
    error::{RowError, StepError},
    id::TokenId,
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

/// The tokens of one row that its first filter could keep. Logits are as before afterwards.
pub(super) fn pool(row: &StepRow<'_>, logits: &mut [f32]) -> Result<Candidates, RowError> {
    row.sampling.pool(&row.context(), logits, row.allowed)
}

/// One token from the race.
pub(super) fn choose(
    row: &StepRow<'_>,
    race: &Result<Candidates, RowError>,
    logits: &[f32],
) -> Result<Choice, RowError> {
    let candidates = race.as_ref().map_err(Clone::clone)?;
    if let Some(refused) = candidates.refused() {
        return Err(refused);
    }
    let Selected { token, log_prob, code } = select(candidates, row.chooser()?);
    let reference_log_prob = match row.wants_reference_log_prob {
        true => Some(log_prob_under(logits, token)?),
        false => None,
    };
    Ok(Choice {
        token,
        log_prob,
        reference_log_prob,
        candidates: candidates.len(),
        novelty: None,
        code: code.or(row.code),
    })
}

/// The token that the row's random number or code chooses from the race as it stands; `None` where the row has no code
/// to choose with, which [`choose`] reports.
pub(super) fn would_choose(row: &StepRow<'_>, candidates: &Candidates) -> Option<TokenId> {
    row.chooser().ok().map(|chooser| select(candidates, chooser).token)
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
