//! Many distillers of one architecture in one batched product.

use std::fmt::Debug;

use burn::tensor::Tensor;

use super::{
    gradient::Gradient,
    source::{LAYER_NORM_EPSILON, SourceNorm},
};
use crate::host::{sigmoid, times_each, times_each_transposed};

/// A prediction with the intermediate values from which gradients start.
#[derive(Clone, Debug)]
pub struct ForwardPass {
    /// The expected deep hidden states, `[slots, rows, d_model]`.
    pub expected: Tensor<3>,
    /// What [`StackedDistiller::gradients_after`] of the same network needs besides, in an order of its own; empty if it
    /// needs nothing.
    pub activations: Vec<Tensor<3>>,
}

/// A distiller's network as a function of its parameters, for many slots at once. With it, a bank predicts and updates
/// all of its slots in one batched product instead of one after the other.
///
/// `parameters` are those of the module, in the order in which burn visits them, with a leading dimension of slots: a
/// matrix `[a, b]` is passed as `[slots, a, b]`, a vector `[n]` as `[slots, 1, n]`. Slots are independent: the output
/// of slot `i` depends only on its own parameters and rows. The loss is the squared error of
/// [`Distiller::loss`](super::Distiller::loss); a distiller that overrides the loss must not offer a stacked form.
///
/// ```
/// use std::sync::Arc;
///
/// use burn::{
///     module::{Module, Param},
///     tensor::Tensor,
/// };
/// use esamp::{distillers::Distiller, unstable::{Gradient, StackedDistiller}};
///
/// #[derive(Module, Debug)]
/// struct Affine {
///     weight: Param<Tensor<2>>, // [d_model, d_model]
///     bias: Param<Tensor<1>>,   // [d_model]
/// }
///
/// impl Distiller for Affine {
///     fn predict(&self, shallow: Tensor<2>) -> Tensor<2> {
///         shallow.matmul(self.weight.val()) + self.bias.val().unsqueeze()
///     }
///
///     fn stacked(&self) -> Option<Arc<dyn StackedDistiller>> {
///         Some(Arc::new(StackedAffine))
///     }
/// }
///
/// #[derive(Debug)]
/// struct StackedAffine;
///
/// impl StackedDistiller for StackedAffine {
///     fn predict(&self, parameters: &[Tensor<3>], shallow: Tensor<3>) -> Tensor<3> {
///         shallow.matmul(parameters[0].clone()) + parameters[1].clone()
///     }
///
///     // Optional: the default does the same with autodiff.
///     fn gradients(
///         &self,
///         parameters: &[Tensor<3>],
///         shallow: Tensor<3>,
///         deep: Tensor<3>,
///         weight: Tensor<3>,
///     ) -> Vec<Gradient> {
///         let error = self.predict(parameters, shallow.clone()) - deep;
///         let upstream = error * weight.mul_scalar(2.0);
///         let bias = upstream.clone().sum_dim(1);
///         vec![Gradient::Product { inputs: shallow, upstream }, bias.into()]
///     }
/// }
/// ```
pub trait StackedDistiller: Debug + Send + Sync {
    /// Returns the expected deep hidden states.
    ///
    /// # Shapes
    ///
    /// - shallow: `[slots, rows, d_model]`, `f32`
    /// - output: `[slots, rows, d_model]`
    fn predict(&self, parameters: &[Tensor<3>], shallow: Tensor<3>) -> Tensor<3>;

