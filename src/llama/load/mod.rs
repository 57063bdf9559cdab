//! Where weights come from.

mod gguf;
mod random;
mod safetensors;

pub(super) use self::safetensors::read_json;
pub(super) use gguf::Gguf;

use crate::error::LoadError;

/// Where a model's weights come from, by the names that Hugging Face gives them.
pub(super) trait TensorSource {
    /// Takes the tensor `name` (`model.layers.0.self_attn.q_proj.weight`) as `f32`, row-major; the weights of linear
    /// maps are `[out, in]`.
    ///
    /// # Errors
    ///
    /// [`LoadError::Tensor`] when it is missing or its shape is not `shape`.
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError>;
}

/// An error about a tensor.
fn tensor_error(name: &str, expected: impl ToString, got: impl ToString) -> LoadError {
    LoadError::Tensor {
        name: name.to_owned(),
        expected: expected.to_string(),
        got: got.to_string(),
    }
}
