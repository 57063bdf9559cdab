//! What a request is about: a text, tokens or a conversation.

use axum::http::StatusCode;
use esamp::{
    TokenId,
    llama::{ChatMessage, LoadError},
};
use serde_json::Value;

use crate::{
    app::{App, Kind},
    error::ApiError,
    fields::{Fields, shown},
};

/// A prompt that has not been encoded.
#[derive(Clone, Debug)]
pub(crate) enum Prompt {
    Text(String),
    Tokens(Vec<TokenId>),
    Chat(Vec<ChatMessage>),
}

const MOST_MESSAGES: usize = 4096;

impl Prompt {
    /// The prompts of a request, of which a chat has one.
    pub(crate) fn read(body: &mut Fields, kind: Kind) -> Result<Vec<Self>, ApiError> {
        let field = kind.prompt_field();
        match (kind, body.take(field)) {
            (_, None) => Err(ApiError::field(field, kind.prompt_expected(), "none")),
            (Kind::Completion, Some(value)) => completion_prompts(value),
            (Kind::Chat, Some(value)) => Ok(vec![chat_prompt(value)?]),
        }
    }

    /// Turns the prompt into tokens. Takes time in proportion to its length: call it where that blocks nobody. `place`
    /// is where it is in the request.
    pub(crate) fn encode(&self, app: &App, place: &str) -> Result<Vec<TokenId>, ApiError> {
        let failed = |error: LoadError| {
            ApiError::request("invalid_value", format!("{place}: {error}")).with_param(place)
        };
        match self {
            Self::Tokens(tokens) => Ok(tokens.clone()),
            Self::Text(text) => app.texts.tokenizer.encode(text).map_err(failed),
            Self::Chat(messages) => {
                let template = match &app.texts.template {
                    Ok(Some(template)) => template,
                    Ok(None) => {
                        return Err(ApiError::unsupported(
                            "messages",
                            "expected a model with a chat template, got one without: use /v1/completions",
                        ));
                    }
                    Err(error) => {
                        let status = StatusCode::INTERNAL_SERVER_ERROR;
                        return Err(ApiError::new(status, "chat_template", error.to_string()));
                    }
                };
                let rendered = template.render(messages);
                rendered.and_then(|text| app.texts.tokenizer.encode_rendered(&text)).map_err(failed)
            }
        }
    }

    /// The text, for a log that was asked for.
    pub(crate) fn logged(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Tokens(tokens) => format!("{tokens:?}"),
            Self::Chat(messages) => {
                let line = |message: &ChatMessage| format!("{}: {}", message.role, message.content);
                messages.iter().map(line).collect::<Vec<_>>().join("\n")
            }
        }
    }
}

/// Where a prompt is in a request with `count` prompts.
pub(crate) fn place(kind: Kind, at: usize, count: usize) -> String {
    let field = kind.prompt_field();
    if count == 1 { field.to_owned() } else { format!("{field}[{at}]") }
}

fn completion_prompts(value: Value) -> Result<Vec<Prompt>, ApiError> {
    match value {
        Value::Array(items) if items.iter().any(|item| item.is_string() || item.is_array()) => {
            let count = items.len();
            let prompt = |(at, item)| completion_prompt(item, &place(Kind::Completion, at, count));
            items.into_iter().enumerate().map(prompt).collect()
        }
        value => Ok(vec![completion_prompt(value, Kind::Completion.prompt_field())?]),
    }
}

fn completion_prompt(value: Value, place: &str) -> Result<Prompt, ApiError> {
    let expected = Kind::Completion.prompt_expected();
    let wrong = |item: &Value| ApiError::field(place, expected, &shown(item));
    match value {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(items) => {
            let token = |item: &Value| item.as_u64().and_then(|id| TokenId::try_from(id).ok());
            let tokens = items.iter().map(|item| token(item).ok_or_else(|| wrong(item)));
            Ok(Prompt::Tokens(tokens.collect::<Result<_, _>>()?))
        }
        other => Err(wrong(&other)),
    }
}

fn chat_prompt(value: Value) -> Result<Prompt, ApiError> {
    let expected = Kind::Chat.prompt_expected();
    let items = match value {
        Value::Array(items) if (1..=MOST_MESSAGES).contains(&items.len()) => items,
        other => return Err(ApiError::field("messages", expected, &shown(&other))),
    };
    let messages = items.into_iter().enumerate().map(|(at, item)| message(at, item));
    Ok(Prompt::Chat(messages.collect::<Result<_, _>>()?))
}

fn message(at: usize, value: Value) -> Result<ChatMessage, ApiError> {
    let mut fields = Fields::new(&format!("messages[{at}]"), value)?;
    let expected = "\"system\", \"developer\", \"user\" or \"assistant\"";
    let role = match fields.text("role")? {
        Some(role) => role,
        None => return Err(ApiError::field(fields.name("role"), expected, "none")),
    };
    let role = match role.as_str() {
        "system" | "user" | "assistant" => role,
        // OpenAI's newer name. Templates know the older one.
        "developer" => "system".to_owned(),
        _ => return Err(fields.wrong("role", expected, &Value::String(role))),
    };
    let expected = "a string, or an array of {\"type\": \"text\", \"text\": …}";
    let content = match fields.take("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            let name = fields.name("content");
            let parts = parts.into_iter().enumerate();
            let texts = parts.map(|(at, part)| text_part(&format!("{name}[{at}]"), part));
            texts.collect::<Result<Vec<_>, _>>()?.concat()
        }
        Some(other) => return Err(fields.wrong("content", expected, &other)),
        None => return Err(ApiError::field(fields.name("content"), expected, "none")),
    };
    // The name of a participant is in no template that this crate knows of.
    fields.end()?;
    Ok(ChatMessage { role, content })
}

fn text_part(name: &str, part: Value) -> Result<String, ApiError> {
    let mut fields = Fields::new(name, part)?;
    let kind = fields.text("type")?;
    if kind.as_deref() != Some("text") {
        let got = Value::from(kind);
        return Err(fields.wrong("type", "\"text\"", &got));
    }
    let text = fields.text("text")?;
    let text = text.ok_or_else(|| ApiError::field(fields.name("text"), "a string", "none"))?;
    fields.end()?;
    Ok(text)
}
