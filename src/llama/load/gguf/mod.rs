//! Loading a model from a GGUF file.

mod layout;
mod pack;
mod quant;
mod reader;
mod split;
mod value;

use std::path::Path;

use burn::tensor::Device;

use pack::pack;
pub(crate) use reader::Gguf;
use reader::Packed;

use super::{TensorSource, tensor_error};
use crate::{
    host::packed::PackedMatrix,
    llama::error::LoadError,
    llama::{Llama, LlamaConfig, RopeScaling, config::unusable},
    lm_head::HeadRows,
};

impl Llama {
    /// Loads a model from a GGUF file. On flex, matrices stay packed as in the file and are unpacked to `f32` while they
    /// are multiplied, so the results are those of `f32`; on other devices, they are dequantised to `f32`.
    /// [`cast`](Self::cast) to `f32` dequantises them on flex too. Of a split file, give the first
    /// part, `NAME-00001-of-0000N.gguf`, with the others next to it.
    ///
    /// Supports the architectures `llama`, `qwen2` and `qwen3`, and the tensor types F32, F16, BF16, Q8_0, Q4_0,
    /// Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K.
    ///
    /// # Errors
    ///
    /// [`LoadError`] with the name of the key or tensor, what was expected and what was found.
    pub fn from_gguf(path: impl AsRef<Path>, device: &Device) -> Result<Self, LoadError> {
        let mut file = Gguf::open(path.as_ref())?;
        let config = LlamaConfig::from_gguf(&mut file)?;
        let mut source = GgufSource::new(file, &config)?;
        Self::from_source(config, &mut source, device)
    }
}

impl HeadRows<'static> {
    /// Reads the LM head of a GGUF file of any architecture: `output.weight`, or `token_embd.weight` if the model ties
    /// the two. For an engine that computes the rest of the model itself. The matrix stays in memory as it is packed in
    /// the file, and a row is dequantised to `f32` when it is needed: 17 MB instead of 113 for SmolLM2-135M in Q4_1.
    ///
    /// # Errors
    ///
    /// [`LoadError`] when the file is damaged, the tensor is missing, not a matrix or of an unsupported type, or the
    /// head has a bias (`output.bias`).
    pub fn from_gguf(path: impl AsRef<Path>) -> Result<Self, LoadError> {
        let mut file = Gguf::open(path.as_ref())?;
        if file.tensor("output.bias").is_some() {
            return Err(tensor_error("output.bias", "a head without bias", "one with bias"));
        }
        let names = ["output.weight", "token_embd.weight"];
        let name = names.into_iter().find(|name| file.tensor(name).is_some()).unwrap_or(names[1]);
        let shape = match file.tensor(name) {
            Some(info) => info.shape.clone(),
            None => return Err(tensor_error(name, "the LM head or the embedding matrix", "none")),
        };
        let &[vocab, d_model] = shape.as_slice() else {
            return Err(tensor_error(name, "two dimensions", format!("shape {shape:?}")));
        };
        let packed = file.read_packed(name)?;
        let row_bytes = packed.bytes_of(d_model).ok_or_else(|| {
            tensor_error(name, "rows of whole blocks", format!("shape {shape:?}"))
        })?;
        let rows = Self::new(vocab, d_model, move |tokens, rows| {
            for (&token, row) in tokens.iter().zip(rows.chunks_exact_mut(d_model)) {
                packed.dequantise_row(token as usize * row_bytes, row);
            }
        });
        rows.map_err(|_| {
            tensor_error(name, "at least one row and one column", format!("{shape:?}"))
        })
    }
}

