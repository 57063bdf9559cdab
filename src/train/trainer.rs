//! The interface between the sampler and its distillers.

use std::fmt::Debug;

use burn::tensor::Tensor;

use super::{
    error::TrainError,
    slots::Misfit,
    state::{Learned, TrainerState},
};
use crate::{hidden::HiddenStates, id::CompletionId};

/// The distillers' prediction for the rows of a step.
#[derive(Clone, Debug)]
pub(crate) struct Prediction {
    /// The expected deep states, `[rows, d_model]`.
    pub(crate) expected: Tensor<2>,
    /// The predictions that `expected` was mixed from, if it was mixed: `[rows, d_model]` each. They are passed to
    /// [`OnlineTrainer::learn`], which computes the error of each.
    pub(crate) parts: Vec<Tensor<2>>,
}

/// Owns the distillers: predicts with them and trains them.
///
/// Users cannot implement it. When the update of step `t` becomes visible is part of a sampler's determinism, and each
/// trainer here guarantees it exactly. Predictions never see the update of their own step.
pub(crate) trait OnlineTrainer: Debug + Send {
    /// Starts a completion.
    fn begin(&mut self, row: CompletionId);

    /// Ends a completion.
    fn release(&mut self, row: CompletionId);

    /// Whether a completion has begun and has not ended.
    fn has(&self, row: CompletionId) -> bool;

    /// Forgets everything that was learned.
    fn reset(&mut self);

    /// The number of distillers in use.
    fn distillers(&self) -> usize;

    /// The size of the distillers in use in bytes: parameters and optimizer states.
    fn state_bytes(&self) -> usize;

    /// The size in bytes that the distillers of these completions have at most, if no others are in use: parameters,
    /// optimizer states, and the gradients of an update.
    fn bytes_for(&self, completions: &[CompletionId]) -> usize;

    /// The number of updates of a row's distiller that predictions already see.
    fn updates(&self, row: CompletionId) -> u64;

    /// The completions that have begun and have not ended.
    fn completions(&self) -> Vec<CompletionId>;

    /// The number of rows that were passed to `learn` and have not been learned from yet.
    fn waiting_rows(&self) -> usize;

    /// Returns the expected deep states of `rows` from their shallow ones, `[rows, d_model]`.
    fn predict(
        &mut self,
        rows: &[CompletionId],
        shallow: &Tensor<2>,
    ) -> Result<Prediction, TrainError>;

    /// Does one update of each distiller that has rows here. `parts` are those of the rows' [`Prediction`]. Returns
    /// what has been done by now: a background trainer reports an update when it has finished.
    fn learn(
        &mut self,
        rows: &[CompletionId],
        hidden: &HiddenStates,
        parts: &[Tensor<2>],
    ) -> Result<Learned, TrainError>;

    /// Does `updates` updates of the distiller of `row` on the hidden states of its prompt, before the row is steered. A
    /// warm-up may be done in parts; only the first one fits the distiller to the states.
    fn warm_up(
        &mut self,
        row: CompletionId,
        hidden: &HiddenStates,
        updates: usize,
        is_first: bool,
    ) -> Result<Learned, TrainError>;

    /// Restarts the distillers that predicted the rows `failed`, whose predictions are not finite. `fine` are the rows
    /// of the same step with finite predictions: their distillers are kept. `broken` says for each of the
    /// [parts](Prediction::parts) of the prediction, and for each row of `failed`, whether that part is not finite.
    fn restart(
        &mut self,
        failed: &[CompletionId],
        fine: &[CompletionId],
        broken: &[Vec<bool>],
    ) -> Result<Learned, TrainError>;

    /// Waits until every update that was started is done and visible.
    fn finish(&mut self) -> Result<Learned, TrainError>;

    /// Exports everything that was learned, including an update that is done but not yet visible.
    fn export(&mut self) -> Result<TrainerState, TrainError>;

    /// Restores a state that [`export`](Self::export) returned.
    fn import(&mut self, state: TrainerState) -> Result<(), Misfit>;

    /// Adds the slots of another state to those in use, with their members and the evidence about their prompts. No
    /// slot may be in use already. After an error, nothing has changed.
    fn adopt(&mut self, state: TrainerState) -> Result<(), Misfit>;
}
