//! What a check of a model finds.

use thiserror::Error;

use crate::{causal_lm::ModelError, hidden::HiddenError};

/// What [`check_model`](super::check_model) finds wrong with a model.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelFault {
    /// The prompts do not suffice for the checks.
    #[error("prompts: expected {expected}, got {got}")]
    Prompts {
        /// What the checks need.
        expected: String,
        /// What was given.
        got: String,
    },
    /// A call of the model or its cache failed.
    #[error("{during}: expected no error, got: {source}")]
    Failed {
        /// The call.
        during: &'static str,
        /// The error.
        source: ModelError,
    },
    /// The model does not record its hidden states as a tap expects.
    #[error("{during}: {source}")]
    Hidden {
        /// The forward pass.
        during: &'static str,
        /// What the tap says.
        source: HiddenError,
    },
    /// A shape, a count, a device or an order is not what it should be.
    #[error("{what}: expected {expected}, got {got}")]
    Mismatch {
        /// What was checked.
        what: &'static str,
        /// What it should be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// Numbers that should be equal are not.
    #[error(
        "{what}: expected those of {like}, got others: they differ by up to {difference}, where {allowed} is \
         allowed{}; {hint}",
        .ratio.map_or(String::new(), |ratio| format!(", and are {ratio:.3} times as large"))
    )]
    Differs {
        /// The numbers that were checked.
        what: &'static str,
        /// The numbers that they should be equal to.
        like: &'static str,
        /// The largest difference.
        difference: f32,
        /// The largest difference that rounding may cause.
        allowed: f32,
        /// The factor between the two, if there is one.
        ratio: Option<f32>,
        /// Where to look.
        hint: &'static str,
    },
}
