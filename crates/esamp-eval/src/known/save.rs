//! A trained network as a folder that the library's own model is loaded from.

use std::{fs, io, path::Path};

use burn::{
    module::Param,
    tensor::{DType, Device, Tensor, TensorData},
};
use safetensors::{Dtype, SafeTensorError, SafeTensors, tensor::TensorView};
use serde_json::json;

use super::{Network, NetworkShape, Vocabulary};

/// A folder could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    #[error("{path}: {source}")]
    Io { path: String, source: io::Error },
    #[error("weights: {0}")]
    Weights(#[from] SafeTensorError),
    #[error("weights: {0}")]
    Device(String),
    #[error("{name}: expected bf16 of shape {expected:?}, got {got:?} of shape {shape:?}")]
    Weight { name: String, expected: Vec<usize>, got: Dtype, shape: Vec<usize> },
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
        let dims = stored(weight.dims());
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

/// Reads the weights that [`save`] has written to a folder, as a network of the given sizes.
///
/// # Errors
///
/// I/O errors, and weights that a network of these sizes does not have.
pub fn load(folder: &Path, shape: NetworkShape, device: &Device) -> Result<Network, SaveError> {
    let path = folder.join("model.safetensors");
    let named = |source| SaveError::Io { path: path.display().to_string(), source };
    let bytes = fs::read(&path).map_err(named)?;
    let saved = SafeTensors::deserialize(&bytes)?;
    let read = |name: &str, dims: [usize; 2]| {
        let (view, expected) = (saved.tensor(name)?, stored(dims));
        if view.dtype() != Dtype::BF16 || view.shape() != expected {
            let (name, got, shape) = (name.to_owned(), view.dtype(), view.shape().to_vec());
            return Err(SaveError::Weight { name, expected, got, shape });
        }
        // The bits of a bf16 are the upper half of those of an f32.
        let values = view.data().as_chunks().0.iter();
        let values = values.map(|&[low, high]| f32::from_le_bytes([0, 0, low, high])).collect();
        Ok(Tensor::<2>::from_data(TensorData::new::<f32, _>(values, dims), device))
    };
    let matrix = |name: &str, dims| read(name, dims).map(Param::from_tensor);
    let vector = |name: &str| {
        let column = read(name, [shape.d_model, 1])?;
        Ok::<_, SaveError>(Param::from_tensor(column.reshape([shape.d_model])))
    };
    let (d_model, d_hidden) = (shape.d_model, shape.d_hidden);
    let mut network = Network::new(shape, 0, device);
    network.embedding = matrix("model.embed_tokens.weight", [shape.vocab, d_model])?;
    network.norm = vector("model.norm.weight")?;
    for (number, block) in network.blocks.iter_mut().enumerate() {
        let name = |part: &str| format!("model.layers.{number}.{part}.weight");
        block.attention_norm = vector(&name("input_layernorm"))?;
        block.query = matrix(&name("self_attn.q_proj"), [d_model, d_model])?;
        block.key = matrix(&name("self_attn.k_proj"), [d_model, d_model])?;
        block.value = matrix(&name("self_attn.v_proj"), [d_model, d_model])?;
        block.output = matrix(&name("self_attn.o_proj"), [d_model, d_model])?;
        block.mlp_norm = vector(&name("post_attention_layernorm"))?;
        block.gate = matrix(&name("mlp.gate_proj"), [d_hidden, d_model])?;
        block.up = matrix(&name("mlp.up_proj"), [d_hidden, d_model])?;
        block.down = matrix(&name("mlp.down_proj"), [d_model, d_hidden])?;
    }
    Ok(network)
}

/// The dimensions in a checkpoint: a vector has no second one.
fn stored(dims: [usize; 2]) -> Vec<usize> {
    if dims[1] == 1 { vec![dims[0]] } else { dims.to_vec() }
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
