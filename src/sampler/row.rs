//! One row of a step: from logits to a token.

use burn::tensor::{DType, Tensor, TensorData};

use super::{Choice, Novelty, Phase, StepRow};
use crate::{
    candidates::{Candidates, log_sum_exp},
    error::RowError,
    id::TokenId,
    novelty::Expects,
    sampler::error::StepError,
    select::{Selected, select},
    telemetry::Steering,
};

/// What a step knows of one row. Every stage reads what the stages before it have put here.
pub(super) struct RowState<'a> {
    pub(super) input: &'a StepRow<'a>,
    /// Whether the row is steered, and if not, why not. Decided when the step begins, from the row's reweighter and phase; a
    /// distiller that is still warming up and numbers that are not finite change it.
    pub(super) steering: Steering,
    /// The tokens that are left; `None` before the pool is filled and for a row that has failed.
    pub(super) candidates: Option<Candidates>,
    /// The token that the same random number would have chosen without steering.
    pub(super) unsteered: Option<TokenId>,
    /// How far the deep state is from the predicted one; `None` where nothing was predicted or a number is not finite.
    pub(super) novelty: Option<Novelty>,
    /// Whether the prediction is not finite although the deep state is.
    pub(super) diverged: bool,
    /// The token, or why the row gets none while the other rows go on; `None` before the row is selected or has failed.
    pub(super) choice: Option<Result<Choice, RowError>>,
}

impl<'a> RowState<'a> {
    pub(super) fn new(input: &'a StepRow<'a>) -> Self {
        let steering = match (input.sampling.reweighter().expects(), input.phase) {
            (Expects::OtherModel, _) => Steering::Contrasted,
            (Expects::Distiller, Phase::Decode) => Steering::Steered,
            (Expects::Distiller, Phase::FirstToken) => Steering::FirstToken,
            (Expects::Nothing, _) => Steering::Off,
        };
        Self {
            input,
            steering,
            candidates: None,
            unsteered: None,
            novelty: None,
            diverged: false,
            choice: None,
        }
    }

    /// Whether a distiller predicts the row's deep state, and learns from it.
    pub(super) fn has_distiller(&self) -> bool {
        matches!(self.steering, Steering::Steered | Steering::Warming | Steering::NotFinite)
    }

    /// Fills the pool: the tokens that the row's first filter could keep. Leaves `logits` as they were.
    pub(super) fn pool(&mut self, logits: &mut [f32]) {
        match self.input.sampling.pool(&self.input.context(), logits, self.input.allowed) {
            Ok(candidates) => self.candidates = Some(candidates),
            Err(error) => self.choice = Some(Err(error)),
        }
    }

    pub(super) fn filter(&mut self) {
        if let Some(candidates) = &mut self.candidates {
            self.input.sampling.filter(&self.input.context(), candidates);
        }
    }

    /// Gives every candidate its expected logit, on the scale of its score, from its place and token. Says whether all
    /// of them are finite.
    pub(super) fn set_expected(&mut self, logit: impl Fn(usize, TokenId) -> f32) -> bool {
        let divisor = self.input.divisor();
        match &mut self.candidates {
            Some(candidates) => candidates.set_expected(|at, token| logit(at, token) / divisor),
            None => false,
        }
    }

    /// Gives every candidate its new score, where the row's reweighter has what it needs.
    pub(super) fn reweight(&mut self) {
        let Some(candidates) = &mut self.candidates else {
            return;
        };
        let reweighted = match self.steering {
            Steering::Steered => {
                self.unsteered = would_choose(self.input, candidates);
                true
            }
            Steering::Contrasted => true,
            // A reweighter that expects nothing: it has all it needs, but a prompt's own token is left alone.
            Steering::Off => self.input.phase == Phase::Decode,
            _ => false,
        };
        if reweighted {
            self.input.sampling.reweighter().reweight(&self.input.context(), candidates);
        }
    }

    /// Chooses the row's token. `logits` are those of the whole vocabulary.
    pub(super) fn select(&mut self, logits: &[f32]) {
        let Some(candidates) = &self.candidates else {
            return;
        };
        self.choice = Some(choose(self.input, candidates, self.novelty, logits));
    }
}

/// One of the candidates.
fn choose(
    row: &StepRow<'_>,
    candidates: &Candidates,
    novelty: Option<Novelty>,
    logits: &[f32],
) -> Result<Choice, RowError> {
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
        novelty,
        code: code.or(row.code),
    })
}

/// The token that the row's random number or code chooses from the candidates as they are; `None` where the row has no
/// code to choose with, which [`choose`] reports.
///
/// Cost: one exponential per candidate.
fn would_choose(row: &StepRow<'_>, candidates: &Candidates) -> Option<TokenId> {
    row.chooser().ok().map(|chooser| select(candidates, chooser).token)
}

/// Log-probability of a token under the whole row. A mask may have hidden logits that are not numbers from the candidates,
/// and they count here.
fn log_prob_under(logits: &[f32], token: TokenId) -> Result<f32, RowError> {
    let log_prob = (f64::from(logits[token as usize]) - log_sum_exp(logits)) as f32;
    let is_bad = |logit: &f32| logit.is_nan() || *logit == f32::INFINITY;
    match logits.iter().position(is_bad) {
        Some(bad) => Err(RowError::NotANumber { token: bad as TokenId, got: logits[bad] }),
        None => Ok(log_prob),
    }
}

/// The logits of several rows on the host.
#[derive(Default)]
pub(super) struct Logits {
    values: Vec<f32>,
    pub(super) vocab: usize,
}

impl Logits {
    /// Reads `[rows, vocab]` from the device.
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

/// Numbers that have come from the device.
pub(super) fn host(data: TensorData) -> Result<Vec<f32>, StepError> {
    data.try_into_vec::<f32>().map_err(|error| StepError::Execution(format!("{error:?}")))
}
