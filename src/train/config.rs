//! Settings of online learning: when a bank learns, from which rows, and on which path.

use serde::{Deserialize, Serialize};

use crate::error::ConfigError;

/// When a bank learns, from which rows, and on which path. The defaults are the paper's: every row at every step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TrainingConfig {
    /// The rows that distillers learn from.
    pub train_rows: TrainRows,
    /// The number of steps whose rows make one update of a slot, at least 1. Above 1, the rows of several steps form
    /// one mini-batch. Each slot counts its own steps. Rows that are still waiting for their update when the slot's
    /// last completion ends are not learned from.
    pub update_every: usize,
    /// When an update becomes visible to predictions.
    pub staleness: Staleness,
    /// How the predictions and updates of many slots are computed.
    pub slot_path: SlotPath,
    /// Whether a distiller that has diverged starts again from its initial parameters, with an empty optimizer state
    /// and no updates. A distiller has diverged when no row of a step has a finite prediction from it, although the
    /// rows' hidden states are finite. [`Counters::restarts`](crate::Counters::restarts) counts them. Without it, the
    /// rows of a diverged distiller are sampled without steering until their completions end. On by default.
    pub restart_diverged: bool,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            train_rows: TrainRows::All,
            update_every: 1,
            staleness: Staleness::Inline,
            slot_path: SlotPath::Automatic,
            restart_diverged: true,
        }
    }
}

impl TrainingConfig {
    /// Returns the paper's settings, which are the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the rows that distillers learn from.
    pub fn with_train_rows(mut self, train_rows: TrainRows) -> Self {
        self.train_rows = train_rows;
        self
    }

    /// Sets the number of steps whose rows make one update.
    pub fn with_update_every(mut self, steps: usize) -> Self {
        self.update_every = steps;
        self
    }

    /// Sets when an update becomes visible to predictions.
    pub fn with_staleness(mut self, staleness: Staleness) -> Self {
        self.staleness = staleness;
        self
    }

    /// Sets how the predictions and updates of many slots are computed.
    pub fn with_slot_path(mut self, slot_path: SlotPath) -> Self {
        self.slot_path = slot_path;
        self
    }

    /// Sets whether a distiller that has diverged starts again.
    pub fn with_restart_diverged(mut self, restart_diverged: bool) -> Self {
        self.restart_diverged = restart_diverged;
        self
    }

    /// Checks every setting.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] for the first setting that is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::at_least_one("update_every", self.update_every)
    }
}

/// The rows that distillers learn from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TrainRows {
    /// Every steered row: what one completion has said is no longer novel for the others. The paper's choice.
    #[default]
    All,
    /// For each prompt, only the running row with the smallest completion number. This is cheaper, and is what the
    /// reference implementation does. The other completions are steered away from that completion, but not from each
    /// other.
    FirstPerPrompt,
}

/// When an update becomes visible. Both variants are deterministic: the same seed gives the same tokens on every run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Staleness {
    /// The update of step `t` is done before step `t + 1` predicts.
    #[default]
    Inline,
    /// The update of step `t` runs on a separate thread during the model's next forward pass, so step `t + 1` predicts
    /// with the update of step `t − 1`. For machines with a stream or cores to spare; on two cores it gains nothing.
    Background,
}

/// How the predictions and updates of many slots are computed. The paths agree to rounding, and each is deterministic;
/// docs/design/bank.md has their cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SlotPath {
    /// [`Apart`](Self::Apart) on flex, [`Stacked`](Self::Stacked) on every other device.
    #[default]
    Automatic,
    /// All slots in one batched product with analytic gradients, if the distiller has a [stacked
    /// form](crate::distillers::Distiller::stacked); otherwise one by one. The number of kernel launches does not
    /// depend on the number of slots, which suits a GPU.
    Stacked,
    /// One slot after the other with the same analytic gradients, each in its own memory; one by one if the distiller
    /// has no stacked form. Suits a CPU, where launches are cheap and large tensors are expensive.
    Apart,
    /// One slot after the other with autodiff. Every distiller supports it, and it is the test oracle of the other
    /// two.
    OneByOne,
}