impl LlamaConfig {
    /// Reads the configuration from the metadata of a GGUF file.
    fn from_gguf(file: &mut Gguf) -> Result<Self, LoadError> {
        let architecture = file.string("general.architecture")?.to_owned();
        let key = |name: &str| format!("{architecture}.{name}");
        if !["llama", "qwen2", "qwen3"].contains(&architecture.as_str()) {
            return Err(unusable("general.architecture", "llama, qwen2 or qwen3", architecture));
        }
        let d_model = file.size(&key("embedding_length"))?;
        let n_heads = file.size(&key("attention.head_count"))?;
        let or = |name: &str, default: usize| {
            if file.has_key(&key(name)) { file.size(&key(name)) } else { Ok(default) }
        };
        // `validate`, which refuses 0 heads, runs only below.
        let head_dim = or("attention.key_length", d_model / n_heads.max(1))?;
        let rotated = or("rope.dimension_count", head_dim)?;
        if rotated != head_dim {
            let expected = format!("{head_dim}, the whole head");
            return Err(unusable(&key("rope.dimension_count"), expected, rotated));
        }
        let Some(embedding) = file.tensor("token_embd.weight") else {
            return Err(tensor_error("token_embd.weight", "the embedding matrix", "none"));
        };
        let vocab_size = embedding.shape[0];
        let n_kv_heads = or("attention.head_count_kv", n_heads)?;
        let context_length = file.size(&key("context_length"))?;
        let scaling = rope_scaling(file, &architecture, context_length)?;
        // Saturates; validated with the other sizes.
        let longest = match &scaling {
            RopeScaling::Yarn { factor, original_context, .. } => {
                (factor * original_context) as usize
            }
            _ => 0,
        };
        let config = Self {
            d_model,
            d_hidden: file.size(&key("feed_forward_length"))?,
            n_layers: file.size(&key("block_count"))?,
            n_heads,
            n_kv_heads,
            head_dim,
            vocab_size,
            context_length: context_length.max(longest),
            rms_norm_eps: file.number(&key("attention.layer_norm_rms_epsilon"))?,
            rope_theta: if file.has_key(&key("rope.freq_base")) {
                file.number(&key("rope.freq_base"))?
            } else {
                10_000.0
            },
            // GGUF has no keys for the next four: a tensor that is in the file is used.
            tied_embeddings: file.tensor("output.weight").is_none(),
            qkv_bias: file.tensor("blk.0.attn_q.bias").is_some(),
            o_bias: file.tensor("blk.0.attn_output.bias").is_some(),
            qk_norm: file.tensor("blk.0.attn_q_norm.weight").is_some(),
            rope_scaling: scaling,
        };
        config.validate()?;
        Ok(config)
    }
}

fn rope_scaling(
    file: &mut Gguf,
    architecture: &str,
    context_length: usize,
) -> Result<RopeScaling, LoadError> {
    let kind = format!("{architecture}.rope.scaling.type");
    if file.has_key(&kind) && file.string(&kind)? == "yarn" {
        return yarn(file, architecture, context_length);
    }
    let linear = linear_factor(file, architecture)?;
    if file.tensor("rope_freqs.weight").is_none() {
        return Ok(linear.map_or(RopeScaling::None, |factor| RopeScaling::Linear { factor }));
    }
    // Converters store the scaling of Llama 3 as a tensor of divisors, one per pair, and not in the metadata.
    let mut factors = file.read("rope_freqs.weight")?;
    for factor in &mut factors {
        *factor *= linear.unwrap_or(1.0);
    }
    Ok(RopeScaling::Factors(factors))
}

/// YaRN as llama.cpp reads it: the factor on the attention multiplies the one that the paper recommends.
fn yarn(file: &Gguf, architecture: &str, context_length: usize) -> Result<RopeScaling, LoadError> {
    let key = |name: &str| format!("{architecture}.rope.scaling.{name}");
    let or = |name: &str, default: f32| {
        if file.has_key(&key(name)) { file.number(&key(name)) } else { Ok(default) }
    };
    if file.tensor("rope_freqs.weight").is_some() {
        return Err(tensor_error("rope_freqs.weight", "no factors alongside YaRN", "a tensor"));
    }
    let extrapolation = or("yarn_ext_factor", 1.0)?;
    if extrapolation != 1.0 {
        return Err(unusable(&key("yarn_ext_factor"), "1", extrapolation));
    }
    let factor = file.number(&key("factor"))?;
    let original = key("original_context_length");
    let original = if file.has_key(&original) { file.size(&original)? } else { context_length };
    let recommended = if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 };
    Ok(RopeScaling::Yarn {
        factor,
        attention_factor: recommended * or("attn_factor", 1.0)? * or("yarn_attn_factor", 1.0)?,
        beta_fast: or("yarn_beta_fast", 32.0)?,
        beta_slow: or("yarn_beta_slow", 1.0)?,
        original_context: original as f32,
        truncate: true,
    })
}

/// The divisor of all rotary frequencies. If a file names no scaling type, the scaling is linear. Older files use
/// another key for the factor.
fn linear_factor(file: &Gguf, architecture: &str) -> Result<Option<f32>, LoadError> {
    let kind = format!("{architecture}.rope.scaling.type");
    let [factor, older] =
        ["rope.scaling.factor", "rope.scale_linear"].map(|name| format!("{architecture}.{name}"));
    let named = if file.has_key(&kind) { Some(file.string(&kind)?) } else { None };
    match named {
        Some("none") => Ok(None),
        Some("linear") if !file.has_key(&older) => file.number(&factor).map(Some),
        Some("linear") | None => [factor, older]
            .iter()
            .find(|key| file.has_key(key))
            .map(|key| file.number(key))
            .transpose(),
        Some(other) => Err(unusable(&kind, "none, linear or yarn", other)),
    }
}

