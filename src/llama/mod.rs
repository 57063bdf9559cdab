//! Llama-type models: a decoder that a real checkpoint can be loaded into.
//!
//! RMSNorm, rotary positions, grouped-query attention and a SwiGLU MLP: SmolLM2, TinyLlama, Llama 3.x, Qwen2.5 and Qwen3
//! are the same model with different settings. Weights come from a Hugging Face folder
//! ([`Llama::from_hf_folder`]) or from a GGUF file ([`Llama::from_gguf`]).
//!
//! The model knows neither sampler nor decode loop: it implements [`CausalLm`](crate::CausalLm), and so can yours.

mod attention;
mod block;
mod cache;
mod chat;
mod config;
mod error;
mod linear;
mod load;
mod model;
mod norm;
mod rope;
mod tokenizer;

pub use cache::LlamaCache;
pub use chat::{ChatMessage, ChatTemplate};
pub use config::{LlamaConfig, RopeScaling};
pub use error::LoadError;
pub use model::{FfnWeights, Llama};
pub use tokenizer::Tokenizer;
