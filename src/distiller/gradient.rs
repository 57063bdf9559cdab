//! Gradients as whole tensors or as two factors.

use burn::tensor::{Device, Tensor};

/// The gradient of one parameter of a [`StackedDistiller`](super::StackedDistiller).
///
/// The gradient of a matrix is the product of its inputs and the gradients of its outputs, which have one row each per
/// row that is learned from. Kept as these two factors it is a few rows instead of a whole matrix. On flex, an update
/// with up to 64 rows per slot computes the gradient's norm from the factors and multiplies them element by element
/// while it changes the parameter, so the whole gradient is never stored. On other devices the factors are multiplied
/// in one matrix product.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "there are few, and only during an update")]
#[non_exhaustive]
pub enum Gradient {
    /// The gradient in the shape of the parameter, `[slots, a, b]`, `f32`.
    Whole(Tensor<3>),
    /// The factors of `inputsᵀ · upstream`, for a parameter `[slots, a, b]`.
    Product {
        /// The inputs of the matrix, `[slots, rows, a]`, `f32`.
        inputs: Tensor<3>,
        /// The gradient of the loss with respect to the outputs of the matrix, `[slots, rows, b]`, `f32`.
        upstream: Tensor<3>,
    },
}

impl Gradient {
    /// Returns the shape of the parameter.
    ///
    /// # Errors
    ///
    /// The shapes of `inputs` and `upstream`, if they cannot be multiplied.
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

    /// Returns the gradient in the shape of its parameter. Factors are multiplied in one matrix product.
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
