//! Grouped-query attention with a KV cache.

use burn::tensor::{DType, Device, Tensor};

use super::{cache::LlamaCache, config::LlamaConfig, linear::Linear, norm::RmsNorm, rope::Angles};
use crate::host::{Mask, attend};

/// Grouped-query attention: `n_heads / n_kv_heads` query heads share one key head and one value head (Ainslie et al.,
/// *GQA*, arXiv 2305.13245).
#[derive(Clone, Debug)]
pub(super) struct Attention {
    /// Fused projection of queries, keys and values: `[(n_heads + 2·n_kv_heads)·head_dim, d_model]`.
    pub(super) qkv: Linear,
    pub(super) output: Linear,
    /// Norms of the query and key heads, if the model has them.
    pub(super) qk_norm: Option<(RmsNorm, RmsNorm)>,
    pub(super) n_heads: usize,
    pub(super) n_kv_heads: usize,
    pub(super) head_dim: usize,
}

/// State shared by all blocks of a forward pass.
pub(super) struct Pass {
    pub(super) angles: Angles,
    /// Computed by the first block that needs it.
    pub(super) mask: Mask,
}

impl Attention {
    pub(super) fn new(
        config: &LlamaConfig,
        qkv: Linear,
        output: Linear,
        qk_norm: Option<(RmsNorm, RmsNorm)>,
    ) -> Self {
        Self {
            qkv,
            output,
            qk_norm,
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
        }
    }

    /// Casts the weights to another precision.
    pub(super) fn cast(self, dtype: DType, device: &Device) -> Self {
        let qk_norm = self.qk_norm.map(|(query, key)| (query.cast(dtype), key.cast(dtype)));
        Self {
            qkv: self.qkv.cast(dtype, device),
            output: self.output.cast(dtype, device),
            qk_norm,
            ..self
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
        let [rows, seq, d_model] = x.dims();
        let (heads, kv_heads, width) = (self.n_heads, self.n_kv_heads, self.head_dim);

        let qkv = self.qkv.forward(x.reshape([rows * seq, d_model]));
        let qkv = qkv.reshape([rows, seq, heads + 2 * kv_heads, width]);
        let values = qkv.clone().narrow(2, heads + kv_heads, kv_heads);
        // Queries and keys are neighbours in the fused product, so one call rotates both.
        let qk = self.norm_qk(qkv.narrow(2, 0, heads + kv_heads));
        let qk = pass.angles.rotate(qk);
        let queries = qk.clone().narrow(2, 0, heads);
        let keys = qk.narrow(2, heads, kv_heads);

        // Query heads of a group are stacked along the sequence dimension, so that keys and values are not repeated.
        let queries =
            queries.swap_dims(1, 2).reshape([rows, kv_heads, heads / kv_heads * seq, width]);
        let seen = cache.extend(block, keys.swap_dims(1, 2), values.swap_dims(1, 2));
        let mixed = attend(queries, &seen, &pass.mask);
        let mixed = mixed.reshape([rows, heads, seq, width]).swap_dims(1, 2);
        let output = self.output.forward(mixed.reshape([rows * seq, heads * width]));
        output.reshape([rows, seq, d_model])
    }

    fn norm_qk(&self, qk: Tensor<4>) -> Tensor<4> {
        let Some((query_norm, key_norm)) = &self.qk_norm else {
            return qk;
        };
        let queries = query_norm.forward(qk.clone().narrow(2, 0, self.n_heads));
        let keys = key_norm.forward(qk.narrow(2, self.n_heads, self.n_kv_heads));
        Tensor::cat(vec![queries, keys], 2)
    }
}
