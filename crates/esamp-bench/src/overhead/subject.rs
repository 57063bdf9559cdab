//! The models to run and their prompts.

use std::error::Error;

use burn::tensor::{DType, Device};
use clap::ValueEnum;
use esamp::{
    CausalLm, TokenId,
    llama::{Llama, LlamaConfig, RopeScaling, Tokenizer},
};
use esamp_programs::{
    model_source::{Cache, ModelSource},
    weights::{WeightsArg, WeightsName},
};

/// SmolLM2-135M with its weights, and shapes of other models with random weights. The cost of a step
/// depends only on the shape.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum ModelName {
    /// SmolLM2-135M-Instruct; the only one that is downloaded.
    Smollm2,
    /// The shape of SmolLM2-135M.
    #[value(name = "135m")]
    Small,
    /// The shape of Qwen2.5-0.5B.
    #[value(name = "0.5b")]
    Half,
    /// The shape of SmolLM2-1.7B.
    #[value(name = "1.7b")]
    Two,
    /// The shape of Qwen2.5-7B.
    #[value(name = "7b")]
    Seven,
    /// A tiny shape for tests of the bench.
    Tiny,
}

/// The precision of a model's weights.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum DTypeName {
    F32,
    Bf16,
    F16,
}

impl DTypeName {
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }
}

/// A model and its prompts.
pub struct Subject {
    pub name: &'static str,
    pub dtype: DTypeName,
    pub model: Llama,
    tokenizer: Option<Tokenizer>,
}

/// The standard deviation of random logits. A random head of the usual scale has 1, and min-p 0.05 would
/// keep a tenth of the vocabulary. With this value it keeps some 10 to 20 tokens, as a real model does at
/// temperature 1. The actual number is printed with each result.
const LOGIT_STD: f32 = 4.0;

/// Tokens in a prompt without words; about as many as the prompts with words have.
const PROMPT_TOKENS: usize = 12;

const PROMPTS: [&str; 8] = [
    "The lighthouse had been dark for twenty years when",
    "A short list of things that a robot could learn from a gardener:",
    "Dear editor, I am writing to you because the river behind our house",
    "In the year that the clocks stopped, nobody in the village",
    "What the oldest bridge of the city has seen, told by itself:",
    "My grandmother kept one secret recipe, and it began with",
    "Three reasons why a library should stay open at night:",
    "The map showed an island where the sea was empty, so the captain",
];

impl ModelName {
    /// Opens the model. In `f32` on flex SmolLM2 stays packed, unless `weights` says otherwise; random weights are packed
    /// only if it says so.
    pub fn load(
        self,
        dtype: DTypeName,
        weights: WeightsArg,
        device: &Device,
    ) -> Result<Subject, Box<dyn Error>> {
        let is_asked_for = weights.weights == Some(WeightsName::Packed);
        let (model, tokenizer) = match self.shape() {
            Some(shape) if is_asked_for && dtype == DTypeName::F32 => {
                (Llama::random_packed(shape, LOGIT_STD, 0, device)?, None)
            }
            Some(_) if is_asked_for => return Err(packed_and(dtype).into()),
            Some(shape) => {
                (Llama::random_on_device(shape, LOGIT_STD, 0, dtype.dtype(), device)?, None)
            }
            None => {
                let path = ModelSource::SmolLm2.fetch(&Cache::from_env()?)?;
                let model = weights.apply(Llama::from_gguf(&path, device)?)?;
                let model = match dtype {
                    DTypeName::F32 => model,
                    dtype if is_asked_for => return Err(packed_and(dtype).into()),
                    dtype => model.cast(dtype.dtype())?,
                };
                (model, Some(Tokenizer::from_gguf(&path)?))
            }
        };
        Ok(Subject { name: self.name(), dtype, model, tokenizer })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Smollm2 => "SmolLM2-135M-Instruct",
            Self::Small => "the shape of SmolLM2-135M",
            Self::Half => "the shape of Qwen2.5-0.5B",
            Self::Two => "the shape of SmolLM2-1.7B",
            Self::Seven => "the shape of Qwen2.5-7B",
            Self::Tiny => "a tiny shape",
        }
    }

    /// The shape of a model without weights, from the `config.json` of the model it is named after.
    pub fn shape(self) -> Option<LlamaConfig> {
        let smollm2 = |d_model, d_hidden, n_layers, n_heads, theta| {
            LlamaConfig::new(d_model, d_hidden, n_layers, n_heads, 49_152)
                .with_context_length(8192)
                .with_rms_norm_eps(1e-5)
                .with_rope(theta, RopeScaling::None)
                .with_tied_embeddings()
        };
        let qwen = |d_model, d_hidden, n_layers, n_heads, vocab_size| {
            LlamaConfig::new(d_model, d_hidden, n_layers, n_heads, vocab_size)
                .with_context_length(32_768)
                .with_rope(1e6, RopeScaling::None)
                .with_qkv_bias()
        };
        Some(match self {
            Self::Smollm2 => return None,
            Self::Small => smollm2(576, 1536, 30, 9, 1e5).with_heads(3, 64),
            Self::Half => qwen(896, 4864, 24, 14, 151_936).with_heads(2, 64).with_tied_embeddings(),
            Self::Two => smollm2(2048, 8192, 24, 32, 1.3e5),
            Self::Seven => qwen(3584, 18_944, 28, 28, 152_064).with_heads(4, 128),
            Self::Tiny => qwen(32, 48, 2, 4, 256)
                .with_heads(2, 8)
                .with_context_length(128)
                .with_tied_embeddings(),
        })
    }
}

fn packed_and(dtype: DTypeName) -> String {
    format!("--weights packed: expected --dtype f32, got {}", dtype.name())
}

impl Subject {
    /// A model with random packed weights.
    pub fn packed(name: &'static str, shape: LlamaConfig) -> Result<Self, Box<dyn Error>> {
        let model = Llama::random_packed(shape, LOGIT_STD, 0, &Device::flex())?;
        Ok(Self { name, dtype: DTypeName::F32, model, tokenizer: None })
    }

    /// Whether the model has real weights and its prompts are words.
    pub fn has_words(&self) -> bool {
        self.tokenizer.is_some()
    }

    /// The tokens of the first `count` prompts, all different.
    pub fn prompts(&self, count: usize) -> Result<Vec<Vec<TokenId>>, Box<dyn Error>> {
        let prompt = |at: usize| -> Result<Vec<TokenId>, Box<dyn Error>> {
            let Some(tokenizer) = &self.tokenizer else {
                // The first token is the index of the prompt; a fixed pattern follows.
                let tokens = (0..PROMPT_TOKENS).map(|i| if i == 0 { at } else { 31 * i + 17 * at });
                return Ok(tokens.map(|t| (t % self.model.vocab_size()) as TokenId).collect());
            };
            let (text, again) = (PROMPTS[at % PROMPTS.len()], at / PROMPTS.len());
            match again {
                0 => Ok(tokenizer.encode(text)?),
                again => Ok(tokenizer.encode(&format!("{again}. {text}"))?),
            }
        };
        (0..count).map(prompt).collect()
    }
}
