//! Exploratory sampling ([`esamp`]) with [llama.cpp](https://github.com/ggml-org/llama.cpp): [`LlamaCpp`] decodes
//! quantised GGUF files of any decoder with attention and a linear head, and shows the two hidden states that ESamp
//! needs. The README says which models are refused, and why.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//!
//! use esamp::{CausalLm, Decoder, Request, SamplerConfig, llama::Tokenizer};
//! use esamp_llama_cpp::{LlamaCpp, Options};
//!
//! let model = LlamaCpp::load("model.gguf", &Options::new().with_threads(4))?;
//! let tokenizer = Tokenizer::from_gguf("model.gguf")?;
//! let sampler = SamplerConfig::new().init(model.d_model(), &model.device())?;
//! let mut decoder = Decoder::new(&model, sampler)?.with_detokenizer(tokenizer.clone());
//! decoder.submit(Request::new(tokenizer.encode("Once upon a time")?).with_completions(4))?;
//! let completions = decoder.run(|_| ControlFlow::Continue(()))?;
//! assert_eq!(completions.len(), 4);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Log lines of llama.cpp become records of the `log` crate with the target `llama.cpp`; nothing is printed.
mod cache;
mod error;
mod ffi;
mod model;
mod options;
#[doc(hidden)]
pub mod own_loop;
mod pass;

pub use cache::LlamaCppCache;
pub use error::LlamaCppError;
pub use model::LlamaCpp;
pub use options::Options;
