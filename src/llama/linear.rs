//! Linear layer with its weight in the layout of checkpoints.

use burn::tensor::{DType, Device, Tensor};

use super::weight::Weight;

/// `x·Wᵀ + b` with `W` of shape `[out, in]`.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    weight: Weight,
    bias: Option<Tensor<1>>,
}

impl Linear {
    pub(super) fn new(weight: Weight, bias: Option<Tensor<1>>) -> Self {
        Self { weight, bias }
    }

    /// `W`, `[out, in]`.
    pub(super) fn weight(&self) -> &Weight {
        &self.weight
    }

    /// Casts the weights to another precision.
    pub(super) fn cast(self, dtype: DType, device: &Device) -> Self {
        Self {
            weight: self.weight.cast(dtype, device),
            bias: self.bias.map(|bias| bias.cast(dtype)),
        }
    }

    /// Maps `[rows, in]` to `[rows, out]`.
    pub(super) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let y = self.weight.times(x);
        match &self.bias {
            Some(bias) => y + bias.clone().unsqueeze(),
            None => y,
        }
    }
}
