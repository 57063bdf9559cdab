//! Models, tokenizers and chat templates that cannot be loaded or used.

use thiserror::Error;

/// A model, tokenizer or chat template that cannot be loaded or used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file could not be read.
    #[error("{}: cannot be read", .path.display())]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is damaged, or not of the kind it should be.
    #[error("{}: {what}: expected {expected}, got {got}", .path.display())]
    Format {
        /// The file.
        path: std::path::PathBuf,
        /// The part of the file.
        what: String,
        /// What should be there.
        expected: String,
        /// What is there.
        got: String,
    },
    /// A key of the configuration or the metadata is missing, or has a value that cannot be used.
    #[error("key {key}: expected {expected}, got {got}")]
    Key {
        /// The key.
        key: String,
        /// What would do.
        expected: String,
        /// What is there, or "none".
        got: String,
    },
    /// A tensor is missing, or has a shape or type that cannot be used.
    #[error("tensor {name}: expected {expected}, got {got}")]
    Tensor {
        /// Name of the tensor, as the file has it.
        name: String,
        /// What would do.
        expected: String,
        /// What is there, or "none".
        got: String,
    },
    /// The tokenizer could not be built, or failed on a text.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template could not be parsed, or failed on a conversation.
    #[error("chat template: {0}")]
    ChatTemplate(String),
}
