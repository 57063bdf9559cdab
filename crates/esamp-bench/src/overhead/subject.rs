//! The models that are run, and what they are asked.

use std::error::Error;

use burn::tensor::{DType, Device};
use clap::ValueEnum;
use esamp::{
    CausalLm, TokenId,
    llama::{Llama, LlamaConfig, RopeScaling, Tokenizer},
};
use esamp_programs::model_source::{Cache, ModelSource};

/// SmolLM2-135M with its weights, and shapes of other models with random ones: what a step costs depends on the shape.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum ModelName {
    /// SmolLM2-135M-Instruct; the only one that is fetched.
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
    /// A shape of nobody's, for tests of the bench.
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

/// How far random logits spread. Those of a random head of the usual scale have a standard deviation of 1, and min-p 0.05
/// would leave a tenth of the vocabulary; with this it leaves some 10 to 20 tokens, as a real model does at temperature 1.
/// How many it was is printed with each figure.
const LOGIT_STD: f32 = 4.0;

/// Tokens of a prompt without words, about as many as those with words have.
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
    pub fn load(self, dtype: DTypeName, device: &Device) -> Result<Subject, Box<dyn Error>> {
        let (model, tokenizer) = match self.shape() {
            Some(shape) => {
                let dtype = dtype.dtype();
                (Llama::random_on_device(shape, LOGIT_STD, 0, dtype, device)?, None)
            }
            None => {
                let path = ModelSource::SmolLm2.fetch(&Cache::from_env()?)?;
                let model = Llama::from_gguf(&path, device)?.cast(dtype.dtype())?;
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

    /// The shape of a model without weights, as the `config.json` of its namesake has it.
    pub fn shape(self) -> Option<LlamaConfig> {
        let qwen = LlamaConfig {
            d_model: 896,
            d_hidden: 4864,
            n_layers: 24,
            n_heads: 14,
            n_kv_heads: 2,
            head_dim: 64,
            vocab_size: 151_936,
            context_length: 32_768,
            rms_norm_eps: 1e-6,
            rope_theta: 1e6,
            rope_scaling: RopeScaling::None,
            tied_embeddings: true,
            qkv_bias: true,
            o_bias: false,
            qk_norm: false,
        };
        match self {
            Self::Smollm2 => None,
            Self::Small => Some(LlamaConfig {
                d_model: 576,
                d_hidden: 1536,
                n_layers: 30,
                n_heads: 9,
                n_kv_heads: 3,
                vocab_size: 49_152,
                context_length: 8192,
                rms_norm_eps: 1e-5,
                rope_theta: 100_000.0,
                qkv_bias: false,
                ..qwen
            }),
            Self::Half => Some(qwen),
            Self::Two => Some(LlamaConfig {
                d_model: 2048,
                d_hidden: 8192,
                n_heads: 32,
                n_kv_heads: 32,
                vocab_size: 49_152,
                context_length: 8192,
                rms_norm_eps: 1e-5,
                rope_theta: 130_000.0,
                qkv_bias: false,
                ..qwen
            }),
            Self::Seven => Some(LlamaConfig {
                d_model: 3584,
                d_hidden: 18_944,
                n_layers: 28,
                n_heads: 28,
                n_kv_heads: 4,
                head_dim: 128,
                vocab_size: 152_064,
                tied_embeddings: false,
                ..qwen
            }),
            Self::Tiny => Some(LlamaConfig {
                d_model: 32,
                d_hidden: 48,
                n_layers: 2,
                n_heads: 4,
                head_dim: 8,
                vocab_size: 256,
                context_length: 128,
                ..qwen
            }),
        }
    }
}

impl Subject {
    /// Whether its prompts are words, and its weights those of a model.
    pub fn has_words(&self) -> bool {
        self.tokenizer.is_some()
    }

    /// The tokens of the first `count` prompts; no two are the same.
    pub fn prompts(&self, count: usize) -> Result<Vec<Vec<TokenId>>, Box<dyn Error>> {
        let prompt = |at: usize| -> Result<Vec<TokenId>, Box<dyn Error>> {
            let Some(tokenizer) = &self.tokenizer else {
                // The place of the prompt in the first token, then a pattern.
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
