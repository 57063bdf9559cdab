//! The reference implementation's distiller: a low-rank gated residual.

use std::sync::Arc;

use burn::{
    module::{Module, Param},
    tensor::{DType, Device, Tensor, activation::silu},
};
use serde::{Deserialize, Serialize};

use super::{
    Distiller,
    init::ParamInit,
    ridge::ridge,
    source::{LAYER_NORM_EPSILON, SourceNorm},
    stacked::{StackedDistiller, StackedLowRank},
    svd::{Svd, host, tensor, truncated_svd},
};
use crate::error::ConfigError;

/// How the [`LowRankDistiller`] of a new slot is initialised.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum LowRankStart {
    /// The three matrices are normal with standard deviation 0.02, as in the reference implementation.
    Normal,
    /// The same until the slot has seen `rows` rows, then [`LowRankDistiller::fit_ridge`] on them.
    Ridge {
        /// The number of rows to fit, at least 1.
        rows: usize,
        /// The strength of the penalty, above 0. Usually 1e-2.
        lambda: f64,
    },
}

/// Configuration of a [`LowRankDistiller`].
///
/// # Initialisation
///
/// [`init`](Self::init) draws `A`, `G` and `B` from a normal distribution with standard deviation 0.02, sets `g₀` to
/// 1, and the layer norm to the identity. The prediction is then `LayerNorm(x)` up to a term of relative size
/// `0.0004·silu(1)·√(d_model·rank)`, which is 6 % at width 576 and rank 64. [`init_from_ffn`](Self::init_from_ffn)
/// starts from the weights of one of the model's blocks, and [`LowRankStart::Ridge`] from the first rows that a slot
/// sees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct LowRankConfig {
    /// The rank of the correction.
    pub rank: usize,
    /// The normalisation of the shallow state. The reference implementation has none.
    pub source_norm: SourceNorm,
    /// How a new slot is initialised.
    pub start: LowRankStart,
}

impl Default for LowRankConfig {
    fn default() -> Self {
        Self { rank: 64, source_norm: SourceNorm::None, start: LowRankStart::Normal }
    }
}

impl LowRankConfig {
    /// Returns the defaults, which are those of the reference implementation.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the rank of the correction.
    pub fn with_rank(mut self, rank: usize) -> Self {
        self.rank = rank;
        self
    }

    /// Sets the normalisation of the shallow state.
    pub fn with_source_norm(mut self, source_norm: SourceNorm) -> Self {
        self.source_norm = source_norm;
        self
    }

    /// Sets how a new slot is initialised.
    pub fn with_start(mut self, start: LowRankStart) -> Self {
        self.start = start;
        self
    }

    /// Checks every setting.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] for the first setting that is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::at_least_one("rank", self.rank)?;
        if let LowRankStart::Ridge { rows, lambda } = self.start {
            ConfigError::at_least_one("rows", rows)?;
            check_lambda(lambda)?;
        }
        Ok(())
    }

    /// Makes a distiller for a model of width `d_model`. The three matrices are normal with standard deviation 0.02,
    /// drawn from `seed`; the gate's bias is 1 and the layer norm the identity.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] if a setting is out of range.
    pub fn init(
        &self,
        d_model: usize,
        seed: u64,
        device: &Device,
    ) -> Result<LowRankDistiller, ConfigError> {
        ConfigError::at_least_one("d_model", d_model)?;
        self.validate()?;
        let mut init = ParamInit::new(seed, device);
        // All matrices are drawn from one generator, so the order of these fields decides which numbers each of them
        // gets.
        Ok(LowRankDistiller {
            a: init.normal_002([d_model, self.rank]),
            g: init.normal_002([d_model, self.rank]),
            g_bias: init.constant([self.rank], 1.0),
            b: init.normal_002([self.rank, d_model]),
            norm_weight: init.constant([d_model], 1.0),
            norm_bias: init.constant([d_model], 0.0),
            source_norm: self.source_norm,
            start: self.start,
        })
    }

    /// Makes a distiller that starts from the feed-forward map of one of the model's blocks.
    ///
    /// `down·(silu(gate·x) ⊙ up·x)` is approximated by the linear map `down·½(up + gate)`. Rows multiply from the
    /// left, so the matrix to decompose is the transpose, `L = (down·½(up + gate))ᵀ` (the reference implementation
    /// does not transpose it). With the best approximation `U·S·Vᵀ` of rank `rank`, `A = U·√S`, `B = √S·Vᵀ / silu(1)`,
    /// `G = 0`, `g₀ = 1`. Before the first update the distiller is `LayerNorm(x + x·U·S·Vᵀ)`. If `L` has a lower rank,
    /// the remaining columns of `A` are normal, drawn from `seed`, and their rows of `B` are 0: they add nothing at
    /// first, but can learn.
    ///
    /// `Llama::ffn_weights` of the feature `llama` returns the weights of a block.
    ///
    /// # Shapes
    ///
    /// As in checkpoints, `[out, in]`, in any floating-point type:
    ///
    /// - gate, up: `[d_hidden, d_model]`
    /// - down: `[d_model, d_hidden]`
    ///
    /// # Cost
    ///
    /// A randomized decomposition on `device` (Halko, Martinsson and Tropp, 2011): `20·(rank + 16)` products of a
    /// vector with one of the matrices, which is 1e11 multiply-adds at width 4096. On two busy CPU cores it takes 0.4
    /// s at width 576 and 10 s at 4096. It runs once, because every slot copies the result. `½(up + gate)` is computed
    /// in `f32`.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Shape`] if the shapes of the matrices do not match. [`ConfigError::OutOfRange`] if a setting is
    /// out of range, a weight is not finite, or `start` is not [`LowRankStart::Normal`]: a fit would replace this
    /// initialisation.
    pub fn init_from_ffn(
        &self,
        gate: Tensor<2>,
        up: Tensor<2>,
        down: Tensor<2>,
        seed: u64,
        device: &Device,
    ) -> Result<LowRankDistiller, ConfigError> {
        let [d_hidden, d_model] = up.dims();
        for (setting, expected, got) in
            [("gate", [d_hidden, d_model], gate.dims()), ("down", [d_model, d_hidden], down.dims())]
        {
            ConfigError::check_shape(setting, &expected, &got)?;
        }
        ConfigError::at_least_one("d_hidden", d_hidden)?;
        let normal = self.start == LowRankStart::Normal;
        ConfigError::check(
            normal,
            "start",
            "normal, because init_from_ffn sets the start",
            format!("{:?}", self.start),
        )?;
        let distiller = self.init(d_model, seed, device)?;
        let [gate, up, down] =
            [gate, up, down].map(|weight| weight.inner().to_device(device).cast(DType::F32));
        let left = (up + gate).mul_scalar(0.5).transpose();
        let svd = truncated_svd(&left, &down.transpose(), self.rank, seed);
        let svd = svd.ok_or_else(|| not_finite("weights of the feed-forward map"))?;
        Ok(distiller.starting_from(svd))
    }
}

