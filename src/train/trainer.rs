//! The seam between the sampler and its distillers.

use std::fmt::Debug;

use burn::tensor::Tensor;

use super::{
    error::TrainError,
    slots::Misfit,
    state::{Learned, TrainerState},
};
use crate::{hidden::HiddenStates, id::CompletionId};

/// What the distillers expect of the rows of a step.
#[derive(Clone, Debug)]
pub(crate) struct Prediction {
    /// The expected deep states, `[rows, d_model]`.
    pub(crate) expected: Tensor<2>,
    /// What it was mixed from, where it was: each `[rows, d_model]`. Handed back to [`OnlineTrainer::learn`], which can
    /// then tell how well each has predicted.
    pub(crate) parts: Vec<Tensor<2>>,
}

/// Owns the distillers: predicts with them and trains them.
///
/// Not for users to implement: when the update of step `t` becomes visible is part of a sampler's determinism, and each
/// trainer here guarantees it exactly. Predictions never see the update of their own step.
pub(crate) trait OnlineTrainer: Debug + Send {
    /// Makes room for a request.
    fn begin(&mut self, row: CompletionId);

    /// Ends a request.
    fn release(&mut self, row: CompletionId);

    /// Whether a request has begun and not ended.
    fn has(&self, row: CompletionId) -> bool;

    /// Forgets everything that was learned.
    fn reset(&mut self);

    /// Number of distillers in use.
    fn distillers(&self) -> usize;

    /// Bytes of the distillers in use: parameters and optimizer states.
    fn state_bytes(&self) -> usize;

    /// Updates that the distiller of a row has had, as far as predictions see them.
    fn updates(&self, row: CompletionId) -> u64;

    /// The requests that have begun and not ended.
    fn completions(&self) -> Vec<CompletionId>;

    /// Rows that have been handed over and are still to be learned.
    fn waiting_rows(&self) -> usize;

    /// The expected deep states of `rows` from their shallow ones, `[rows, d_model]`.
    fn predict(
        &mut self,
        rows: &[CompletionId],
        shallow: &Tensor<2>,
    ) -> Result<Prediction, TrainError>;

    /// One update of each distiller that has rows here. `parts` are those of the rows' [`Prediction`]. Says what has
    /// been done by now: a trainer that works in the background reports an update when it is done.
    fn learn(
        &mut self,
        rows: &[CompletionId],
        hidden: &HiddenStates,
        parts: &[Tensor<2>],
    ) -> Result<Learned, TrainError>;

    /// `updates` updates of the distiller of `row` on the hidden states of its prompt, before the row is steered.
    fn warm_up(
        &mut self,
        row: CompletionId,
        hidden: &HiddenStates,
        updates: usize,
    ) -> Result<Learned, TrainError>;

    /// Waits until every update that has been started is done and visible.
    fn finish(&mut self) -> Result<Learned, TrainError>;

    /// Everything that was learned, with no update under way.
    fn export(&mut self) -> Result<TrainerState, TrainError>;

    /// Puts back what [`export`](Self::export) has given.
    fn import(&mut self, state: TrainerState) -> Result<(), Misfit>;
}
