//! The step: predict, pool, filter, expect, reweight, select, learn.

use burn::tensor::{Device, Tensor};

use crate::{
    candidates::TokenMask,
    draw::DrawKey,
    error::{RowError, StepError, TrainError},
    hidden::HiddenStates,
    id::{RowId, TokenId},
    lm_head::LmHead,
    sampling::Sampling,
    telemetry::Counters,
};

/// Where a row stands in its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The logits come from the prompt's last position: neither steered nor learned.
    FirstToken,
    /// The logits come from a token that this loop has chosen.
    Decode,
}

/// One row of a step, by name.
#[derive(Clone, Copy, Debug)]
pub struct StepRow<'a> {
    /// Whose row it is.
    pub id: RowId,
    /// Whether its logits come from the prompt or from a chosen token.
    pub phase: Phase,
    /// The completion's random stream.
    pub draw: DrawKey,
    /// The completion so far, without the prompt; its length is the position of the token to be chosen.
    pub generated: &'a [TokenId],
    /// How to choose the token.
    pub sampling: &'a Sampling,
    /// The tokens allowed here; `None` allows all of them.
    pub allowed: Option<&'a TokenMask>,
    /// Whether to compute [`Choice::reference_log_prob`], which reads the whole vocabulary once more.
    pub wants_reference_log_prob: bool,
}

/// What one forward pass of the model gave, for every row that wants a token.
pub struct StepInput<'a> {
    /// The rows, in the order of the tensors' first dimension.
    pub rows: &'a [StepRow<'a>],
    /// The model's logits, `[rows, vocab]`, any floating-point type.
    pub logits: Tensor<2>,
    /// The hidden states of the same rows. Needed as soon as one row in [`Phase::Decode`] is steered.
    pub hidden: Option<HiddenStates>,
    /// The model's head.
    pub lm_head: &'a dyn LmHead,
}

/// How far the model departed from what the distiller expected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Novelty {
    /// `‖deep − expected deep‖`
    pub error: f32,
    /// `‖deep‖`
    pub deep: f32,
}

impl Novelty {
    /// The error in units of the deep state's own length.
    pub fn relative(&self) -> f32 {
        self.error / self.deep
    }
}

/// The token chosen for a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The token.
    pub token: TokenId,
    /// Log-probability of the token in the distribution it was drawn from, in nats: after temperature, filters and
    /// reweighting. For a greedy row: at temperature 1.
    pub log_prob: f32,
    /// Log-probability of the token under the model as it is (temperature 1, no filter, masks not applied), in nats,
    /// where the row asked for it.
    pub reference_log_prob: Option<f32>,
    /// How many candidates the filters left.
    pub candidates: usize,
    /// The novelty of the context; `None` where the row was not steered.
    pub novelty: Option<Novelty>,
}

/// What a step gave.
#[derive(Clone, Debug)]
pub struct StepOutput {
    /// One token per row, in the order of the input's rows; a row that could not be given one says why.
    pub choices: Vec<Result<Choice, RowError>>,
    /// Optimizer steps done, one for each distiller that had rows.
    pub updates: usize,
}

/// Chooses tokens and learns from them.
#[derive(Debug)]
pub struct Sampler {
    counters: Counters,
}

impl Sampler {
    /// Makes room for a row's request, so that its prompt's distiller stays while the request waits for its turn.
    /// Optional: the first step that has the row does the same.
    pub fn begin(&mut self, row: RowId) {
        todo!()
    }

    /// Says that a request has ended. A distiller that no request needs any more is dropped, with its optimizer state.
    pub fn release(&mut self, row: RowId) {
        todo!()
    }

    /// Forgets all distillers and counters.
    pub fn reset(&mut self) {
        todo!()
    }

    /// Totals since the beginning or the last reset.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Checks that steering did something.
    ///
    /// # Errors
    ///
    /// [`TrainError::NothingLearned`] when rows were there to be learned and no update happened.
    pub fn finish(&mut self) -> Result<(), TrainError> {
        todo!()
    }

    /// Chooses a token for every row, then learns from the step.
    ///
    /// # Errors
    ///
    /// [`StepError`] when the step as a whole does not fit together; what is wrong with one row is in its place in
    /// [`StepOutput::choices`].
    pub fn step(&mut self, input: StepInput<'_>) -> Result<StepOutput, StepError> {
        todo!()
    }
}
