//! Online learning: many small networks, one update each per step.

mod adaptive;
mod apart;
mod background;
mod config;
mod error;
mod evidence;
mod inline;
mod optimizer;
mod rule;
mod slots;
mod stacked;
mod update;

use std::fmt::Debug;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

pub(crate) use adaptive::AdaptiveTrainer;
pub(crate) use apart::ApartSlots;
pub use background::TrainingWorker;
pub(crate) use background::{BackgroundTrainer, spawn};
pub use config::{SlotPath, Staleness, TrainRows, TrainingConfig};
pub use error::TrainError;
pub(crate) use inline::{InlineTrainer, SlotState, TrainerState};
pub use optimizer::{LossReduction, OptimizerConfig, Schedule, UpdateRule};
pub(crate) use slots::{Misfit, SeparateSlots, SlotTensors, Slots};
pub(crate) use stacked::StackedSlots;
pub use update::{Learner, Update};

use crate::{hidden::HiddenStates, id::RowId};

/// What the distillers expect of the rows of a step.
#[derive(Clone, Debug)]
pub(crate) struct Prediction {
    /// The expected deep states, `[rows, d_model]`.
    pub(crate) expected: Tensor<2>,
    /// What it was mixed from, where it was: each `[rows, d_model]`. Handed back to [`OnlineTrainer::learn`], which can
    /// then tell how well each has predicted.
    pub(crate) parts: Vec<Tensor<2>>,
}

/// What a call of [`OnlineTrainer::learn`] has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Learned {
    /// Optimizer steps, over all distillers.
    pub(crate) updates: usize,
    /// Rows that they learned from.
    pub(crate) rows: usize,
    /// Distillers that have started again from what was fitted to their first rows.
    pub(crate) fits: usize,
    /// Distillers that were to be fitted and could not be.
    pub(crate) fits_failed: usize,
}

impl std::ops::AddAssign for Learned {
    fn add_assign(&mut self, other: Self) {
        self.updates += other.updates;
        self.rows += other.rows;
        self.fits += other.fits;
        self.fits_failed += other.fits_failed;
    }
}

/// Owns the distillers: predicts with them and trains them.
///
/// Not for users to implement: when the update of step `t` becomes visible is part of a sampler's determinism, and each
/// trainer here guarantees it exactly. Predictions never see the update of their own step.
pub(crate) trait OnlineTrainer: Debug + Send {
    /// Makes room for a request.
    fn begin(&mut self, row: RowId);

    /// Ends a request.
    fn release(&mut self, row: RowId);

    /// Whether a request has begun and not ended.
    fn has(&self, row: RowId) -> bool;

    /// Forgets everything that was learned.
    fn reset(&mut self);

    /// Number of distillers in use.
    fn distillers(&self) -> usize;

    /// Bytes of the distillers in use: parameters and optimizer states.
    fn state_bytes(&self) -> usize;

    /// Updates that the distiller of a row has had, as far as predictions see them.
    fn updates(&self, row: RowId) -> u64;

    /// The requests that have begun and not ended. A prompt that does not matter for finding the distiller is 0.
    fn requests(&self) -> Vec<RowId>;

    /// Rows that have been handed over and are still to be learned.
    fn waiting_rows(&self) -> usize;

    /// The expected deep states of `rows` from their shallow ones, `[rows, d_model]`.
    fn predict(&mut self, rows: &[RowId], shallow: &Tensor<2>) -> Result<Prediction, TrainError>;

    /// One update of each distiller that has rows here. `parts` are those of the rows' [`Prediction`]. Says what has been
    /// done by now: a trainer that works in the background reports an update when it is done.
    fn learn(
        &mut self,
        rows: &[RowId],
        hidden: &HiddenStates,
        parts: &[Tensor<2>],
    ) -> Result<Learned, TrainError>;

    /// `updates` updates of the distiller of `row` on other hidden states than its own: those of its prompt.
    fn warm_up(
        &mut self,
        row: RowId,
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
