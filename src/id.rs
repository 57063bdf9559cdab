//! Names for the things a step is about.

use serde::{Deserialize, Serialize};

/// A token of the model's vocabulary, as tokenizers number them.
pub type TokenId = u32;

/// A prompt: what the completions of one request continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PromptId(pub u64);

/// A completion: the prompt that it continues, and its index among the prompt's completions.
///
/// Rows of a batch move when other rows end; this name does not change, so it comes with every row on every call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CompletionId {
    /// The prompt.
    pub prompt: PromptId,
    /// The completion's index: 0 is the first of its prompt.
    #[serde(alias = "request")] // its name in files of earlier development versions
    pub index: u64,
}

impl CompletionId {
    /// Names completion `index` of `prompt`.
    pub fn new(prompt: u64, index: u64) -> Self {
        Self { prompt: PromptId(prompt), index }
    }
}

impl std::fmt::Display for CompletionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "completion {} of prompt {}", self.index, self.prompt.0)
    }
}