/// A GGUF file, accessed by Hugging Face tensor names.
struct GgufSource {
    file: Gguf,
    /// Numbers of query heads and key heads, if the converter has interleaved their rows.
    interleaved: Option<(usize, usize)>,
}

impl GgufSource {
    fn new(file: Gguf, config: &LlamaConfig) -> Result<Self, LoadError> {
        // In GGUF files of the `llama` architecture, rotary pairs are neighbouring dimensions. In those of Qwen, and
        // in this crate, they are half a head apart.
        let llama = file.string("general.architecture")? == "llama";
        let interleaved = llama.then_some((config.n_heads, config.n_kv_heads));
        Ok(Self { file, interleaved })
    }
}

impl GgufSource {
    /// The name of a tensor in the file, which has this shape.
    fn find(&self, name: &str, shape: &[usize]) -> Result<String, LoadError> {
        let theirs = gguf_name(name);
        let Some(info) = self.file.tensor(&theirs) else {
            return Err(tensor_error(&theirs, format!("shape {shape:?}"), "none"));
        };
        if info.shape != shape {
            let got = format!("shape {:?}", info.shape);
            return Err(tensor_error(&theirs, format!("shape {shape:?}"), got));
        }
        Ok(theirs)
    }

    /// For each of the `rows` rows of a tensor, its row in the file.
    fn order(&self, name: &str, rows: usize) -> impl Fn(usize) -> usize + use<> {
        let heads = match self.interleaved {
            // Biases too: they have one number per row of the matrix.
            Some((heads, _)) if name.contains("self_attn.q_proj") => Some(heads),
            Some((_, heads)) if name.contains("self_attn.k_proj") => Some(heads),
            _ => None,
        };
        move |row| heads.map_or(row, |heads| paired(row, rows / heads))
    }
}

impl TensorSource for GgufSource {
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let theirs = self.find(name, shape)?;
        let values = self.file.read(&theirs)?;
        let order = self.order(name, shape[0]);
        if (0..shape[0]).all(|row| order(row) == row) {
            return Ok(values);
        }
        let width = values.len() / shape[0];
        let rows = (0..shape[0]).map(|row| &values[order(row) * width..][..width]);
        Ok(rows.collect::<Vec<_>>().concat())
    }

    fn take_packed(
        &mut self,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> Result<Option<PackedMatrix>, LoadError> {
        let mut packed = Vec::with_capacity(parts.len());
        for &(name, rows) in parts {
            let theirs = self.find(name, &[rows, columns])?;
            let Packed { kind, raw, .. } = self.file.read_packed(&theirs)?;
            match pack(kind, &raw, [rows, columns], self.order(name, rows)) {
                Some(rows) => packed.push(rows),
                None => return Ok(None),
            }
        }
        Ok(Some(PackedMatrix::new(columns, packed)))
    }
}

/// The row in the file for row `row`, in heads of `head_dim` rows: the file has the two rows of a pair next to each
/// other, and this crate half a head apart.
fn paired(row: usize, head_dim: usize) -> usize {
    let (half, at) = (head_dim / 2, row % head_dim);
    row - at + at % half * 2 + at / half
}

/// The GGUF name of a tensor.
fn gguf_name(name: &str) -> String {
    let Some(rest) = name.strip_prefix("model.layers.") else {
        return match name {
            "model.embed_tokens.weight" => "token_embd.weight",
            "model.norm.weight" => "output_norm.weight",
            "lm_head.weight" => "output.weight",
            other => other,
        }
        .to_owned();
    };
    let (block, rest) = rest.split_once('.').unwrap_or((rest, ""));
    let (module, part) = rest.rsplit_once('.').unwrap_or((rest, ""));
    let module = match module {
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        other => other,
    };
    format!("blk.{block}.{module}.{part}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (theirs, ours) in [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("output.weight", "lm_head.weight"),
            ("blk.12.attn_q.bias", "model.layers.12.self_attn.q_proj.bias"),
            ("blk.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight"),
        ] {
            assert_eq!(gguf_name(ours), theirs);
        }
    }

    #[test]
    fn pairs_of_neighbours_become_pairs_of_halves() {
        // Two heads of four rows. The value of a row in the file is head·10 + its index in Hugging Face order.
        let file = [0, 2, 1, 3, 10, 12, 11, 13];
        let rows: Vec<i32> = (0..8).map(|row| file[paired(row, 4)]).collect();
        assert_eq!(rows, [0, 1, 2, 3, 10, 11, 12, 13]);
    }
}
