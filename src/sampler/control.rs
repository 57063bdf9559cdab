//! The seam for experiments on the distiller's error.

use std::fmt::Debug;

use burn::tensor::Tensor;

use crate::{candidates::RowContext, sampler::error::StepError};

/// Replaces the expected states of a step, after the distillers have predicted them and before scores are reweighted
/// with them.
///
/// For experiments that ask whether the distiller's own error matters: a control puts another error `e'` in the place of
/// `e = deep − ĥ`, and the expected state becomes `deep − e'`. It acts on what scores are reweighted with and not on what
/// is learned: distillers predict, are measured ([`Choice::novelty`](crate::Choice::novelty), the counters) and learn as
/// they would without it. A reweighter cannot do this, because it sees two numbers per candidate and no states.
///
/// ```
/// use burn::tensor::Tensor;
/// use esamp::{errors::StepError, filters::RowContext, reweighters::ExpectedControl};
///
/// /// The distiller's error with its sign changed: `e' = −e`.
/// #[derive(Debug)]
/// struct Opposite;
///
/// impl ExpectedControl for Opposite {
///     fn expected(
///         &mut self,
///         _rows: &[RowContext<'_>],
///         deep: &Tensor<2>,
///         predicted: Tensor<2>,
///     ) -> Result<Tensor<2>, StepError> {
///         let error = deep.clone() - predicted;
///         Ok(deep.clone() + error)
///     }
/// }
/// ```
///
/// Set with [`Sampler::set_expected_control`](crate::Sampler::set_expected_control). The package `esamp-eval` has the
/// controls of this repository's evaluations.
pub trait ExpectedControl: Debug + Send {
    /// The expected states to use, `[rows, d_model]`, from the deep and the predicted ones of the same shape; both are
    /// `f32`. `rows` are the rows that have a distiller, in the order of the tensors' first dimension.
    ///
    /// # Errors
    ///
    /// [`StepError::Execution`] when the device fails. The step fails with it, and nothing is learned.
    fn expected(
        &mut self,
        rows: &[RowContext<'_>],
        deep: &Tensor<2>,
        predicted: Tensor<2>,
    ) -> Result<Tensor<2>, StepError>;
}
