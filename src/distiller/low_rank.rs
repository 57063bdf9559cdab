//! The reference implementation's distiller: a low-rank gated residual.

use std::sync::Arc;

use burn::{
    config::Config,
    module::{Module, Param},
    tensor::{Device, Tensor, activation::silu},
};

use super::{Distiller, StackedDistiller, init::ParamInit, stacked::StackedLowRank};
use crate::error::ConfigError;

/// Configuration of a [`LowRankDistiller`].
#[derive(Config, Debug, PartialEq)]
pub struct LowRankConfig {
    /// Rank of the correction.
    #[config(default = 64)]
    pub rank: usize,
}

impl LowRankConfig {
    /// A distiller for a model of width `d_model`: the three matrices normal with standard deviation 0.02, drawn from
    /// `seed`, the gate's bias 1, the layer norm the identity.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] when a size is zero.
    pub fn init(
        &self,
        d_model: usize,
        seed: u64,
        device: &Device,
    ) -> Result<LowRankDistiller, ConfigError> {
        ConfigError::at_least_one("d_model", d_model)?;
        ConfigError::at_least_one("rank", self.rank)?;
        let mut init = ParamInit::new(seed, device);
        Ok(LowRankDistiller {
            a: init.normal_002([d_model, self.rank]),
            g: init.normal_002([d_model, self.rank]),
            g_bias: init.constant([self.rank], 1.0),
            b: init.normal_002([self.rank, d_model]),
            norm_weight: init.constant([d_model], 1.0),
            norm_bias: init.constant([d_model], 0.0),
        })
    }
}

/// A low-rank gated residual behind a layer norm, `LayerNorm(x + ((x·A) ⊙ silu(x·G + g₀))·B)`, with
/// `3·d_model·rank + rank + 2·d_model` parameters: the distiller of the paper's reference implementation, some twelve
/// times smaller than [`SwiGluDistiller`](super::SwiGluDistiller).
#[derive(Module, Debug)]
pub struct LowRankDistiller {
    /// `A`, `[d_model, rank]`
    pub a: Param<Tensor<2>>,
    /// `G`, `[d_model, rank]`
    pub g: Param<Tensor<2>>,
    /// `g₀`, `[rank]`
    pub g_bias: Param<Tensor<1>>,
    /// `B`, `[rank, d_model]`
    pub b: Param<Tensor<2>>,
    /// Gain of the layer norm, `[d_model]`
    pub norm_weight: Param<Tensor<1>>,
    /// Bias of the layer norm, `[d_model]`
    pub norm_bias: Param<Tensor<1>>,
}

/// ε of the layer norm.
pub(super) const LAYER_NORM_EPSILON: f32 = 1e-5;

impl Distiller for LowRankDistiller {
    fn predict(&self, shallow: Tensor<2>) -> Tensor<2> {
        let gate = silu(shallow.clone().matmul(self.g.val()) + self.g_bias.val().unsqueeze());
        let low = shallow.clone().matmul(self.a.val());
        let y = shallow + (low * gate).matmul(self.b.val());

        let centred = y.clone() - y.mean_dim(1);
        let variance = centred.clone().square().mean_dim(1);
        let normed = centred / variance.add_scalar(LAYER_NORM_EPSILON).sqrt();
        normed * self.norm_weight.val().unsqueeze() + self.norm_bias.val().unsqueeze()
    }
    fn stacked(&self) -> Option<Arc<dyn StackedDistiller>> {
        Some(Arc::new(StackedLowRank))
    }
}