/// A low-rank gated residual and a layer norm, `LayerNorm(x + ((x·A) ⊙ silu(x·G + g₀))·B)`, with `3·d_model·rank +
/// rank + 2·d_model` parameters. This is the distiller of the paper's reference implementation, about twelve times
/// smaller than [`SwiGluDistiller`](super::SwiGluDistiller). Here `x` is the shallow state after
/// [`source_norm`](Self::source_norm).
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
    /// The normalisation of the shallow state.
    #[module(skip)]
    pub source_norm: SourceNorm,
    /// How a new slot is initialised.
    #[module(skip)]
    pub start: LowRankStart,
}

/// The value of the gate before the first update: `silu(g₀)` at `g₀ = 1`.
const OPEN_GATE: f64 = 0.731_058_578_630_004_9;

/// The seed of the range finder for fits, which take none: the result hardly depends on it.
const FIT_SEED: u64 = 0;

impl LowRankDistiller {
    /// Returns this distiller with the correction that ridge regression finds for the given rows. With `x` the source
    /// and `Y = deep − x`, it finds the map `L` that minimises `‖Y − x·L‖² + λ·s·‖L‖²` over the rows, with
    /// `s = ‖x‖²/min(rows, d_model)` (so that λ has no unit), truncates it to the rank and factorizes it as in
    /// [`init_from_ffn`](LowRankConfig::init_from_ffn). The layer norm is unchanged.
    ///
    /// If there are fewer rows than the rank, the remaining columns of `A` are unchanged, and their rows of `B` are 0.
    ///
    /// The fit ignores the layer norm that follows it, whose output has mean square 1 for any fit. On
    /// SmolLM2-135M this is an advantage: fitted to 16 tokens, the relative error on the next 16 is 0.86 (0.80 with
    /// [`SourceNorm::Rms`]), against 1.12 with the normal initialisation, 1.03 for the fit before the norm, and 0.97
    /// with the gain that suits the 16 tokens best.
    ///
    /// # Shapes
    ///
    /// - shallow, deep: `[rows, d_model]`, `f32`
    ///
    /// # Cost
    ///
    /// On the host, `rows·d_model·min(rows, d_model)` multiply-adds (3e5 for 16 rows of width 576), plus a
    /// decomposition of rank at most `min(rows, rank)`.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Shape`] if a shape does not match. [`ConfigError::OutOfRange`] if λ is not above 0, if there are
    /// no rows, if a state is not finite, or if all shallow states are 0.
    pub fn fit_ridge(
        &self,
        shallow: &Tensor<2>,
        deep: &Tensor<2>,
        lambda: f64,
    ) -> Result<Self, ConfigError> {
        check_lambda(lambda)?;
        let [d_model, rank] = self.a.dims();
        let rows = shallow.dims()[0];
        ConfigError::at_least_one("rows to fit", rows)?;
        ConfigError::check_shape("shallow rows to fit", &[rows, d_model], &shallow.dims())?;
        ConfigError::check_shape("deep rows to fit", &[rows, d_model], &deep.dims())?;
        let source = self.source_norm.apply(shallow.clone().inner());
        let target = deep.clone().inner() - source.clone();
        let refused = || not_finite("rows to fit");
        let source = host(source).ok_or_else(refused)?;
        let target = host(target).ok_or_else(refused)?;
        let fit = ridge(&source, &target, lambda).ok_or_else(|| ConfigError::OutOfRange {
            setting: "shallow rows to fit",
            expected: "states that are not all 0",
            got: "zeros".to_owned(),
        })?;
        let device = self.a.val().inner().device();
        let left = tensor(&fit.left, fit.right.len(), &device);
        let right = tensor(&fit.right, d_model, &device);
        let svd = truncated_svd(&left, &right, rank, FIT_SEED).ok_or_else(refused)?;
        Ok(self.starting_from(svd))
    }

