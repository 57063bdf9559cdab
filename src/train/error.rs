//! Online learning that fails.

use thiserror::Error;

/// Online learning that could not be done, or was not.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A distiller's prediction has the wrong shape.
    #[error("distiller: expected a prediction of shape {expected:?}, got {got:?}")]
    Prediction {
        /// `[rows, d_model]`.
        expected: Vec<usize>,
        /// What it returned.
        got: Vec<usize>,
    },
    /// A stacked distiller's gradients do not have the shapes of its parameters.
    #[error("stacked distiller: expected gradients of shapes {expected:?}, got {got:?}")]
    Gradients {
        /// Shapes of the parameters.
        expected: Vec<[usize; 3]>,
        /// Shapes of what it returned.
        got: Vec<[usize; 3]>,
    },
    /// A stacked distiller's gradient comes in factors that have no product.
    #[error(
        "stacked distiller: gradient {parameter}: expected factors with the same slots and rows, got inputs {inputs:?} and upstream {upstream:?}"
    )]
    GradientFactors {
        /// Place of the parameter that it belongs to.
        parameter: usize,
        /// The shape of the first factor, `[slots, rows, a]`.
        inputs: [usize; 3],
        /// The shape of the second factor, `[slots, rows, b]`.
        upstream: [usize; 3],
    },
    /// The worker that learns in the background has ended: its distiller panicked, or its thread was lost. What it says
    /// first is said again by every later call.
    #[error("background learning: expected a running worker, got {got}")]
    Worker {
        /// What happened.
        got: String,
    },
    /// Steering was on and rows were there to learn from, but no update happened.
    #[error(
        "online learning: expected updates from {eligible} eligible rows, got none ({skipped} rows skipped as not finite)"
    )]
    NothingLearned {
        /// Rows that were to be learned.
        eligible: u64,
        /// How many of them were skipped because their hidden states were not finite.
        skipped: u64,
    },
}
