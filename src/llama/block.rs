//! Transformer block.

use burn::tensor::{DType, Device, Tensor};

use super::{
    attention::{Attention, Pass},
    cache::LlamaCache,
    linear::Linear,
    norm::RmsNorm,
};
use crate::host::silu_gated;

/// A pre-norm block: attention and MLP, each with a norm on its input and a residual connection.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) attention_norm: RmsNorm,
    pub(super) attention: Attention,
    pub(super) mlp_norm: RmsNorm,
    pub(super) mlp: Mlp,
}

impl Block {
    /// Casts the weights to another precision.
    pub(super) fn cast(self, dtype: DType, device: &Device) -> Self {
        Self {
            attention_norm: self.attention_norm.cast(dtype),
            attention: self.attention.cast(dtype, device),
            mlp_norm: self.mlp_norm.cast(dtype),
            mlp: Mlp {
                gate_up: self.mlp.gate_up.cast(dtype, device),
                down: self.mlp.down.cast(dtype, device),
            },
        }
    }

    /// Maps `[rows, seq, d_model]` to the same shape.
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        pass: &Pass,
        block: usize,
        cache: &mut LlamaCache,
    ) -> Tensor<3> {
        let normed = self.attention_norm.forward(x.clone());
        let x = x + self.attention.forward(normed, pass, block, cache);
        let normed = self.mlp_norm.forward(x.clone());
        x + self.mlp.forward(normed)
    }
}

/// SwiGLU: `(silu(x·gate) ⊙ (x·up))·down` (Shazeer, arXiv 2002.05202).
#[derive(Clone, Debug)]
pub(super) struct Mlp {
    /// Fused gate and up projections: `[2·d_hidden, d_model]`.
    pub(super) gate_up: Linear,
    pub(super) down: Linear,
}

impl Mlp {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [rows, seq, d_model] = x.dims();
        let both = self.gate_up.forward(x.reshape([rows * seq, d_model]));
        self.down.forward(silu_gated(both)).reshape([rows, seq, d_model])
    }
}
