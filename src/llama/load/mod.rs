//! Loading of weights.

mod gguf;
mod kind;
mod random;
mod safetensors;

pub(super) use self::safetensors::read_json;
pub(super) use gguf::Gguf;

use burn::tensor::{Device, Tensor, TensorData};

use crate::{host::packed::PackedMatrix, llama::error::LoadError};

/// Tensor name of the embedding.
pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
/// Tensor name of the LM head, if it is not tied to the embedding.
pub(super) const HEAD: &str = "lm_head.weight";

/// A source of weights, addressed by Hugging Face tensor names.
pub(super) trait TensorSource {
    /// Takes the tensor `name` (for example `model.layers.0.self_attn.q_proj.weight`) as `f32`, row-major. Weights of
    /// linear layers have shape `[out, in]`.
    ///
    /// # Errors
    ///
    /// [`LoadError::Tensor`] if it is missing or its shape is not `shape`.
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError>;

    /// Whether the source has a tensor of this name. A source that makes up what it is asked for has none of its own.
    ///
    /// # Errors
    ///
    /// [`LoadError`] if the file that should hold it cannot be opened.
    fn has(&mut self, _name: &str) -> Result<bool, LoadError> {
        Ok(false)
    }

    /// Takes matrices as [`take_matrices`](Self::take_matrices) does, but packed as they are in the file. `None` if the
    /// file does not have them packed.
    ///
    /// # Errors
    ///
    /// The same as [`take`](Self::take).
    fn take_packed(
        &mut self,
        _parts: &[(&str, usize)],
        _columns: usize,
    ) -> Result<Option<PackedMatrix>, LoadError> {
        Ok(None)
    }

    /// Takes several matrices of `columns` columns, given by name and number of rows, concatenated along the rows.
    ///
    /// # Errors
    ///
    /// The same as [`take`](Self::take).
    fn take_matrices(
        &mut self,
        parts: &[(&str, usize)],
        columns: usize,
        device: &Device,
    ) -> Result<Tensor<2>, LoadError> {
        let rows: usize = parts.iter().map(|(_, rows)| rows).sum();
        // The sizes come from a file, so no memory is reserved before the tensors are read.
        let mut values = Vec::new();
        for (name, rows) in parts {
            let part = self.take(name, &[*rows, columns])?;
            if values.is_empty() {
                values = part;
            } else {
                values.reserve_exact(part.len()); // spare room would stay for as long as the model
                values.extend(part);
            }
        }
        Ok(Tensor::from_data(TensorData::new(values, [rows, columns]), device))
    }
}

/// Builds an error about a tensor.
fn tensor_error(name: &str, expected: impl ToString, got: impl ToString) -> LoadError {
    LoadError::Tensor {
        name: name.to_owned(),
        expected: expected.to_string(),
        got: got.to_string(),
    }
}
