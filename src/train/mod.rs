//! Online learning: many small networks, one update each per step.

mod inline;
mod optimizer;
mod update;

use std::fmt::Debug;

use burn::tensor::Tensor;

pub(crate) use inline::InlineTrainer;
pub use optimizer::{OptimizerConfig, UpdateRule};
pub use update::{Learner, Update};

use crate::{error::TrainError, hidden::HiddenStates, id::RowId};

/// Owns the distillers: predicts with them and trains them.
///
/// Not for users to implement: when the update of step `t` becomes visible is part of a sampler's determinism, and each
/// trainer here guarantees it exactly. Predictions never see the update of their own step.
pub(crate) trait OnlineTrainer: Debug + Send {
    /// Makes room for a request.
    fn begin(&mut self, row: RowId);

    /// Ends a request.
    fn release(&mut self, row: RowId);

    /// Forgets everything that was learned.
    fn reset(&mut self);

    /// Number of distillers in use.
    fn distillers(&self) -> usize;

    /// The expected deep states of `rows`, `[rows, d_model]`, from their shallow ones.
    fn predict(&mut self, rows: &[RowId], shallow: &Tensor<2>) -> Result<Tensor<2>, TrainError>;

    /// One update of each distiller that has rows here. Returns the number of updates.
    fn learn(&mut self, rows: &[RowId], hidden: &HiddenStates) -> Result<usize, TrainError>;

    /// The number of updates that the distiller of `row` has had, warm-up included; 0 where there is none yet.
    fn updates(&self, row: RowId) -> u64;

    /// `updates` updates of the distiller of `row` on all positions of its prompt together, seen by the next prediction.
    /// Returns the number of updates. Every position counts, whatever [`learn`](Self::learn) makes of several rows of one
    /// request.
    fn warm_up(
        &mut self,
        row: RowId,
        prompt: &HiddenStates,
        updates: usize,
    ) -> Result<usize, TrainError> {
        self.begin(row);
        let rows = vec![row; prompt.rows()];
        (0..updates).map(|_| self.learn(&rows, prompt)).sum()
    }
}
