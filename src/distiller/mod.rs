//! The small network that learns, while the model decodes, to expect the deep hidden state from the shallow one.

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
pub use stacked::StackedDistiller;
pub use swiglu::{OutputStart, SwiGluBlock, SwiGluConfig, SwiGluDistiller};

/// Predicts the deep hidden state of a row from its shallow one.
///
/// Any burn module can be one. Two rules: rows are independent (row `i` of the output depends on row `i` of the input
/// only), and the same parameters give the same output (no dropout, no state).
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
/// }
/// ```
pub trait Distiller: Module + 'static {
    /// The expected deep hidden state.
    ///
    /// # Shapes
    ///
    /// - shallow: `[rows, d_model]`, `f32`
    /// - output: `[rows, d_model]`
    fn predict(&self, shallow: Tensor<2>) -> Tensor<2>;

    /// What an update makes smaller: by default the squared error, averaged over rows and width (the paper's
    /// algorithm; its eq. 10 sums over the width instead, which multiplies the gradient by `d_model`).
    ///
    /// # Shapes
    ///
    /// - shallow, deep: `[rows, d_model]`, `f32`
    /// - output: `[1]`
    fn loss(&self, shallow: Tensor<2>, deep: Tensor<2>) -> Tensor<1> {
        (self.predict(shallow) - deep).square().mean()
    }

    /// The same network over many slots at once, where there is such a form: a bank of many slots then works in one
    /// batched product. Without one it works slot by slot, with autodiff.
    fn stacked(&self) -> Option<Arc<dyn StackedDistiller>> {
        None
    }

    /// How many rows [`fit`](Self::fit) wants to see; 0, the default, when there is nothing to fit.
    ///
    /// The trainer collects the first rows that a slot learns from, those of a warm-up on the prompt among them, until
    /// it has as many. It updates the distiller on them in the meantime as on any others, and then replaces it by what
    /// `fit` makes of them, with a fresh optimizer state.
    fn rows_to_fit(&self) -> usize {
        0
    }

    /// A better starting point from the first rows of a slot, in one go and without an optimizer; `None`, the default,
    /// when there is none, and the distiller stays what it is. Asked of the distiller that slots start from.
    ///
    /// # Shapes
    ///
    /// - shallow, deep: `[rows, d_model]`, `f32`, finite
    fn fit(&self, _shallow: &Tensor<2>, _deep: &Tensor<2>) -> Option<Self> {
        None
    }
}
