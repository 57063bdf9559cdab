//! Names for the things a step talks about.

use serde::{Deserialize, Serialize};

/// A token of the model's vocabulary, as tokenizers number them.
pub type TokenId = u32;

/// One completion: a sequence that grows by one token each step until it ends.
///
/// The number is the request's own, across all prompts: two completions of different prompts must not share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestId(pub u64);

/// What several requests share: the prompt they all continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PromptId(pub u64);

/// Whose row it is. Rows move when a batch shrinks; this name does not, so it comes with every row on every call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CompletionId {
    /// The prompt that the row continues.
    pub prompt: PromptId,
    /// The completion that the row belongs to.
    pub request: RequestId,
}

impl CompletionId {
    /// Names the row of `request`, one of the completions of `prompt`.
    pub fn new(prompt: u64, request: u64) -> Self {
        Self { prompt: PromptId(prompt), request: RequestId(request) }
    }
}

impl std::fmt::Display for CompletionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "request {} of prompt {}", self.request.0, self.prompt.0)
    }
}
