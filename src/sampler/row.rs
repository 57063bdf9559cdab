//! One row of a step, from logits to a token.

use burn::tensor::{DType, Tensor, TensorData};

use super::{Choice, Novelty, Phase, StepRow};
use crate::{
    candidates::{Candidates, best_tokens, check_numbers, log_sum_exp},
    error::RowError,
    id::TokenId,
    novelty::Expects,
    sampler::error::StepError,
    select::{Selected, select},
    telemetry::Steering,
};

/// The state of one row during a step. Every stage reads what the previous stages have stored here.
pub(super) struct RowState<'a> {
    pub(super) input: &'a StepRow<'a>,
    /// Whether the row is steered, and if not, why. Set when the step begins, from the row's reweighter and phase.
    /// Changed later if the distiller has had too few updates, and after that if a value is not finite.
    pub(super) steering: Steering,
    /// The remaining tokens; `None` before the pool is filled and for a row that has failed.
    pub(super) candidates: Option<Candidates>,
    /// The token that the same random number would have chosen without steering.
    pub(super) unsteered: Option<TokenId>,
    /// Distance between the deep state and the predicted one; `None` if nothing was predicted or a value is not
    /// finite.
    pub(super) novelty: Option<Novelty>,
    /// Whether the prediction is not finite although the deep state is.
    pub(super) diverged: bool,
    /// The chosen token, or the error of the row, which does not affect other rows; `None` until the row is selected
    /// or fails.
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

    /// Whether a distiller predicts the row's deep state and learns from it.
    pub(super) fn has_distiller(&self) -> bool {
        matches!(self.steering, Steering::Steered | Steering::Untrained | Steering::NotFinite)
    }

    /// Fills the pool: the tokens that the row's first filter could keep. `logits` are unchanged on return.
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

    /// Sets the expected logit of every candidate, from its index and token, divided by the same divisor as its
    /// score. Returns whether all of them are finite.
    pub(super) fn set_expected(&mut self, logit: impl Fn(usize, TokenId) -> f32) -> bool {
        // Both logits are divided by the same number. If only the reference were, the meaning of β would depend on the
        // temperature.
        let divisor = self.input.divisor();
        match &mut self.candidates {
            Some(candidates) => candidates.set_expected(|at, token| logit(at, token) / divisor),
            None => false,
        }
    }

    /// Sets the new score of every candidate, if the row's reweighter has what it needs.
    pub(super) fn reweight(&mut self) {
        let Some(candidates) = &mut self.candidates else {
            return;
        };
        let reweighted = match self.steering {
            Steering::Steered => {
                // Before the scores change: this is the choice without steering.
                self.unsteered = would_choose(self.input, candidates);
                true
            }
            Steering::Contrasted => true,
            // A reweighter that expects nothing needs no input, but as with steering, the first token is not
            // reweighted.
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

/// Chooses one of the candidates.
fn choose(
    row: &StepRow<'_>,
    candidates: &Candidates,
    novelty: Option<Novelty>,
    logits: &[f32],
) -> Result<Choice, RowError> {
    // A filter or a reweighter may have refused the row. An invalid score was not stored, so the scores do not show
    // it.
    if let Some(refused) = candidates.refused() {
        return Err(refused);
    }
    let Selected { token, log_prob, code } = select(candidates, row.chooser()?)?;
    let (reference_log_prob, top_log_probs) = if row.wants_reference_log_prob {
        let (log_prob, top) = log_probs_under(logits, token, row.top_log_probs)?;
        (Some(log_prob), top)
    } else {
        (None, Vec::new())
    };
    Ok(Choice {
        token,
        log_prob,
        reference_log_prob,
        top_log_probs,
        candidates: candidates.len(),
        novelty,
        // A row that does not use its code keeps it.
        code: code.or(row.code),
    })
}

/// The token that the row's random number, code or custom rule chooses from the candidates with their current scores.
/// `None` if the row lacks its code or the rule fails, which [`choose`] reports.
///
/// Cost: one exponential per candidate.
fn would_choose(row: &StepRow<'_>, candidates: &Candidates) -> Option<TokenId> {
    let selected = row.chooser().and_then(|chooser| select(candidates, chooser));
    selected.ok().map(|selected| selected.token)
}

/// Log-probabilities of a token and of the `top` best ones under all logits of the row, in nats. Logits that are not
/// numbers are an error here even if a mask excluded them from the candidates.
fn log_probs_under(
    logits: &[f32],
    token: TokenId,
    top: usize,
) -> Result<(f32, Vec<(TokenId, f32)>), RowError> {
    check_numbers(logits)?;
    let total = log_sum_exp(logits);
    let log_prob = |token: TokenId| (f64::from(logits[token as usize]) - total) as f32;
    let top = best_tokens(logits, top).into_iter().map(|token| (token, log_prob(token)));
    Ok((log_prob(token), top.collect()))
}

/// The logits of several rows on the host.
#[derive(Default)]
pub(super) struct Logits {
    values: Vec<f32>,
    pub(super) vocab: usize,
}

impl Logits {
    /// Logits that are on the host already, `[rows, vocab]`.
    pub(super) fn new(values: Vec<f32>, rows: usize) -> Result<Self, StepError> {
        let vocab = values.len() / rows.max(1);
        if values.len() != rows * vocab {
            return Err(StepError::Shape {
                what: "logits",
                expected: vec![rows, vocab],
                got: vec![values.len()],
            });
        }
        Ok(Self { values, vocab })
    }

    /// Copies logits, `[rows, vocab]`, from the device to the host as `f32`.
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

/// The `f32` values of data that was read from the device.
pub(super) fn host(data: TensorData) -> Result<Vec<f32>, StepError> {
    data.try_into_vec::<f32>().map_err(|error| StepError::Device(format!("{error:?}")))
}
