//! Errors of submitting and cancelling requests.

use thiserror::Error;

use crate::{
    bank::Sharing,
    error::ConfigError,
    id::{CompletionId, GroupId, PromptId, TokenId},
    snapshot::SnapshotError,
};

/// A group could not be written or read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GroupError {
    /// The group is not kept, or cannot be.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The file could not be written or read, or is not that of a group of such a sampler.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// There is no memory for the group's distiller alongside what runs and the groups that are kept.
    #[error("memory: expected at most {limit} bytes with the group's distiller, got {needed}")]
    MemoryLimit {
        /// The limit, in bytes.
        limit: usize,
        /// The bytes that would be needed.
        needed: usize,
    },
    /// The engine that was asked has ended.
    #[error("group: expected an engine that runs, got one that has ended")]
    Ended,
}

/// A request that the decode loop rejects.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The prompt has no tokens.
    #[error("prompt: expected at least one token, got none")]
    EmptyPrompt,
    /// The request asks for zero completions or zero new tokens.
    #[error("{setting}: expected at least 1, got 0")]
    Nothing {
        /// The setting that is zero.
        setting: &'static str,
    },
    /// The request has more completions than one batch can hold.
    #[error("completions: expected at most {limit}, got {got}")]
    TooManyCompletions {
        /// The limit.
        limit: usize,
        /// The number requested.
        got: usize,
    },
    /// The prompt leaves no room for a new token in the model's context.
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
    /// A token id is not in the vocabulary.
    #[error("{place} token {token}: expected an id below {vocab}")]
    UnknownToken {
        /// Where the id occurs: "prompt", "stop", "logit bias" or "sequence breaker".
        place: &'static str,
        /// The id.
        token: TokenId,
        /// Number of tokens in the vocabulary.
        vocab: usize,
    },
    /// The request alone needs more room in the key-value cache than the model has.
    #[error("key-value cache: expected a request of at most {limit} {what}, got one of {needed}")]
    CacheLimit {
        /// "rows" or "tokens".
        what: &'static str,
        /// The [limit](crate::CacheLimits).
        limit: usize,
        /// What the request needs at its full length.
        needed: usize,
    },
    /// The request alone needs more memory than the limit allows.
    #[error(
        "memory: expected a request that needs at most {limit} bytes, got one that needs {needed}"
    )]
    MemoryLimit {
        /// The limit, in bytes.
        limit: usize,
        /// The bytes the request needs at its full length.
        needed: usize,
    },
    /// The request has stop strings, but the decoder has no detokenizer.
    #[error("stop strings: expected a decoder built with a detokenizer, got none")]
    NoDetokenizer,
    /// The request contrasts with another model, but the decoder has none.
    #[error("sampling: expected a decoder built with another model to contrast with, got none")]
    NoOtherModel,
    /// The completion is not in the loop: it has ended or does not exist.
    #[error(
        "{completion}: expected one that is waiting or running, got one that has ended or never was"
    )]
    UnknownCompletion {
        /// The completion.
        completion: CompletionId,
    },
    /// The request is part of a group, but distillers are not shared by prompt.
    #[error("group: expected a sampler with distillers per prompt, got {sharing:?}")]
    GroupSharing {
        /// What the sampler shares.
        sharing: Sharing,
    },
    /// Every group that is kept has completions, so none can make room for a new one.
    #[error(
        "group: expected at most {limit} groups, all of which have completions that wait or run"
    )]
    GroupLimit {
        /// The limit.
        limit: usize,
    },
    /// The group is kept already.
    #[error("group {}: expected one that is not kept, got one that is", .group.0)]
    KnownGroup {
        /// The group.
        group: GroupId,
    },
    /// The group is not kept: it was released or evicted, or never was.
    #[error("group {}: expected one that is kept, got one that is not", .group.0)]
    UnknownGroup {
        /// The group.
        group: GroupId,
    },
    /// The completion cannot be paused.
    #[error("{completion}: expected one that can be paused, but {reason}")]
    CannotPause {
        /// The completion.
        completion: CompletionId,
        /// Why not.
        reason: &'static str,
    },
    /// The prompt has no waiting or running completion.
    #[error("prompt {}: expected one with completions that wait or run, got one without", .prompt.0)]
    UnknownPrompt {
        /// The prompt.
        prompt: PromptId,
    },
    /// Every prompt id has been used.
    #[error("prompt id: expected one that has not been used, got none")]
    NoPromptId,
    /// A sampling setting is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
}
