//! A weight matrix, as numbers or packed.

use std::sync::Arc;

use burn::tensor::{DType, Device, Int, Tensor};

use crate::{
    host::{
        packed::PackedMatrix, packed_rows, packed_times, packed_times_rows_at, packed_to_tensor,
        times_rows_at, times_transposed,
    },
    lm_head::{LmHead, in_dtype_of, without_bias},
};

/// A matrix, `[out, in]`: the layout of checkpoints, with which the product of a single row is limited only by memory
/// bandwidth.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "a model has a few hundred of them")]
pub(super) enum Weight {
    Dense(Tensor<2>),
    /// Packed as in a GGUF file, for `f32` on flex.
    Packed(Arc<PackedMatrix>),
}

impl Weight {
    /// `[out, in]`
    pub(super) fn dims(&self) -> [usize; 2] {
        match self {
            Self::Dense(weight) => weight.dims(),
            Self::Packed(matrix) => matrix.dims(),
        }
    }

    /// The type that it multiplies in.
    pub(super) fn dtype(&self) -> DType {
        match self {
            Self::Dense(weight) => weight.dtype(),
            Self::Packed(_) => DType::F32,
        }
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Dense(weight) => weight.dims().iter().product::<usize>() * weight.dtype().size(),
            Self::Packed(matrix) => matrix.bytes(),
        }
    }

    /// All of its numbers as a tensor.
    pub(super) fn to_tensor(&self, device: &Device) -> Tensor<2> {
        match self {
            Self::Dense(weight) => weight.clone(),
            Self::Packed(matrix) => packed_to_tensor(matrix, device),
        }
    }

    /// Casts to a precision, unpacked.
    pub(super) fn cast(self, dtype: DType, device: &Device) -> Self {
        Self::Dense(self.to_tensor(device).cast(dtype))
    }

    /// `x·Wᵀ`, with `x` `[rows, in]`.
    pub(super) fn times(&self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Dense(weight) => times_transposed(x, weight),
            Self::Packed(matrix) => packed_times(x, matrix),
        }
    }

    /// The rows `picked`, `[n]`: `[n, in]`.
    pub(super) fn rows(&self, picked: Tensor<1, Int>) -> Tensor<2> {
        match self {
            Self::Dense(weight) => weight.clone().select(0, picked),
            Self::Packed(matrix) => packed_rows(matrix, picked),
        }
    }

    /// Whether two matrices have the same numbers.
    pub(super) fn is_equal(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Packed(a), Self::Packed(b)) => a == b,
            (Self::Dense(a), Self::Dense(b)) => {
                a.dims() == b.dims() && a.clone().equal(b.clone()).all().into_scalar::<bool>()
            }
            (Self::Dense(dense), Self::Packed(_)) => {
                self.is_equal(&Self::Dense(other.to_tensor(&dense.device())))
            }
            (Self::Packed(_), Self::Dense(_)) => other.is_equal(self),
        }
    }
}

/// The LM head of a [`Llama`](super::Llama): its matrix, without a bias.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) weight: Weight,
    pub(super) device: Device,
}

impl LmHead for Head {
    fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        self.weight.times(in_dtype_of(hidden, self.weight.dtype()))
    }

    fn logits_at(&self, hidden: Tensor<2>, tokens: Tensor<2, Int>) -> Tensor<2> {
        let hidden = in_dtype_of(hidden, self.weight.dtype());
        match &self.weight {
            Weight::Dense(weight) => times_rows_at(hidden, weight, &tokens),
            Weight::Packed(matrix) => packed_times_rows_at(hidden, matrix, &tokens),
        }
    }

    fn product(&self, x: Tensor<2>, tokens: Option<Tensor<2, Int>>) -> Option<Tensor<2>> {
        Some(without_bias(self, x, tokens))
    }

    fn shape(&self) -> Option<[usize; 2]> {
        let [vocab, d_model] = self.weight.dims();
        Some([d_model, vocab])
    }

    fn device(&self) -> Option<Device> {
        Some(self.device.clone().inner())
    }
}
