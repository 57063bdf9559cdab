//! Llama-type models: decoders that load real checkpoints.
//!
//! The architecture is RMSNorm, rotary position embeddings, grouped-query attention and a SwiGLU MLP. SmolLM2,
//! TinyLlama, Llama 3.x, Qwen2.5 and Qwen3 are the same model with different settings. Weights come from a Hugging
//! Face folder ([`Llama::from_hf_folder`]) or a GGUF file ([`Llama::from_gguf`]).
//!
//! The model is independent of the sampler and the decode loop: it implements [`CausalLm`](crate::CausalLm), which
//! your own model can implement too.

mod attention;
mod block;
mod cache;
mod chat;
mod config;
mod error;
mod jinja;
mod linear;
mod load;
mod model;
mod norm;
mod rope;
mod tokenizer;
mod weight;

pub use cache::LlamaCache;
pub use chat::{ChatMessage, ChatTemplate};
pub use config::{LlamaConfig, RopeScaling};
pub use error::LoadError;
pub use model::{FfnWeights, Llama};
pub use tokenizer::Tokenizer;