    /// Returns the gradient of `Σ weight · (prediction − deep)²`, summed over slots, rows and width, with respect to
    /// each parameter. A row of weight 0 is padding.
    ///
    /// The default differentiates [`predict`](Self::predict) with autodiff. For networks this small, an analytic
    /// implementation is two to three times faster. A parameter that the loss does not reach, such as one that
    /// `predict` does not use, has a gradient of zeros. Its slot counts as updated all the same, and AdamW's weight
    /// decay shrinks it; without a stacked form, it would not change.
    ///
    /// # Shapes
    ///
    /// - shallow, deep: `[slots, rows, d_model]`, `f32`
    /// - weight: `[slots, rows, 1]`
    /// - output: the shapes of `parameters`, in their order. Prefer factors ([`Gradient::Product`]) for the gradient
    ///   of a matrix.
    ///
    /// With other shapes the update fails with [`TrainError::Gradients`](crate::errors::TrainError::Gradients) or
    /// [`TrainError::GradientFactors`](crate::errors::TrainError::GradientFactors).
    fn gradients(
        &self,
        parameters: &[Tensor<3>],
        shallow: Tensor<3>,
        deep: Tensor<3>,
        weight: Tensor<3>,
    ) -> Vec<Gradient> {
        let tracked: Vec<Tensor<3>> =
            parameters.iter().map(|p| p.clone().autodiff().require_grad()).collect();
        let error = self.predict(&tracked, shallow.autodiff()) - deep.autodiff();
        let gradients = (error.square() * weight.autodiff()).sum().backward();
        tracked
            .iter()
            .zip(parameters)
            .map(|(tracked, plain)| match tracked.grad(&gradients) {
                Some(gradient) => gradient.into(),
                None => plain.zeros_like().into(),
            })
            .collect()
    }

    /// [`predict`](Self::predict) with the activations that [`gradients_after`](Self::gradients_after) starts from. On
    /// flex an update of the rows that were just predicted does so. The default keeps none.
    fn forward(&self, parameters: &[Tensor<3>], shallow: Tensor<3>) -> ForwardPass {
        ForwardPass { expected: self.predict(parameters, shallow), activations: Vec::new() }
    }

    /// [`gradients`](Self::gradients), with what [`forward`](Self::forward) returned for the same parameters and shallow
    /// states. The numbers must be the same. The default computes them again.
    fn gradients_after(
        &self,
        _pass: ForwardPass,
        parameters: &[Tensor<3>],
        shallow: Tensor<3>,
        deep: Tensor<3>,
        weight: Tensor<3>,
    ) -> Vec<Gradient> {
        self.gradients(parameters, shallow, deep, weight)
    }
}

/// [`SwiGluDistiller`](super::SwiGluDistiller) over many slots, with analytic gradients.
#[derive(Debug)]
pub(super) struct StackedSwiGlu {
    pub(super) source_norm: SourceNorm,
}

/// The intermediate values of a SwiGLU block, kept for the backward pass.
struct BlockPass {
    x: Tensor<3>,
    z: Tensor<3>,
    sigma: Tensor<3>,
    gate: Tensor<3>,
    up: Tensor<3>,
    hidden: Tensor<3>,
}

impl BlockPass {
    /// `parameters`: gate and up `[slots, d_model, d_hidden]`, down `[slots, d_hidden, d_model]`.
    fn forward(parameters: &[Tensor<3>], x: Tensor<3>) -> Self {
        let z = times_each(x.clone(), &parameters[0]);
        let up = times_each(x.clone(), &parameters[1]);
        let sigma = sigmoid(z.clone());
        let gate = sigma.clone() * z.clone();
        let hidden = gate.clone() * up.clone();
        Self { x, z, sigma, gate, up, hidden }
    }

    fn output(&self, parameters: &[Tensor<3>]) -> Tensor<3> {
        self.x.clone() + times_each(self.hidden.clone(), &parameters[2])
    }

    fn into_tensors(self) -> [Tensor<3>; 6] {
        let Self { x, z, sigma, gate, up, hidden } = self;
        [x, z, sigma, gate, up, hidden]
    }

    fn from_tensors([x, z, sigma, gate, up, hidden]: [Tensor<3>; 6]) -> Self {
        Self { x, z, sigma, gate, up, hidden }
    }
}

impl StackedDistiller for StackedSwiGlu {
    fn predict(&self, parameters: &[Tensor<3>], shallow: Tensor<3>) -> Tensor<3> {
        self.forward(parameters, shallow).expected
    }

