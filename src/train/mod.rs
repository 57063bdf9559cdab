//! Online learning: many small networks, with one update each per step.

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
mod state;
mod trainer;
mod update;

pub(crate) use adaptive::AdaptiveTrainer;
pub(crate) use apart::ApartSlots;
pub use background::TrainingWorker;
pub(crate) use background::{BackgroundTrainer, spawn};
pub use config::{SlotPath, Staleness, TrainRows, TrainingConfig};
pub use error::TrainError;
pub(crate) use inline::InlineTrainer;
pub use optimizer::{LossReduction, OptimizerConfig, Schedule, UpdateRule};
pub(crate) use slots::{Misfit, SeparateSlots, SlotTensors, Slots};
pub(crate) use stacked::StackedSlots;
pub(crate) use state::{ExportedSlot, Learned, SlotState, TrainerState};
pub(crate) use trainer::{OnlineTrainer, Prediction};
pub use update::{Learner, Update};
