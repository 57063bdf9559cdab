//! RMSNorm.

use burn::tensor::{DType, Tensor};

use crate::host::rms_norm;

/// RMSNorm, `x / √(mean(x²) + ε) · weight` over the last dimension (Zhang and Sennrich, arXiv 1910.07467).
///
/// The mean is computed in `f32` at every precision, because squares overflow `f16`.
#[derive(Clone, Debug)]
pub(super) struct RmsNorm {
    weight: Tensor<1>,
    eps: f32,
}

impl RmsNorm {
    pub(super) fn new(weight: Tensor<1>, eps: f32) -> Self {
        Self { weight, eps }
    }

    /// Casts the weight for states of another precision.
    pub(super) fn cast(self, dtype: DType) -> Self {
        Self { weight: self.weight.cast(dtype), ..self }
    }

    pub(super) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        rms_norm(x, &self.weight, self.eps)
    }
}