    fn gradients(
        &self,
        parameters: &[Tensor<3>],
        shallow: Tensor<3>,
        deep: Tensor<3>,
        weight: Tensor<3>,
    ) -> Vec<Gradient> {
        let pass = self.forward(parameters, shallow.clone());
        self.gradients_after(pass, parameters, shallow, deep, weight)
    }

    fn forward(&self, parameters: &[Tensor<3>], shallow: Tensor<3>) -> ForwardPass {
        let mut expected = self.source_norm.apply(shallow);
        let mut activations = Vec::with_capacity(2 * parameters.len());
        for block in parameters.chunks_exact(3) {
            let pass = BlockPass::forward(block, expected);
            expected = pass.output(block);
            activations.extend(pass.into_tensors());
        }
        ForwardPass { expected, activations }
    }

    fn gradients_after(
        &self,
        ForwardPass { expected, mut activations }: ForwardPass,
        parameters: &[Tensor<3>],
        _shallow: Tensor<3>,
        deep: Tensor<3>,
        weight: Tensor<3>,
    ) -> Vec<Gradient> {
        let mut upstream = (expected - deep) * weight.mul_scalar(2.0); // ∂L/∂y
        let mut gradients = Vec::with_capacity(parameters.len());
        for (at, block) in parameters.chunks_exact(3).enumerate().rev() {
            // Of another network's pass there are other tensors: an update with too few gradients is an error.
            let of_block = activations.split_off((6 * at).min(activations.len()));
            let Ok(of_block) = <[Tensor<3>; 6]>::try_from(of_block) else { continue };
            let BlockPass { x, z, sigma, gate, up, hidden } = BlockPass::from_tensors(of_block);
            let d_down = product(&hidden, &upstream);
            let d_hidden = times_each_transposed(upstream.clone(), &block[2]);
            let d_up = d_hidden.clone() * gate;
            let d_z = d_hidden * up * silu_slope(z, sigma);
            gradients.extend([d_down, product(&x, &d_up), product(&x, &d_z)]);
            // The source has no parameters, so the gradient of the first block's input is not needed.
            if at > 0 {
                upstream = upstream
                    + times_each_transposed(d_z, &block[0])
                    + times_each_transposed(d_up, &block[1]);
            }
        }
        // The blocks were visited last to first, and each block's matrices likewise, so one reversal orders both.
        gradients.reverse();
        gradients
    }
}

/// [`LowRankDistiller`](super::LowRankDistiller) over many slots, with analytic gradients.
#[derive(Debug)]
pub(super) struct StackedLowRank {
    pub(super) source_norm: SourceNorm,
}

/// The intermediate values of the low-rank block, kept for the backward pass: the normed source, the product before the
/// gate, the gate's argument, its sigmoid and the gate, the gated product, and the normed residual with the inverse
/// standard deviation that normed it.
struct LowRankPass {
    x: Tensor<3>,
    low: Tensor<3>,
    z: Tensor<3>,
    sigma: Tensor<3>,
    gate: Tensor<3>,
    hidden: Tensor<3>,
    normed: Tensor<3>,
    inverse: Tensor<3>,
}

impl LowRankPass {
    /// `parameters` in the order of the module: `a`, `g`, `g_bias`, `b`, and the norm's weight and bias.
    fn forward(parameters: &[Tensor<3>], x: Tensor<3>) -> Self {
        let z = times_each(x.clone(), &parameters[1]) + parameters[2].clone();
        let sigma = sigmoid(z.clone());
        let gate = sigma.clone() * z.clone();
        let low = times_each(x.clone(), &parameters[0]);
        let hidden = low.clone() * gate.clone();
        let o = x.clone() + times_each(hidden.clone(), &parameters[3]);
        let centred = o.clone() - o.mean_dim(2);
        let variance = centred.clone().square().mean_dim(2);
        let inverse = variance.add_scalar(LAYER_NORM_EPSILON).sqrt().recip();
        let normed = centred * inverse.clone();
        Self { x, low, z, sigma, gate, hidden, normed, inverse }
    }

