//! Linear layer with its weight in the layout of checkpoints.

use burn::tensor::{DType, Tensor};

use crate::host::times_transposed;

/// `x·Wᵀ + b` with `W` of shape `[out, in]`. Checkpoints use this layout, and with it the product of a single row is
/// limited only by memory bandwidth.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
}

impl Linear {
    pub(super) fn new(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Self {
        Self { weight, bias }
    }

    /// `W`, `[out, in]`.
    pub(super) fn weight(&self) -> &Tensor<2> {
        &self.weight
    }

    /// Casts the weights to another precision.
    pub(super) fn cast(self, dtype: DType) -> Self {
        Self { weight: self.weight.cast(dtype), bias: self.bias.map(|bias| bias.cast(dtype)) }
    }

    /// Maps `[rows, in]` to `[rows, out]`.
    pub(super) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let y = times_transposed(x, &self.weight);
        match &self.bias {
            Some(bias) => y + bias.clone().unsqueeze(),
            None => y,
        }
    }
}
