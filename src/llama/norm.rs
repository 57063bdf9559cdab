//! Division by the root mean square.

use burn::tensor::{DType, Tensor};

/// `x / √(mean(x²) + ε) · weight` over the last dimension (Zhang and Sennrich, arXiv 1910.07467).
///
/// The mean is taken in `f32` whatever the model's precision: squares overflow `f16`.
#[derive(Clone, Debug)]
pub(super) struct RmsNorm {
    weight: Tensor<1>,
    eps: f32,
}

impl RmsNorm {
    pub(super) fn new(weight: Tensor<1>, eps: f32) -> Self {
        Self { weight, eps }
    }

    /// The same norm for states of another precision.
    pub(super) fn cast(self, dtype: DType) -> Self {
        Self { weight: self.weight.cast(dtype), ..self }
    }

    pub(super) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let dtype = x.dtype();
        let x = if dtype == DType::F32 { x } else { x.cast(DType::F32) };
        let mean_square = x.clone().square().mean_dim(D - 1);
        let normed = x / mean_square.add_scalar(self.eps).sqrt();
        let normed = if dtype == DType::F32 { normed } else { normed.cast(dtype) };
        normed * self.weight.clone().unsqueeze()
    }
}