    fn output(&self, parameters: &[Tensor<3>]) -> Tensor<3> {
        self.normed.clone() * parameters[4].clone() + parameters[5].clone()
    }

    fn into_tensors(self) -> [Tensor<3>; 8] {
        let Self { x, low, z, sigma, gate, hidden, normed, inverse } = self;
        [x, low, z, sigma, gate, hidden, normed, inverse]
    }

    fn from_tensors(tensors: [Tensor<3>; 8]) -> Self {
        let [x, low, z, sigma, gate, hidden, normed, inverse] = tensors;
        Self { x, low, z, sigma, gate, hidden, normed, inverse }
    }
}

impl StackedDistiller for StackedLowRank {
    fn predict(&self, parameters: &[Tensor<3>], shallow: Tensor<3>) -> Tensor<3> {
        self.forward(parameters, shallow).expected
    }

    fn gradients(
        &self,
        parameters: &[Tensor<3>],
        shallow: Tensor<3>,
        deep: Tensor<3>,
        weight: Tensor<3>,
    ) -> Vec<Gradient> {
        let pass = self.forward(parameters, shallow.clone());
        self.gradients_after(pass, parameters, shallow, deep, weight)
    }

    fn forward(&self, parameters: &[Tensor<3>], shallow: Tensor<3>) -> ForwardPass {
        let pass = LowRankPass::forward(parameters, self.source_norm.apply(shallow));
        let expected = pass.output(parameters);
        ForwardPass { expected, activations: pass.into_tensors().into() }
    }

    fn gradients_after(
        &self,
        ForwardPass { expected, activations }: ForwardPass,
        parameters: &[Tensor<3>],
        _shallow: Tensor<3>,
        deep: Tensor<3>,
        weight: Tensor<3>,
    ) -> Vec<Gradient> {
        // Of another network's pass there are other tensors: an update without gradients is an error.
        let Ok(activations) = <[Tensor<3>; 8]>::try_from(activations) else {
            return Vec::new();
        };
        let upstream = (expected - deep) * weight.mul_scalar(2.0); // ∂L/∂y
        let LowRankPass { x, low, z, sigma, gate, hidden, normed, inverse } =
            LowRankPass::from_tensors(activations);
        // Padding rows need no mask in these sums: their weight of 0 is a factor of `upstream`.
        let d_norm_weight = (upstream.clone() * normed.clone()).sum_dim(1);
        let d_norm_bias = upstream.clone().sum_dim(1);

        // The backward pass of the layer norm: `d_o = inverse · (d_n − mean(d_n) − n·mean(d_n ⊙ n))`.
        let d_normed = upstream * parameters[4].clone();
        let along = (d_normed.clone() * normed.clone()).mean_dim(2);
        let d_o = (d_normed.clone() - d_normed.mean_dim(2) - normed * along) * inverse;

        let d_b = product(&hidden, &d_o);
        let d_hidden = times_each_transposed(d_o, &parameters[3]);
        let d_a = product(&x, &(d_hidden.clone() * gate));
        let d_z = d_hidden * low * silu_slope(z, sigma);
        let d_g = product(&x, &d_z);
        let [d_g_bias, d_norm_weight, d_norm_bias] =
            [d_z.sum_dim(1), d_norm_weight, d_norm_bias].map(Gradient::Whole);
        vec![d_a, d_g, d_g_bias, d_b, d_norm_weight, d_norm_bias]
    }
}

/// The derivative of silu, `d silu(z) / dz = σ·(1 + z·(1 − σ))` with `σ = σ(z)`.
fn silu_slope(z: Tensor<3>, sigma: Tensor<3>) -> Tensor<3> {
    let rest = sigma.ones_like() - sigma.clone();
    sigma * (z * rest).add_scalar(1.0)
}

fn product(inputs: &Tensor<3>, upstream: &Tensor<3>) -> Gradient {
    Gradient::Product { inputs: inputs.clone(), upstream: upstream.clone() }
}
