//! Errors from loading and using models, tokenizers and chat templates.

use thiserror::Error;

use crate::error::Printable;

/// An error from loading or using a model, tokenizer or chat template.
///
/// What comes from a file is shown with its control characters escaped, and cut where it is long. The fields hold it
/// as it is in the file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file could not be read.
    #[error("{}: cannot be read", Printable(.path.to_string_lossy()))]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// The underlying I/O error.
        source: std::io::Error,
    },
    /// A file is damaged or of the wrong kind.
    #[error("{}: {}: expected {}, got {}", Printable(.path.to_string_lossy()), Printable(.what), Printable(.expected), Printable(.got))]
    Format {
        /// The file.
        path: std::path::PathBuf,
        /// The part of the file.
        what: String,
        /// What was expected.
        expected: String,
        /// What was found.
        got: String,
    },
    /// A file or folder is something else than it was taken for: a Git LFS pointer, a web page, a LoRA adapter, one
    /// part of a split file. [`next_step`](Self::next_step) says what to do with it.
    #[error("{}: expected {}, got {}", Printable(.path.to_string_lossy()), Printable(.expected), Printable(.got))]
    WrongFile {
        /// The file or folder.
        path: std::path::PathBuf,
        /// What was expected.
        expected: String,
        /// What it is.
        got: String,
        /// What the user can do about it, in the imperative.
        next_step: String,
    },
    /// A key of the configuration or metadata is missing or has an unusable value.
    #[error("key {}: expected {}, got {}", Printable(.key), Printable(.expected), Printable(.got))]
    Key {
        /// The key.
        key: String,
        /// What was expected.
        expected: String,
        /// What was found, or "none".
        got: String,
    },
    /// A tensor is missing or has an unusable shape or type.
    #[error("tensor {}: expected {}, got {}", Printable(.name), Printable(.expected), Printable(.got))]
    Tensor {
        /// Name of the tensor in the file.
        name: String,
        /// What was expected.
        expected: String,
        /// What was found, or "none".
        got: String,
    },
    /// The tokenizer could not be built, or it failed on a text.
    #[error("tokenizer: {}", Printable(.0))]
    Tokenizer(String),
    /// The chat template could not be parsed, or it failed on a conversation.
    #[error("chat template: {}", Printable(.0))]
    ChatTemplate(String),
}

impl LoadError {
    /// What the user can do about the error: one step, in the imperative, for programs that print it below the error.
    pub fn next_step(&self) -> &str {
        match self {
            Self::WrongFile { next_step, .. } => next_step,
            Self::Io { .. } => "check that the path is right and the file may be read",
            Self::Format { .. } => "download the file again and compare its size with the source's",
            Self::Key { .. } => {
                "use a model of a supported architecture, with an unchanged configuration"
            }
            Self::Tensor { .. } => {
                "check that the model is complete and of a supported architecture and type"
            }
            Self::Tokenizer(_) => "check that the tokenizer is the model's own and is complete",
            Self::ChatTemplate(_) => "give the prompt as plain text, without the template",
        }
    }
}
