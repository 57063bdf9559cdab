//! A trained network as a folder that the library's own model is loaded from.

use std::{fs, io, path::Path};

use burn::tensor::{DType, Tensor};
use safetensors::{Dtype, SafeTensorError, tensor::TensorView};
use serde_json::json;

use super::{Network, NetworkShape, Vocabulary};

/// A folder could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    #[error("{path}: {source}")]
    Io { path: String, source: io::Error },
    #[error("weights: {0}")]
    Weights(#[from] SafeTensorError),
    #[error("weights: {0}")]
    Device(String),
}

/// Writes `config.json`, `tokenizer.json` and `model.safetensors`, in `bf16`, to a folder. `trained` says how, for
/// readers of `config.json`.
///
/// # Errors
///
/// I/O errors.
pub fn save(
    network: &Network,
    vocabulary: &Vocabulary,
    trained: &serde_json::Value,
    folder: &Path,
) -> Result<(), SaveError> {
    let shape = network.shape();
    let config = json!({
        "model_type": "llama", "hidden_act": "silu", "eos_token_id": Vocabulary::END,
        "hidden_size": shape.d_model, "intermediate_size": shape.d_hidden,
        "num_hidden_layers": shape.n_layers, "num_attention_heads": shape.n_heads,
        "vocab_size": shape.vocab, "max_position_embeddings": 64,
        "rms_norm_eps": NetworkShape::EPS, "rope_theta": NetworkShape::THETA, "tie_word_embeddings": true,
        "trained": trained,
    });
    let mut weights: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, weight) in tensors(network) {
        let dims = weight.dims();
        // A vector is stored without its second dimension.
        let dims = if dims[1] == 1 { vec![dims[0]] } else { dims.to_vec() };
        let data = weight.cast(DType::BF16).try_into_data();
        let data = data.map_err(|error| SaveError::Device(format!("{error:?}")))?;
        weights.push((name, dims, data.bytes().to_vec()));
    }
    let views = weights.iter().map(|(name, dims, bytes)| {
        Ok((name.clone(), TensorView::new(Dtype::BF16, dims.clone(), bytes)?))
    });
    let views: Vec<(String, TensorView<'_>)> = views.collect::<Result<_, SafeTensorError>>()?;
    let weights = safetensors::serialize(views, None)?;
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        let named = |source| SaveError::Io { path: path.display().to_string(), source };
        fs::write(&path, bytes).map_err(named)
    };
    let made = |source| SaveError::Io { path: folder.display().to_string(), source };
    fs::create_dir_all(folder).map_err(made)?;
    write("config.json", format!("{config:#}\n").as_bytes())?;
    write("tokenizer.json", vocabulary.tokenizer().to_string().as_bytes())?;
    write("model.safetensors", &weights)
}

/// The weights by the names of checkpoints; vectors as one column.
fn tensors(network: &Network) -> Vec<(String, Tensor<2>)> {
    let column = |vector: Tensor<1>| {
        let width = vector.dims()[0];
        vector.reshape([width, 1])
    };
    let mut all = vec![
        ("model.embed_tokens.weight".to_owned(), network.embedding.val()),
        ("model.norm.weight".to_owned(), column(network.norm.val())),
    ];
    for (number, block) in network.blocks.iter().enumerate() {
        let parts = [
            ("input_layernorm", column(block.attention_norm.val())),
            ("self_attn.q_proj", block.query.val()),
            ("self_attn.k_proj", block.key.val()),
            ("self_attn.v_proj", block.value.val()),
            ("self_attn.o_proj", block.output.val()),
            ("post_attention_layernorm", column(block.mlp_norm.val())),
            ("mlp.gate_proj", block.gate.val()),
            ("mlp.up_proj", block.up.val()),
            ("mlp.down_proj", block.down.val()),
        ];
        let named = |(name, weight)| (format!("model.layers.{number}.{name}.weight"), weight);
        all.extend(parts.map(named));
    }
    all
}
