//! The small network that learns during decoding to predict the deep hidden state from the shallow one.

mod gradient;
mod init;
mod low_rank;
mod ridge;
mod source;
mod stacked;
mod svd;
mod swiglu;

use std::sync::Arc;

use burn::{module::Module, tensor::Tensor};

pub use gradient::Gradient;
pub use low_rank::{LowRankConfig, LowRankDistiller, LowRankStart};
pub use source::SourceNorm;
pub use stacked::{ForwardPass, StackedDistiller};
pub use swiglu::{OutputStart, SwiGluBlock, SwiGluConfig, SwiGluDistiller};

/// Predicts the deep hidden state of a row from its shallow one.
///
/// Any burn module can be a distiller if it follows two rules: rows are independent (row `i` of the output depends only
/// on row `i` of the input), and the output is a function of the parameters and the input (no dropout, no state).
///
/// ```
/// use burn::{module::Module, nn::Linear, tensor::Tensor};
/// use esamp::distillers::Distiller;
///
/// #[derive(Module, Debug)]
/// struct Affine {
///     map: Linear,
/// }
///
/// impl Distiller for Affine {
///     fn predict(&self, shallow: Tensor<2>) -> Tensor<2> {
///         self.map.forward(shallow)
///     }
///
///     fn d_model(&self) -> Option<usize> {
///         Some(self.map.weight.val().dims()[0])
///     }
/// }
/// ```
pub trait Distiller: Module + 'static {
    /// Returns the expected deep hidden states.
    ///
    /// # Shapes
    ///
    /// - shallow: `[rows, d_model]`, `f32`
    /// - output: `[rows, d_model]`
    fn predict(&self, shallow: Tensor<2>) -> Tensor<2>;

    /// Returns the loss that an update minimises. The default is the squared error, averaged over rows and width (the
    /// paper's algorithm; its eq. 10 sums over the width instead, which multiplies the gradient by `d_model`).
    ///
    /// # Shapes
    ///
    /// - shallow, deep: `[rows, d_model]`, `f32`
    /// - output: `[1]`
    fn loss(&self, shallow: Tensor<2>, deep: Tensor<2>) -> Tensor<1> {
        (self.predict(shallow) - deep).square().mean()
    }

    /// Returns the width of the hidden states that the network was made for. A sampler for a model of another width
    /// then refuses it when it is built. The default, `None`, stands for a network of any width and is not checked: a
    /// wrong width then fails in the network's own operations, in the first step.
    fn d_model(&self) -> Option<usize> {
        None
    }

    /// Returns the same network over many slots at once, if it is implemented. A bank of many slots then computes all
    /// of them in one batched product. Otherwise it computes slot by slot, with autodiff.
    fn stacked(&self) -> Option<Arc<dyn StackedDistiller>> {
        None
    }

    /// Returns the number of rows that [`fit`](Self::fit) needs. The default, 0, means that the distiller cannot be
    /// fitted.
    ///
    /// The trainer collects this many of the first rows that a slot learns from, including those of a warm-up on the
    /// prompt. Meanwhile it updates the distiller on them as usual. It then replaces the distiller with the result of
    /// `fit`, with a fresh optimizer state.
    fn rows_to_fit(&self) -> usize {
        0
    }

    /// Fits a better starting point to the first rows of a slot, in one go and without an optimizer. It is called on
    /// the distiller that slots start from. If it returns `None`, the default, the slot keeps its distiller.
    ///
    /// # Shapes
    ///
    /// - shallow, deep: `[rows, d_model]`, `f32`, finite
    fn fit(&self, _shallow: &Tensor<2>, _deep: &Tensor<2>) -> Option<Self> {
        None
    }
}
