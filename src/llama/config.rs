//! Configuration of a Llama-type model.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::LoadError;

/// Shape and settings of a Llama-type model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LlamaConfig {
    /// Width of the hidden states.
    pub d_model: usize,
    /// Width of the MLP.
    pub d_hidden: usize,
    /// Number of blocks.
    pub n_layers: usize,
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key and value heads. Must divide `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head. Must be even.
    pub head_dim: usize,
    /// Size of the vocabulary.
    pub vocab_size: usize,
    /// Maximum number of tokens in a sequence.
    pub context_length: usize,
    /// ε of the RMSNorm layers.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// Scaling of the rotary frequencies for long contexts.
    pub rope_scaling: RopeScaling,
    /// Whether the LM head is the embedding matrix.
    pub tied_embeddings: bool,
    /// Whether the query, key and value projections have biases (Qwen2).
    pub qkv_bias: bool,
    /// Whether the output projection of the attention has a bias.
    pub o_bias: bool,
    /// Whether queries and keys are normalised per head (Qwen3).
    pub qk_norm: bool,
}

/// Scaling of the rotary frequencies for contexts longer than in the original training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RopeScaling {
    /// No scaling.
    None,
    /// Every frequency is divided by the factor.
    Linear {
        /// The factor.
        factor: f32,
    },
    /// Llama 3 scaling: low frequencies are divided by the factor, high frequencies are unchanged, and those in
    /// between are interpolated.
    Llama3 {
        /// The factor.
        factor: f32,
        /// Wavelengths longer than the original context divided by this value are scaled.
        low_freq_factor: f32,
        /// Wavelengths shorter than the original context divided by this value are not scaled.
        high_freq_factor: f32,
        /// The original context length, in tokens.
        original_context: f32,
    },
    /// YaRN (Peng et al., arXiv 2309.00071): pairs that turn often over the original context are unchanged, those that
    /// turn seldom are divided by the factor, and those in between are interpolated. Cosines and sines are multiplied
    /// by a factor of their own.
    Yarn {
        /// The factor.
        factor: f32,
        /// Factor of cosines and sines. The paper recommends `0.1 ln(factor) + 1`.
        attention_factor: f32,
        /// Pairs with more turns over the original context are not scaled. The paper recommends 32.
        beta_fast: f32,
        /// Pairs with fewer turns over the original context are divided by the whole factor. The paper recommends 1.
        beta_slow: f32,
        /// The original context length, in tokens.
        original_context: f32,
        /// Whether the two bounds are rounded outwards to whole pairs, as in the reference implementation.
        truncate: bool,
    },
    /// A divisor for each frequency, as stored in GGUF files of Llama 3: `head_dim / 2` numbers.
    Factors(Vec<f32>),
}

impl LlamaConfig {
    /// The configuration of a model with `n_layers` blocks of `n_heads` query heads, as many key and value heads, and
    /// heads of width `d_model / n_heads`. The rest is that of the first Llama: 2048 tokens of context, ε 1e-6, rotary
    /// base 10,000, an LM head of its own, and no biases. A `with_` method changes each of these.
    pub fn new(
        d_model: usize,
        d_hidden: usize,
        n_layers: usize,
        n_heads: usize,
        vocab_size: usize,
    ) -> Self {
        Self {
            d_model,
            d_hidden,
            n_layers,
            n_heads,
            n_kv_heads: n_heads,
            head_dim: d_model / n_heads.max(1),
            vocab_size,
            context_length: 2048,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            tied_embeddings: false,
            qkv_bias: false,
            o_bias: false,
            qk_norm: false,
        }
    }

    /// Sets the number of blocks.
    pub fn with_n_layers(mut self, n_layers: usize) -> Self {
        self.n_layers = n_layers;
        self
    }

    /// Sets the number of key and value heads, and the width of a head.
    pub fn with_heads(mut self, n_kv_heads: usize, head_dim: usize) -> Self {
        (self.n_kv_heads, self.head_dim) = (n_kv_heads, head_dim);
        self
    }

    /// Sets the maximum number of tokens in a sequence.
    pub fn with_context_length(mut self, tokens: usize) -> Self {
        self.context_length = tokens;
        self
    }

    /// Sets ε of the RMSNorm layers.
    pub fn with_rms_norm_eps(mut self, eps: f32) -> Self {
        self.rms_norm_eps = eps;
        self
    }

    /// Sets the base of the rotary frequencies and their scaling.
    pub fn with_rope(mut self, theta: f32, scaling: RopeScaling) -> Self {
        (self.rope_theta, self.rope_scaling) = (theta, scaling);
        self
    }

    /// Uses the embedding matrix as the LM head.
    pub fn with_tied_embeddings(mut self) -> Self {
        self.tied_embeddings = true;
        self
    }

    /// Adds biases to the query, key and value projections, as in Qwen2.
    pub fn with_qkv_bias(mut self) -> Self {
        self.qkv_bias = true;
        self
    }

    /// Adds a bias to the output projection of the attention.
    pub fn with_o_bias(mut self) -> Self {
        self.o_bias = true;
        self
    }

    /// Normalises queries and keys per head, as in Qwen3.
    pub fn with_qk_norm(mut self) -> Self {
        self.qk_norm = true;
        self
    }

    /// Parses the text of a Hugging Face `config.json`.
    ///
    /// Rotary scaling may be of kind `default`, `linear`, `llama3`, `yarn` or `dynamic`. With YaRN, the context length
    /// is the factor times the original one if that is longer than `max_position_embeddings`.
    ///
    /// Dynamic NTK changes nothing up to `max_position_embeddings`, and the context ends there: the scaling is
    /// [`RopeScaling::None`], with a [warning](super::Llama::warnings). Beyond, a model could not keep the promises of
    /// [`CausalLm`](crate::CausalLm). transformers takes the base of a forward pass from its longest row, keeps a
    /// larger one for later passes, and does not rotate cached keys again. So the logits of a row depend on the rows
    /// alongside and before it, and on the pieces in which its prompt is read: in transformers 5.24, the logits of a
    /// row of 45 tokens alongside or after one of 70 differ by twice their standard deviation from those of the row
    /// alone (the golden model `dynamic`, whose context is 40).
    ///
    /// # Errors
    ///
    /// [`LoadError::Key`] if the text is not valid JSON, or if a key is missing, has the wrong type or requests an
    /// unsupported feature.
    pub fn from_hf_json(json: &str) -> Result<Self, LoadError> {
        let json = serde_json::from_str(json).map_err(|error| unusable("config", "JSON", error))?;
        Self::from_hf_value(&json, &mut Vec::new())
    }

    /// Like [`from_hf_json`](Self::from_hf_json), for JSON that is already parsed. Adds to `warnings`.
    pub(in crate::llama) fn from_hf_value(
        json: &Value,
        warnings: &mut Vec<String>,
    ) -> Result<Self, LoadError> {
        let keys = Keys(json, "");
        let model_type = keys.string("model_type")?;
        let qwen2 = match model_type {
            "llama" | "smollm2" | "qwen3" => false,
            "qwen2" => true,
            other => return Err(unusable("model_type", "llama, qwen2 or qwen3", other)),
        };
        keys.expect_if_there("hidden_act", &Value::from("silu"))?;
        keys.expect_if_there("mlp_bias", &Value::from(false))?;
        keys.expect_if_there("use_sliding_window", &Value::from(false))?;
        let d_model = keys.size("hidden_size")?;
        let n_heads = keys.size("num_attention_heads")?;
        let attention_bias = keys.flag("attention_bias", false)?;
        let rope = rope::Settings::read(&keys, warnings)?;
        let config = Self {
            d_model,
            d_hidden: keys.size("intermediate_size")?,
            n_layers: keys.size("num_hidden_layers")?,
            n_heads,
            n_kv_heads: keys.size_or("num_key_value_heads", n_heads)?,
            head_dim: keys.size_or("head_dim", d_model / n_heads.max(1))?,
            vocab_size: keys.size("vocab_size")?,
            context_length: rope.context_length,
            rms_norm_eps: keys.number("rms_norm_eps")?,
            rope_theta: rope.theta,
            rope_scaling: rope.scaling,
            tied_embeddings: keys.flag("tie_word_embeddings", false)?,
            qkv_bias: qwen2 || attention_bias,
            o_bias: !qwen2 && attention_bias,
            qk_norm: model_type == "qwen3",
        };
        config.validate()?;
        Ok(config)
    }

    /// Maximum value of a size. A larger one means a damaged file, and products of sizes could overflow.
    const MAX_SIZE: usize = 1 << 24;

    /// Checks that the sizes are consistent, and that no other setting would turn every state into NaN.
    ///
    /// # Errors
    ///
    /// [`LoadError::Key`] for the first invalid setting.
    pub fn validate(&self) -> Result<(), LoadError> {
        for (key, size) in [
            ("d_model", self.d_model),
            ("d_hidden", self.d_hidden),
            ("n_layers", self.n_layers),
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads),
            ("head_dim", self.head_dim),
            ("vocab_size", self.vocab_size),
            ("context_length", self.context_length),
        ] {
            if size == 0 || size > Self::MAX_SIZE {
                return Err(unusable(key, format!("1 to {}", Self::MAX_SIZE), size));
            }
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let expected = format!("a divisor of {} heads", self.n_heads);
            return Err(unusable("n_kv_heads", expected, self.n_kv_heads));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(unusable("head_dim", "an even number", self.head_dim));
        }
        let eps = self.rms_norm_eps;
        if !(eps.is_finite() && eps >= 0.0) {
            return Err(unusable("rms_norm_eps", "a finite number of at least 0", eps));
        }
        positive("rope_theta", self.rope_theta)?;
        let is_yarn = matches!(self.rope_scaling, RopeScaling::Yarn { .. });
        if is_yarn && self.rope_theta <= 1.0 {
            return Err(unusable("rope_theta", "more than 1 with YaRN", self.rope_theta));
        }
        self.rope_scaling.validate(self.head_dim)
    }

    /// Number of parameters, saturating at `usize::MAX`.
    pub fn num_params(&self) -> usize {
        // Sizes are at most 2^24, so a product of up to four of them fits in 128 bits.
        let [d_model, d_hidden, n_layers, n_heads, n_kv_heads, head_dim, vocab_size] = [
            self.d_model,
            self.d_hidden,
            self.n_layers,
            self.n_heads,
            self.n_kv_heads,
            self.head_dim,
            self.vocab_size,
        ]
        .map(|size| size as u128);
        let heads = (n_heads + 2 * n_kv_heads) * head_dim;
        let attention = d_model * (heads + n_heads * head_dim)
            + if self.qkv_bias { heads } else { 0 }
            + if self.o_bias { d_model } else { 0 }
            + if self.qk_norm { 2 * head_dim } else { 0 };
        let block = attention + 3 * d_model * d_hidden + 2 * d_model;
        let embeddings = if self.tied_embeddings { 1 } else { 2 };
        let all = n_layers * block + embeddings * vocab_size * d_model + d_model;
        usize::try_from(all).unwrap_or(usize::MAX)
    }
}

impl RopeScaling {
    /// Checks that every frequency stays a positive number.
    fn validate(&self, head_dim: usize) -> Result<(), LoadError> {
        match self {
            Self::None => Ok(()),
            Self::Linear { factor } => positive("rope_scaling.factor", *factor),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                positive("rope_scaling.factor", *factor)?;
                positive("rope_scaling.low_freq_factor", *low_freq_factor)?;
                positive("rope_scaling.high_freq_factor", *high_freq_factor)?;
                positive("rope_scaling.original_max_position_embeddings", *original_context)?;
                if high_freq_factor <= low_freq_factor {
                    let expected = format!("more than the low_freq_factor, {low_freq_factor}");
                    let key = "rope_scaling.high_freq_factor";
                    return Err(unusable(key, expected, high_freq_factor));
                }
                Ok(())
            }
            Self::Yarn {
                factor,
                attention_factor,
                beta_fast,
                beta_slow,
                original_context,
                truncate: _,
            } => {
                positive("rope_scaling.factor", *factor)?;
                positive("rope_scaling.attention_factor", *attention_factor)?;
                positive("rope_scaling.beta_fast", *beta_fast)?;
                positive("rope_scaling.beta_slow", *beta_slow)?;
                positive("rope_scaling.original_max_position_embeddings", *original_context)
            }
            Self::Factors(factors) => {
                if factors.len() != head_dim / 2 {
                    let expected = format!("{} factors", head_dim / 2);
                    return Err(unusable("rope_freqs.weight", expected, factors.len()));
                }
                factors.iter().try_for_each(|&factor| positive("rope_freqs.weight", factor))
            }
        }
    }
}

pub(super) fn positive(key: &str, value: f32) -> Result<(), LoadError> {
    if value.is_finite() && value > 0.0 {
        Ok(())
    } else {
        Err(unusable(key, "a finite number above 0", value))
    }
}

/// The keys of a `config.json` or of an object in it, with errors that name the key. The text precedes the names of the
/// keys in errors.
struct Keys<'a>(&'a Value, &'static str);

impl<'a> Keys<'a> {
    /// The value of a key. `null` counts as none.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn unusable(&self, key: &str, expected: impl ToString, got: impl ToString) -> LoadError {
        unusable(&format!("{}{key}", self.1), expected, got)
    }

    fn required(&self, key: &str, expected: &str) -> Result<&'a Value, LoadError> {
        self.get(key).ok_or_else(|| self.unusable(key, expected, "none"))
    }

    fn string(&self, key: &str) -> Result<&'a str, LoadError> {
        let value = self.required(key, "a string")?;
        value.as_str().ok_or_else(|| self.unusable(key, "a string", value))
    }

    fn size(&self, key: &str) -> Result<usize, LoadError> {
        let value = self.required(key, "a whole number")?;
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.ok_or_else(|| self.unusable(key, "a whole number", value))
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize, LoadError> {
        if self.get(key).is_some() { self.size(key) } else { Ok(default) }
    }

    fn number(&self, key: &str) -> Result<f32, LoadError> {
        let value = self.required(key, "a number")?;
        value.as_f64().map(|n| n as f32).ok_or_else(|| self.unusable(key, "a number", value))
    }

    fn number_if_there(&self, key: &str) -> Result<Option<f32>, LoadError> {
        if self.get(key).is_some() { self.number(key).map(Some) } else { Ok(None) }
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, LoadError> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        value.as_bool().ok_or_else(|| self.unusable(key, "true or false", value))
    }

    fn expect_if_there(&self, key: &str, expected: &Value) -> Result<(), LoadError> {
        match self.get(key) {
            Some(value) if value != expected => Err(self.unusable(key, expected, value)),
            _ => Ok(()),
        }
    }
}

/// Builds an error about a key of a configuration.
pub(super) fn unusable(key: &str, expected: impl ToString, got: impl ToString) -> LoadError {
    LoadError::Key { key: key.to_owned(), expected: expected.to_string(), got: got.to_string() }
}

mod rope;

#[cfg(test)]
mod tests;
