//! Errors of llama.cpp and of loading a model with it.

use esamp::errors::{LoadError, ModelError};
use thiserror::Error;

/// An error of llama.cpp, or a model that cannot be used with it here.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LlamaCppError {
    /// An option is out of range.
    #[error("{option}: expected {expected}, got {got}")]
    Option {
        /// The name of the option.
        option: &'static str,
        /// The range, in words.
        expected: String,
        /// The value that was set.
        got: String,
    },
    /// The file is damaged, or its LM head cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The model has a property that decoding in a batch of rows or steering cannot work with.
    #[error("model: expected {expected}, got {got}")]
    UnsupportedModel {
        /// What was expected.
        expected: &'static str,
        /// What the file has.
        got: String,
    },
    /// llama.cpp could not load the model or create its context. `reason` is what it logged as an error.
    #[error("llama.cpp: cannot {action}: {reason}")]
    Setup {
        /// What failed.
        action: &'static str,
        /// The lines that llama.cpp logged as errors.
        reason: String,
    },
    /// Every sequence id of the context is in use.
    #[error("llama.cpp: expected at most {limit} rows in use (`with_max_rows`), got {got}")]
    TooManyRows {
        /// The limit, over all caches of the model.
        limit: usize,
        /// The number that would have been in use.
        got: usize,
    },
    /// The KV cache has no room for the tokens of a forward pass.
    #[error(
        "llama.cpp: expected {tokens} free cells among the {cells} of its cache (`with_cells`), got fewer"
    )]
    CacheFull {
        /// Tokens in the pass.
        tokens: usize,
        /// Cells of the whole cache.
        cells: usize,
    },
    /// An earlier pass of several batches failed, and had overwritten tokens in layers with a sliding window. The cache
    /// must be dropped.
    #[error(
        "key-value cache: expected the last {window} tokens of each row, got {kept} after a pass that failed"
    )]
    Lost {
        /// Tokens that the next one would see.
        window: usize,
        /// Those that are left.
        kept: usize,
    },
    /// `llama_decode` failed.
    #[error("llama_decode: expected status 0, got {status}: {reason}")]
    Decode {
        /// The status code.
        status: i32,
        /// The lines that llama.cpp logged as errors.
        reason: String,
    },
    /// A hidden state was not computed, or has another shape than expected.
    #[error("tensor {name}: expected {expected}, got {got}")]
    Tap {
        /// The tensor's name in llama.cpp.
        name: String,
        /// What was expected.
        expected: String,
        /// What was found.
        got: String,
    },
}

impl From<LlamaCppError> for ModelError {
    fn from(error: LlamaCppError) -> Self {
        Self::other(error)
    }
}
