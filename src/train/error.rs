//! Errors of online learning.

use thiserror::Error;

/// Online learning failed, or made no update.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A distiller's prediction has the wrong shape.
    #[error("distiller: expected a prediction of shape {expected:?}, got {got:?}")]
    Prediction {
        /// The shape of the rows, `[rows, d_model]`.
        expected: Vec<usize>,
        /// The shape of the prediction.
        got: Vec<usize>,
    },
    /// A stacked distiller's gradients do not have the shapes of its parameters.
    #[error("stacked distiller: expected gradients of shapes {expected:?}, got {got:?}")]
    Gradients {
        /// The shapes of the parameters.
        expected: Vec<[usize; 3]>,
        /// The shapes of the gradients.
        got: Vec<[usize; 3]>,
    },
    /// The two factors of a stacked distiller's gradient have shapes that cannot be multiplied.
    #[error(
        "stacked distiller: gradient {parameter}: expected factors with the same slots and rows, got inputs \
         {inputs:?} and upstream {upstream:?}"
    )]
    GradientFactors {
        /// The index of the parameter.
        parameter: usize,
        /// The shape of the first factor, `[slots, rows, a]`.
        inputs: [usize; 3],
        /// The shape of the second factor, `[slots, rows, b]`.
        upstream: [usize; 3],
    },
    /// The background worker has ended: its distiller panicked, or its thread was lost. Every later call returns the
    /// first such error again.
    #[error("background learning: expected a running worker, got {got}")]
    Worker {
        /// What happened to the worker.
        got: String,
    },
    /// Steering was on and there were rows to learn from, but no update was made.
    #[error(
        "online learning: expected updates from {eligible} eligible rows, got none ({skipped} rows skipped as \
         not finite)"
    )]
    NothingLearned {
        /// The number of rows that should have been learned from.
        eligible: u64,
        /// The number of those rows that were skipped because their hidden states were not finite.
        skipped: u64,
    },
    /// More than half of the rows were skipped, or more than half of the updates were undone because their distiller
    /// diverged. Most of the tokens were then chosen with a distiller that had learned little or nothing. If the
    /// model's hidden states are finite, the learning rate is too high.
    #[error(
        "online learning: expected most of {eligible} eligible rows to be learned from and most of {updates} updates \
         to be kept, got {skipped} rows skipped as not finite and {undone} updates undone by restarts"
    )]
    MostlyLost {
        /// The number of rows that should have been learned from.
        eligible: u64,
        /// The number of those rows that were skipped because a value was not finite.
        skipped: u64,
        /// The number of updates, with those on prompts.
        updates: u64,
        /// The number of those updates that were undone by a restart.
        undone: u64,
    },
}
