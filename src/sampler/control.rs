//! Hook for experiments on the distiller's prediction error.

use std::fmt::Debug;

use burn::tensor::Tensor;

use crate::{candidates::RowContext, sampler::error::StepError};

/// Replaces the expected states of a step after the distillers have predicted them and before scores are reweighted.
///
/// For experiments that test whether the distiller's actual error matters: a control substitutes another error `e'`
/// for `e = deep − ĥ`, so that the expected state becomes `deep − e'`. It affects only the reweighting of scores, not
/// the learning: the distillers' predictions, the reported novelty ([`Choice::novelty`](crate::Choice::novelty), the
/// counters) and the updates are computed as without a control. A reweighter cannot do this, because it sees two
/// numbers per candidate and no hidden states.
///
/// ```
/// use burn::tensor::Tensor;
/// use esamp::{errors::StepError, filters::RowContext, unstable::ExpectedControl};
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
/// Set it with [`Sampler::set_expected_control`](crate::Sampler::set_expected_control). The package `esamp-eval`
/// contains the controls of this repository's evaluations.
pub trait ExpectedControl: Debug + Send {
    /// Returns the expected states to use, `[rows, d_model]`, given the deep and the predicted states of the same
    /// shape; all are `f32`. `rows` are the rows that have a distiller, in the order of the tensors' first dimension.
    ///
    /// # Errors
    ///
    /// [`StepError::Device`] when the device fails. The step then fails too, and nothing is learned.
    fn expected(
        &mut self,
        rows: &[RowContext<'_>],
        deep: &Tensor<2>,
        predicted: Tensor<2>,
    ) -> Result<Tensor<2>, StepError>;
}
