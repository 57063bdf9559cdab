//! Requests that are refused.

use thiserror::Error;

use crate::{
    error::ConfigError,
    id::{CompletionId, PromptId, TokenId},
};

/// A request that cannot be decoded.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The prompt has no tokens.
    #[error("prompt: expected at least one token, got none")]
    EmptyPrompt,
    /// Zero completions, or zero new tokens, were asked for.
    #[error("{setting}: expected at least 1, got 0")]
    Nothing {
        /// Which setting is zero.
        setting: &'static str,
    },
    /// More completions than one batch can hold.
    #[error("completions: expected at most {limit}, got {got}")]
    TooManyCompletions {
        /// The limit.
        limit: usize,
        /// How many were asked for.
        got: usize,
    },
    /// Prompt and completion do not fit into the model's context.
    #[error(
        "prompt of {prompt} tokens: expected at most {}, to leave room for one new token in the model's context",
        .limit - 1
    )]
    PromptTooLong {
        /// Tokens in the prompt.
        prompt: usize,
        /// The model's context length.
        limit: usize,
    },
    /// A token id that is not in the vocabulary.
    #[error("{place} token {token}: expected an id below {vocab}")]
    UnknownToken {
        /// Where it stands: "prompt", "stop" or "logit bias".
        place: &'static str,
        /// The id.
        token: TokenId,
        /// Number of tokens in the vocabulary.
        vocab: usize,
    },
    /// The request alone needs more cache memory than the limit allows.
    #[error("key-value cache: expected at most {limit} bytes, the request needs {needed}")]
    CacheLimit {
        /// The limit.
        limit: usize,
        /// What the request would take at its longest.
        needed: usize,
    },
    /// Stop strings were given to a loop that has no text decoder.
    #[error("stop strings: expected a decoder built with a detokenizer, got none")]
    NoDetokenizer,
    /// A request is to be contrasted with another model, and the loop has none.
    #[error("sampling: expected a decoder built with another model to contrast with, got none")]
    NoOtherModel,
    /// A completion that is not, or no longer, in the loop.
    #[error(
        "{completion}: expected one that is waiting or running, got one that has ended or never was"
    )]
    UnknownCompletion {
        /// The completion.
        completion: CompletionId,
    },
    /// A prompt without a completion in the loop.
    #[error("prompt {}: expected one with completions that wait or run, got one without", .prompt.0)]
    UnknownPrompt {
        /// The prompt.
        prompt: PromptId,
    },
    /// A sampling setting that cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
}
