//! Gradients that need not be written down.

use burn::tensor::{Device, Tensor};

/// The gradient of one parameter of a [`StackedDistiller`](super::StackedDistiller).
///
/// That of a matrix is a product of what went in and of what came back, one row of each for every row that is learned.
/// Kept as these two factors it is a few rows instead of a matrix: an update on flex of up to 64 rows a slot takes its
/// norm from the factors and multiplies them out number by number where it changes the parameter, so that the gradient
/// is never in memory. Elsewhere it is one matrix product, as it would have been.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "a handful of them, for as long as an update")]
#[non_exhaustive]
pub enum Gradient {
    /// As it is, in the shape of the parameter, `[slots, a, b]`, `f32`.
    Whole(Tensor<3>),
    /// `inputsᵀ · upstream`, for a parameter `[slots, a, b]`.
    Product {
        /// What the matrix was multiplied with, `[slots, rows, a]`, `f32`.
        inputs: Tensor<3>,
        /// The gradient of the loss with respect to what came out, `[slots, rows, b]`, `f32`.
        upstream: Tensor<3>,
    },
}

impl Gradient {
    /// The shape of the parameter that it belongs to.
    ///
    /// # Errors
    ///
    /// The shapes of `inputs` and `upstream`, where they have no product.
    pub(crate) fn dims(&self) -> Result<[usize; 3], [[usize; 3]; 2]> {
        match self {
            Self::Whole(gradient) => Ok(gradient.dims()),
            Self::Product { inputs, upstream } => {
                let factors = [inputs.dims(), upstream.dims()];
                let [[slots, rows, a], [same_slots, same_rows, b]] = factors;
                let fits = (slots, rows) == (same_slots, same_rows);
                if fits { Ok([slots, a, b]) } else { Err(factors) }
            }
        }
    }

    pub(crate) fn device(&self) -> Device {
        match self {
            Self::Whole(of) | Self::Product { inputs: of, .. } => of.device(),
        }
    }

    /// The gradient in the shape of its parameter: one matrix product for factors.
    pub(crate) fn into_whole(self) -> Tensor<3> {
        match self {
            Self::Whole(gradient) => gradient,
            Self::Product { inputs, upstream } => inputs.swap_dims(1, 2).matmul(upstream),
        }
    }
}

impl From<Tensor<3>> for Gradient {
    fn from(gradient: Tensor<3>) -> Self {
        Self::Whole(gradient)
    }
}
