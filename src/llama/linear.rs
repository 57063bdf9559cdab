//! A linear map with its matrix the way checkpoints keep it.

use burn::tensor::{DType, Tensor};

use crate::host::times_transposed;

/// `x·Wᵀ + b` with `W` `[out, in]`: the layout of checkpoints, and the one in which a single row runs at the speed of
/// memory.
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

    /// The same map in another precision.
    pub(super) fn cast(self, dtype: DType) -> Self {
        Self { weight: self.weight.cast(dtype), bias: self.bias.map(|bias| bias.cast(dtype)) }
    }

    /// `[rows, in]` to `[rows, out]`.
    pub(super) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let y = times_transposed(x, &self.weight);
        match &self.bias {
            Some(bias) => y + bias.clone().unsqueeze(),
            None => y,
        }
    }
}
