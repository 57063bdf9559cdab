//! When a bank learns, from which rows, and on which path.

use serde::{Deserialize, Serialize};

use crate::error::ConfigError;

/// When a bank learns, from which rows, and on which path. The defaults are the paper's: every row, every step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TrainingConfig {
    /// The rows that distillers learn from.
    pub train_rows: TrainRows,
    /// Steps whose rows make one update of a slot, at least 1: above 1 a mini-batch of tokens is gathered. Each slot
    /// counts its own steps. Rows that are still being gathered when their slot's last request ends are not learned.
    pub update_every: usize,
    /// When an update becomes visible.
    pub staleness: Staleness,
    /// How the predictions and updates of many slots are computed.
    pub slot_path: SlotPath,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            train_rows: TrainRows::All,
            update_every: 1,
            staleness: Staleness::Inline,
            slot_path: SlotPath::Automatic,
        }
    }
}

impl TrainingConfig {
    /// The paper's settings, which are the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the rows that distillers learn from.
    pub fn with_train_rows(mut self, train_rows: TrainRows) -> Self {
        self.train_rows = train_rows;
        self
    }

    /// Sets the steps whose rows make one update.
    pub fn with_update_every(mut self, steps: usize) -> Self {
        self.update_every = steps;
        self
    }

    /// Sets when an update becomes visible.
    pub fn with_staleness(mut self, staleness: Staleness) -> Self {
        self.staleness = staleness;
        self
    }

    /// Sets how the predictions and updates of many slots are computed.
    pub fn with_slot_path(mut self, slot_path: SlotPath) -> Self {
        self.slot_path = slot_path;
        self
    }

    /// Checks every setting.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] for the first that cannot work.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::at_least_one("update_every", self.update_every)
    }
}

/// The rows that distillers learn from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TrainRows {
    /// Every steered row: what one completion has said is no longer new to the others. The paper's.
    #[default]
    All,
    /// Of each prompt, the row with the smallest request id that runs: cheaper, and what the reference implementation
    /// does. The other completions are steered away from what that one says, and not from each other.
    FirstPerPrompt,
}

/// When an update becomes visible. Both are exact: the same seed gives the same tokens on every run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Staleness {
    /// The update of step `t` is done before step `t + 1` predicts.
    #[default]
    Inline,
    /// The update of step `t` runs on a thread of its own, during the model's next forward pass: step `t + 1` predicts
    /// with the update of step `t − 1`. For machines with a stream or cores to spare; on two cores it gains nothing.
    Background,
}

/// How the predictions and updates of many slots are computed. The results agree to rounding, and each path is
/// deterministic; docs/design/bank.md says what they cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SlotPath {
    /// [`Apart`](Self::Apart) on flex, [`Stacked`](Self::Stacked) on every other device.
    #[default]
    Automatic,
    /// All slots in one batched product with analytic gradients, where the distiller has a [stacked
    /// form](crate::distillers::Distiller::stacked); one by one where it has none. As many launches for many slots as
    /// for one: for a GPU.
    Stacked,
    /// One slot after the other with the same analytic gradients, in memory of its own; one by one where the distiller
    /// has no stacked form. For a CPU, where launches cost little and large tensors much.
    Apart,
    /// One slot after the other, with autodiff: what every distiller can do, and the oracle of the other two.
    OneByOne,
}
