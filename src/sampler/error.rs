//! Steps that fail as a whole.

use burn::tensor::ExecutionError;
use thiserror::Error;

use crate::{causal_lm::ModelError, hidden::HiddenError, id::CompletionId, train::TrainError};

/// A step that could not be done at all. What is wrong with a single row is a [`RowError`](crate::errors::RowError) instead.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StepError {
    /// Two things that must have the same number of rows do not.
    #[error("{what}: expected {expected} rows, got {got}")]
    RowCount {
        /// What was counted.
        what: &'static str,
        /// Rows of the step.
        expected: usize,
        /// Rows that came.
        got: usize,
    },
    /// A tensor has the wrong shape.
    #[error("{what}: expected shape {expected:?}, got {got:?}")]
    Shape {
        /// Which tensor.
        what: &'static str,
        /// The shape that fits.
        expected: Vec<usize>,
        /// The shape that came.
        got: Vec<usize>,
    },
    /// A tensor has an element type that cannot be used.
    #[error("{what}: expected {expected}, got {got}")]
    DType {
        /// Which tensor.
        what: &'static str,
        /// What would fit.
        expected: &'static str,
        /// What came.
        got: String,
    },
    /// Tensors live on different devices.
    #[error("{what}: expected device {expected}, got {got}")]
    Device {
        /// Which tensor.
        what: &'static str,
        /// Where it should be.
        expected: String,
        /// Where it is.
        got: String,
    },
    /// A completion has more than one row in the step.
    #[error("{completion}: expected one row of it in a step, got two")]
    DuplicateCompletion {
        /// The completion.
        completion: CompletionId,
    },
    /// A row is to be steered, but the step came without hidden states.
    #[error(
        "hidden states: expected them for {row}, whose reweighter uses expected logits, got none"
    )]
    HiddenMissing {
        /// The first such row.
        row: CompletionId,
    },
    /// A row is to be contrasted with another model, but the step came without that model's logits.
    #[error(
        "logits of the other model: expected them for {row}, whose reweighter contrasts with them, got none"
    )]
    OtherLogitsMissing {
        /// The first such row.
        row: CompletionId,
    },
    /// Hidden states do not fit together, or the model has not shown them as it should.
    #[error(transparent)]
    Hidden(#[from] HiddenError),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Learning failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The device failed.
    #[error("device: {0}")]
    Execution(String),
}

impl From<ExecutionError> for StepError {
    fn from(error: ExecutionError) -> Self {
        Self::Execution(error.to_string())
    }
}