    /// Returns this distiller with the correction `x·L`, where `L` is given by its singular triplets.
    fn starting_from(&self, svd: Svd) -> Self {
        let [d_model, rank] = self.a.dims();
        let device = self.a.val().inner().device();
        let kept = svd.values.len();
        // Each factor takes the square roots of the singular values. So both start at about the same scale, and
        // updates of equal size, as Adam makes them, change both in about the same proportion.
        let scaled = |vectors: &[Vec<f64>], gate: f64| -> Vec<Vec<f64>> {
            let scales = svd.values.iter().map(|value| value.sqrt() / gate);
            vectors.iter().zip(scales).map(|(v, s)| v.iter().map(|v| v * s).collect()).collect()
        };
        let mut a = tensor(&scaled(&svd.left, 1.0), d_model, &device).transpose();
        let mut b = tensor(&scaled(&svd.right, OPEN_GATE), d_model, &device);
        if kept < rank {
            // If both factors were 0 there, both gradients would be 0 for good. With the normal start in A, the rank
            // is unused at first, but can learn.
            let spare = self.a.val().inner().narrow(1, kept, rank - kept);
            let zeros = Tensor::zeros([rank - kept, d_model], (&device, DType::F32));
            (a, b) = if kept == 0 {
                (spare, zeros)
            } else {
                (Tensor::cat(vec![a, spare], 1), Tensor::cat(vec![b, zeros], 0))
            };
        }
        Self {
            a: Param::from_tensor(a),
            // With G = 0 the gate is the same for every state, so the correction starts as exactly the linear map.
            g: Param::from_tensor(Tensor::zeros([d_model, rank], (&device, DType::F32))),
            g_bias: Param::from_tensor(Tensor::ones([rank], (&device, DType::F32))),
            b: Param::from_tensor(b),
            norm_weight: Param::from_tensor(self.norm_weight.val().inner()),
            norm_bias: Param::from_tensor(self.norm_bias.val().inner()),
            source_norm: self.source_norm,
            start: self.start,
        }
    }
}

fn check_lambda(lambda: f64) -> Result<(), ConfigError> {
    let holds = lambda.is_finite() && lambda > 0.0;
    ConfigError::check(holds, "lambda", "a number above 0", lambda)
}

fn not_finite(setting: &'static str) -> ConfigError {
    let got = "one that is not".to_owned();
    ConfigError::OutOfRange { setting, expected: "finite numbers", got }
}

impl Distiller for LowRankDistiller {
    fn predict(&self, shallow: Tensor<2>) -> Tensor<2> {
        let source = self.source_norm.apply(shallow);
        let gate = silu(source.clone().matmul(self.g.val()) + self.g_bias.val().unsqueeze());
        let low = source.clone().matmul(self.a.val());
        let y = source + (low * gate).matmul(self.b.val());

        let centred = y.clone() - y.mean_dim(1);
        let variance = centred.clone().square().mean_dim(1);
        let normed = centred / variance.add_scalar(LAYER_NORM_EPSILON).sqrt();
        normed * self.norm_weight.val().unsqueeze() + self.norm_bias.val().unsqueeze()
    }

    fn d_model(&self) -> Option<usize> {
        Some(self.a.val().dims()[0])
    }

    fn stacked(&self) -> Option<Arc<dyn StackedDistiller>> {
        Some(Arc::new(StackedLowRank { source_norm: self.source_norm }))
    }

    fn rows_to_fit(&self) -> usize {
        match self.start {
            LowRankStart::Normal => 0,
            LowRankStart::Ridge { rows, .. } => rows,
        }
    }

    /// Calls [`fit_ridge`](LowRankDistiller::fit_ridge) if [`LowRankStart::Ridge`] is set. Returns `None` if it is
    /// not, or if the rows cannot be fitted.
    fn fit(&self, shallow: &Tensor<2>, deep: &Tensor<2>) -> Option<Self> {
        match self.start {
            LowRankStart::Normal => None,
            LowRankStart::Ridge { lambda, .. } => self.fit_ridge(shallow, deep, lambda).ok(),
        }
    }
}
