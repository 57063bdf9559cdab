//! The JSON of responses and of the parts of a stream.

use esamp::{Choice, Detokenize, TokenId};
use serde_json::{Map, Value, json};

use crate::{
    app::Kind,
    tokens::{Tokens, shown},
};

/// What all parts of a response share.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) kind: Kind,
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) seed: i128,
    pub(crate) group: Option<Group>,
    pub(crate) wants_log_probs: bool,
    pub(crate) wants_details: bool,
    /// Whether a stream ends with the number of tokens.
    pub(crate) wants_usage: bool,
}

/// The group of a request.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) name: String,
    /// Whether the engine kept it from an earlier request.
    pub(crate) is_known: bool,
}

/// A token of a completion.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    token: TokenId,
    /// The text that the stream has shown with it.
    text: String,
    bytes: Vec<u8>,
    /// Characters of the completion before it.
    offset: usize,
    /// Under the unmodified model, if that was asked for.
    reference_log_prob: Option<f32>,
    log_prob: f32,
    /// The most likely tokens as bytes with their log-probabilities under the unmodified model, if they were asked for.
    alternatives: Vec<(Vec<u8>, f32)>,
    /// Relative to the deep state.
    novelty: Option<f32>,
}

impl Piece {
    /// The next token after `before`.
    pub(crate) fn new(
        choice: &Choice,
        text: String,
        before: &mut Tokens,
        tokenizer: &impl Detokenize,
    ) -> Self {
        let alternatives = choice.top_log_probs.iter();
        let alternatives = alternatives.map(|&(token, x)| (before.bytes(token, tokenizer), x));
        let alternatives = alternatives.collect();
        let (bytes, offset) = before.push(choice.token, tokenizer);
        Self {
            token: choice.token,
            text,
            bytes,
            offset,
            reference_log_prob: choice.reference_log_prob,
            log_prob: choice.log_prob,
            alternatives,
            novelty: choice.novelty.map(|novelty| novelty.relative()),
        }
    }

    /// The token as a completion names it.
    fn name(&self) -> String {
        shown(&self.bytes, "bytes:")
    }

    /// The most likely tokens and the chosen one, as an object with a log-probability for each. Of tokens that are
    /// named alike, such as end tokens, the chosen one counts, or the most likely.
    fn by_name(&self) -> Value {
        let mut by_name = Map::new();
        for (bytes, log_prob) in &self.alternatives {
            by_name.entry(shown(bytes, "bytes:")).or_insert_with(|| json!(log_prob));
        }
        by_name.insert(self.name(), json!(self.reference_log_prob));
        by_name.into()
    }

    /// The token as an object of a chat, with the most likely ones.
    fn chat(&self) -> Value {
        let token = |bytes: &[u8], log_prob: Option<f32>| json!({"token": shown(bytes, ""), "logprob": log_prob, "bytes": bytes});
        let alternatives = self.alternatives.iter();
        let alternatives: Vec<Value> =
            alternatives.map(|(bytes, log_prob)| token(bytes, Some(*log_prob))).collect();
        let mut chosen = token(&self.bytes, self.reference_log_prob);
        chosen["top_logprobs"] = alternatives.into();
        chosen
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
    pub(crate) finish: Option<&'static str>,
}

impl Reply {
    /// Whether tokens are shown.
    pub(crate) fn shows_tokens(&self) -> bool {
        self.wants_log_probs || self.wants_details
    }

    fn envelope(&self, object: &str, choices: Vec<Value>) -> Value {
        let mut esamp = json!({"seed": number(self.seed)});
        if let Some(group) = &self.group {
            esamp["group"] = json!({"id": group.name, "known": group.is_known});
        }
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "choices": choices, "esamp": esamp,
        })
    }

    /// The envelope of a part of a stream.
    fn part(&self, choices: Vec<Value>) -> Value {
        let object = match self.kind {
            Kind::Completion => "text_completion",
            Kind::Chat => "chat.completion.chunk",
        };
        let mut part = self.envelope(object, choices);
        if self.wants_usage {
            part["usage"] = Value::Null; // in all parts but the last
        }
        part
    }

    /// The first part of a completion in a stream, where it has one.
    pub(crate) fn opening(&self, index: usize) -> Option<Value> {
        (self.kind == Kind::Chat).then(|| {
            let delta = json!({"role": "assistant", "content": ""});
            let choice =
                json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null});
            self.part(vec![choice])
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
        self.part(vec![choice])
    }

    /// The last part of a stream that ends with numbers of tokens.
    pub(crate) fn usage_chunk(&self, usage: Usage) -> Option<Value> {
        self.wants_usage.then(|| {
            let mut chunk = self.part(Vec::new());
            chunk["usage"] = usage.json();
            chunk
        })
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

/// A whole number of up to 64 bits, with or without a sign.
fn number(number: i128) -> Value {
    i64::try_from(number).map_or_else(|_| Value::from(number as u64), Value::from)
}

fn log_probs(part: &Part<'_>) -> Value {
    let pieces = part.pieces;
    json!({
        "tokens": pieces.iter().map(Piece::name).collect::<Vec<_>>(),
        "token_logprobs": pieces.iter().map(|piece| piece.reference_log_prob).collect::<Vec<_>>(),
        "top_logprobs": pieces.iter().map(Piece::by_name).collect::<Vec<_>>(),
        "text_offset": pieces.iter().map(|piece| piece.offset).collect::<Vec<_>>(),
    })
}

fn chat_log_probs(part: &Part<'_>) -> Value {
    json!({"content": part.pieces.iter().map(Piece::chat).collect::<Vec<_>>(), "refusal": null})
}
