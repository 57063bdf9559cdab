//! Identifiers of tokens, prompts and completions.

use serde::{Deserialize, Serialize};

/// Id of a token in the model's vocabulary, as assigned by the tokenizer.
pub type TokenId = u32;

/// Id of a prompt, which all completions of one request share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PromptId(pub u64);

/// Id of a group of requests that share a distiller, chosen by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GroupId(pub u64);

/// Id of a completion: the prompt, and the index among the prompt's completions.
///
/// A row moves within the batch when other rows end, but its completion id does not change. Every call therefore
/// takes the ids of its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CompletionId {
    /// The prompt.
    pub prompt: PromptId,
    /// The completion's index, starting at 0.
    pub index: u64,
}

impl CompletionId {
    /// Creates the id of completion `index` of `prompt`.
    pub fn new(prompt: u64, index: u64) -> Self {
        Self { prompt: PromptId(prompt), index }
    }
}

impl std::fmt::Display for CompletionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "completion {} of prompt {}", self.index, self.prompt.0)
    }
}
