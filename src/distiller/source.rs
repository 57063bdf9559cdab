//! The normalisation that a distiller applies to the shallow state.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// How a distiller normalises the shallow state before its first layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SourceNorm {
    /// No normalisation.
    None,
    /// Divides by the root mean square (no gain, ε = 1e-5), so that the residual path starts at the scale of a normed
    /// deep state.
    Rms,
}

/// ε of the layer norm of [`LowRankDistiller`](super::LowRankDistiller).
pub(super) const LAYER_NORM_EPSILON: f32 = 1e-5;

/// ε of [`SourceNorm::Rms`].
const RMS_EPSILON: f32 = 1e-5;

impl SourceNorm {
    /// Returns the normalised shallow states, `[.., d_model]`.
    pub(crate) fn apply<const D: usize>(self, shallow: Tensor<D>) -> Tensor<D> {
        match self {
            Self::None => shallow,
            Self::Rms => {
                let mean_square = shallow.clone().square().mean_dim(D - 1);
                shallow / mean_square.add_scalar(RMS_EPSILON).sqrt()
            }
        }
    }
}
