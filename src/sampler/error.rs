//! Errors of a step as a whole.

use burn::tensor::ExecutionError;
use thiserror::Error;

use crate::{causal_lm::ModelError, hidden::HiddenError, id::CompletionId, train::TrainError};

/// A step that failed as a whole. An error of a single row is a [`RowError`](crate::errors::RowError) instead.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StepError {
    /// A tensor or list does not have one row for each row of the step.
    #[error("{what}: expected {expected} rows, got {got}")]
    RowCount {
        /// The tensor or list.
        what: &'static str,
        /// Number of rows of the step.
        expected: usize,
        /// Number of rows of the tensor or list.
        got: usize,
    },
    /// A tensor has the wrong shape.
    #[error("{what}: expected shape {expected:?}, got {got:?}")]
    Shape {
        /// The tensor.
        what: &'static str,
        /// The required shape.
        expected: Vec<usize>,
        /// The actual shape.
        got: Vec<usize>,
    },
    /// A tensor has an unsupported element type.
    #[error("{what}: expected {expected}, got {got}")]
    DType {
        /// The tensor.
        what: &'static str,
        /// The required type.
        expected: &'static str,
        /// The actual type.
        got: String,
    },
    /// Tensors live on different devices.
    #[error("{what}: expected device {expected}, got {got}")]
    DeviceMismatch {
        /// The tensor.
        what: &'static str,
        /// The required device.
        expected: String,
        /// The actual device.
        got: String,
    },
    /// A completion has more than one row in the step.
    #[error("{completion}: expected one row of it in a step, got two")]
    DuplicateCompletion {
        /// The completion.
        completion: CompletionId,
    },
    /// A row must be steered, but the step has no hidden states.
    #[error(
        "hidden states: expected them for {completion}, whose reweighter uses expected logits, got none"
    )]
    HiddenMissing {
        /// The completion of the first such row.
        completion: CompletionId,
    },
    /// A row contrasts with another model, but the step does not have that model's logits.
    #[error(
        "logits of the other model: expected them for {completion}, whose reweighter contrasts with them, got none"
    )]
    OtherLogitsMissing {
        /// The completion of the first such row.
        completion: CompletionId,
    },
    /// The hidden states are inconsistent, or the model did not record them correctly.
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
    Device(String),
}

impl From<ExecutionError> for StepError {
    fn from(error: ExecutionError) -> Self {
        Self::Device(error.to_string())
    }
}
