//! The JSON of responses and of the parts of a stream.

use esamp::{Choice, TokenId};
use serde_json::{Value, json};

use crate::app::Kind;

/// What all parts of a response share.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) kind: Kind,
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) seed: u64,
    pub(crate) group: Option<String>,
    pub(crate) wants_log_probs: bool,
    pub(crate) wants_details: bool,
}

/// A token with the text that it adds to its completion.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    token: TokenId,
    text: String,
    /// Under the unmodified model, if that was asked for.
    reference_log_prob: Option<f32>,
    log_prob: f32,
    /// Relative to the deep state.
    novelty: Option<f32>,
}

impl Piece {
    pub(crate) fn new(choice: &Choice, text: String) -> Self {
        Self {
            token: choice.token,
            text,
            reference_log_prob: choice.reference_log_prob,
            log_prob: choice.log_prob,
            novelty: choice.novelty.map(|novelty| novelty.relative()),
        }
    }

    fn details(&self) -> Value {
        json!({
            "id": self.token, "text": self.text, "log_prob": self.log_prob, "novelty": self.novelty,
        })
    }
}

/// Numbers of tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) prompt: usize,
    pub(crate) completion: usize,
}

impl Usage {
    fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        })
    }
}

/// A completion, or the next part of one.
#[derive(Debug, Default)]
pub(crate) struct Part<'a> {
    pub(crate) index: usize,
    pub(crate) text: &'a str,
    /// Tokens, if they are shown.
    pub(crate) pieces: &'a [Piece],
    /// Characters of the completion before this part.
    pub(crate) offset: usize,
    pub(crate) finish: Option<&'static str>,
}

impl Reply {
    /// Whether tokens are shown.
    pub(crate) fn shows_tokens(&self) -> bool {
        self.wants_log_probs || self.wants_details
    }

    fn envelope(&self, object: &str, choices: Vec<Value>) -> Value {
        let mut esamp = json!({"seed": self.seed});
        if let Some(group) = &self.group {
            esamp["group"] = json!(group);
        }
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "choices": choices, "esamp": esamp,
        })
    }

    fn chunk_object(&self) -> &'static str {
        match self.kind {
            Kind::Completion => "text_completion",
            Kind::Chat => "chat.completion.chunk",
        }
    }

    /// The first part of a completion in a stream, where it has one.
    pub(crate) fn opening(&self, index: usize) -> Option<Value> {
        (self.kind == Kind::Chat).then(|| {
            let delta = json!({"role": "assistant", "content": ""});
            let choice =
                json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null});
            self.envelope(self.chunk_object(), vec![choice])
        })
    }

    /// A part of a completion in a stream.
    pub(crate) fn chunk(&self, part: &Part<'_>) -> Value {
        let mut choice = match self.kind {
            Kind::Completion => json!({"index": part.index, "text": part.text}),
            Kind::Chat if part.text.is_empty() => json!({"index": part.index, "delta": {}}),
            Kind::Chat => json!({"index": part.index, "delta": {"content": part.text}}),
        };
        self.finish_choice(&mut choice, part);
        self.envelope(self.chunk_object(), vec![choice])
    }

    /// The last part of a stream that ends with numbers of tokens.
    pub(crate) fn usage_chunk(&self, usage: Usage) -> Value {
        let mut chunk = self.envelope(self.chunk_object(), Vec::new());
        chunk["usage"] = usage.json();
        chunk
    }

    /// A whole response.
    pub(crate) fn whole(&self, parts: &[Part<'_>], usage: Usage) -> Value {
        let choice = |part: &Part<'_>| {
            let mut choice = match self.kind {
                Kind::Completion => json!({"index": part.index, "text": part.text}),
                Kind::Chat => {
                    let message =
                        json!({"role": "assistant", "content": part.text, "refusal": null});
                    json!({"index": part.index, "message": message})
                }
            };
            self.finish_choice(&mut choice, part);
            choice
        };
        let object = match self.kind {
            Kind::Completion => "text_completion",
            Kind::Chat => "chat.completion",
        };
        let mut body = self.envelope(object, parts.iter().map(choice).collect());
        body["usage"] = usage.json();
        body
    }

    fn finish_choice(&self, choice: &mut Value, part: &Part<'_>) {
        choice["finish_reason"] = json!(part.finish);
        choice["logprobs"] = match (self.wants_log_probs, self.kind) {
            (false, _) => Value::Null,
            (true, Kind::Completion) => log_probs(part),
            (true, Kind::Chat) => chat_log_probs(part),
        };
        if self.wants_details {
            let tokens: Vec<Value> = part.pieces.iter().map(Piece::details).collect();
            choice["esamp"] = json!({"tokens": tokens});
        }
    }
}

fn log_probs(part: &Part<'_>) -> Value {
    let mut offset = part.offset;
    let offsets: Vec<usize> = part
        .pieces
        .iter()
        .map(|piece| {
            let before = offset;
            offset += piece.text.chars().count();
            before
        })
        .collect();
    let texts: Vec<&str> = part.pieces.iter().map(|piece| piece.text.as_str()).collect();
    let log_probs: Vec<Option<f32>> =
        part.pieces.iter().map(|piece| piece.reference_log_prob).collect();
    json!({
        "tokens": texts, "token_logprobs": log_probs, "top_logprobs": null, "text_offset": offsets,
    })
}

fn chat_log_probs(part: &Part<'_>) -> Value {
    let content = part.pieces.iter().map(|piece| {
        json!({
            "token": piece.text, "logprob": piece.reference_log_prob,
            "bytes": piece.text.as_bytes(), "top_logprobs": [],
        })
    });
    json!({"content": content.collect::<Vec<_>>(), "refusal": null})
}
