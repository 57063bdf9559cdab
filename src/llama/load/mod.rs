//! Where weights come from.

mod gguf;
mod random;
mod safetensors;

pub(super) use self::safetensors::read_json;
pub(super) use gguf::Gguf;

use burn::tensor::{Device, Tensor, TensorData};

use crate::llama::error::LoadError;

/// Name of the embedding.
pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
/// Name of the LM head, where it is not the embedding.
pub(super) const HEAD: &str = "lm_head.weight";

/// Where a model's weights come from, by the names that Hugging Face gives them.
pub(super) trait TensorSource {
    /// Takes the tensor `name` (`model.layers.0.self_attn.q_proj.weight`) as `f32`, row-major; the weights of linear
    /// maps are `[out, in]`.
    ///
    /// # Errors
    ///
    /// [`LoadError::Tensor`] when it is missing or its shape is not `shape`.
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError>;

    /// Takes matrices of `columns` columns, by name and number of rows, as one tensor: below one another.
    ///
    /// # Errors
    ///
    /// As [`take`](Self::take).
    fn take_matrices(
        &mut self,
        parts: &[(&str, usize)],
        columns: usize,
        device: &Device,
    ) -> Result<Tensor<2>, LoadError> {
        let rows: usize = parts.iter().map(|(_, rows)| rows).sum();
        // The sizes come from a file: nothing is reserved for them before the tensors are there.
        let mut values = Vec::new();
        for (name, rows) in parts {
            let part = self.take(name, &[*rows, columns])?;
            if values.is_empty() { values = part } else { values.extend(part) }
        }
        Ok(Tensor::from_data(TensorData::new(values, [rows, columns]), device))
    }
}

/// An error about a tensor.
fn tensor_error(name: &str, expected: impl ToString, got: impl ToString) -> LoadError {
    LoadError::Tensor {
        name: name.to_owned(),
        expected: expected.to_string(),
        got: got.to_string(),
    }
}
