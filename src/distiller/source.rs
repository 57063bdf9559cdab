//! What a distiller does to the shallow state before anything else.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// What happens to the shallow state before a distiller looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SourceNorm {
    /// Nothing.
    None,
    /// Divided by its root mean square (no gain, ε = 1e-5), so that the residual path starts at the scale of a normed
    /// deep state.
    Rms,
}

/// ε of the layer norm of [`LowRankDistiller`](super::LowRankDistiller).
pub(super) const LAYER_NORM_EPSILON: f32 = 1e-5;

/// ε of [`SourceNorm::Rms`].
const RMS_EPSILON: f32 = 1e-5;

impl SourceNorm {
    /// The source of a distiller, `[.., d_model]`, from the shallow states.
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
