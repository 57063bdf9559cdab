//! Chat templates.

use std::path::Path;

use minijinja::{
    Environment, Error, ErrorKind, State, UndefinedBehavior,
    syntax::SyntaxConfig,
    value::{Kwargs, Value},
};
use serde::{Deserialize, Serialize};

use crate::{
    llama::error::LoadError,
    llama::load::{Gguf, read_json},
};

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// Role of the author: `system`, `user` or `assistant`.
    pub role: String,
    /// Text of the message.
    pub content: String,
}

impl ChatMessage {
    /// Creates a user message.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: "user".to_owned(), content: content.into() }
    }

    /// Creates a system message: instructions that precede the conversation.
    pub fn system(content: impl Into<String>) -> Self {
        Self { role: "system".to_owned(), content: content.into() }
    }

    fn value(&self) -> Value {
        Value::from_pairs([("role", self.role.as_str()), ("content", self.content.as_str())])
    }
}

/// A model's chat template: a Jinja program shipped with the model.
///
/// Templates may call `raise_exception` and the methods of Python strings and dictionaries. `strftime_now` is
/// undefined, so a template that would print today's date prints its fallback date instead. This keeps prompts
/// independent of the date.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    begin: String,
    end: String,
}

/// Name of the template in error messages.
const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Parses a template. `begin` and `end` are the texts of the BOS and EOS tokens, which templates write
    /// themselves.
    ///
    /// # Errors
    ///
    /// [`LoadError::ChatTemplate`] if `source` is not valid Jinja.
    pub fn new(
        source: impl Into<String>,
        begin: impl Into<String>,
        end: impl Into<String>,
    ) -> Result<Self, LoadError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| wrong(&e))?);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_unknown_method_callback(python_method);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned(NAME, source.into()).map_err(|e| wrong(&e))?;
        Ok(Self { environment, begin: begin.into(), end: end.into() })
    }

    /// Reads the template from the metadata of a GGUF file. `None` if the file has none.
    ///
    /// # Errors
    ///
    /// [`LoadError`] with the name of the key, or the error in the template.
    pub fn from_gguf(path: impl AsRef<Path>) -> Result<Option<Self>, LoadError> {
        let file = Gguf::open(path.as_ref())?;
        if !file.has_key("tokenizer.chat_template") {
            return Ok(None);
        }
        let tokens = file.strings("tokenizer.ggml.tokens")?;
        let text = |key: &str| -> Result<String, LoadError> {
            let id = file.integer(key)?.and_then(|id| usize::try_from(id).ok());
            Ok(id.and_then(|id| tokens.get(id)).cloned().unwrap_or_default())
        };
        let (begin, end) =
            (text("tokenizer.ggml.bos_token_id")?, text("tokenizer.ggml.eos_token_id")?);
        Self::new(file.string("tokenizer.chat_template")?, begin, end).map(Some)
    }

    /// Reads the template of a Hugging Face folder, from `chat_template.jinja` or `tokenizer_config.json`. `None` if
    /// the folder has none.
    ///
    /// # Errors
    ///
    /// [`LoadError`] with the name of the file, or the error in the template.
    pub fn from_hf_folder(folder: impl AsRef<Path>) -> Result<Option<Self>, LoadError> {
        let folder = folder.as_ref();
        let settings = folder.join("tokenizer_config.json");
        let settings =
            if settings.exists() { read_json(&settings)? } else { serde_json::Value::Null };
        let own = folder.join("chat_template.jinja");
        let source = if own.exists() {
            Some(
                std::fs::read_to_string(&own)
                    .map_err(|source| LoadError::Io { path: own, source })?,
            )
        } else {
            template_text(&settings["chat_template"])
        };
        let Some(source) = source else {
            return Ok(None);
        };
        // As in transformers, an older file for the special tokens counts unless the newer list of them is there.
        let older = folder.join("special_tokens_map.json");
        let older = if settings.get("added_tokens_decoder").is_none() && older.exists() {
            read_json(&older)?
        } else {
            serde_json::Value::Null
        };
        let [begin, end] = ["bos_token", "eos_token"].map(|key| {
            let older = older.get(key).filter(|token| !token.is_null());
            token_text(older.unwrap_or(&settings[key]))
        });
        Self::new(source, begin, end).map(Some)
    }

    /// Renders the conversation as one text that ends where the assistant's next message begins.
    ///
    /// # Errors
    ///
    /// [`LoadError::ChatTemplate`] with the template's own message if it rejects the conversation.
    pub fn render(&self, messages: &[ChatMessage]) -> Result<String, LoadError> {
        let template = self.environment.get_template(NAME).map_err(|e| wrong(&e))?;
        template
            .render(minijinja::context! {
                messages => messages.iter().map(ChatMessage::value).collect::<Value>(),
                add_generation_prompt => true,
                bos_token => self.begin.as_str(),
                eos_token => self.end.as_str(),
            })
            .map_err(|e| wrong(&e))
    }
}

fn wrong(error: &Error) -> LoadError {
    LoadError::ChatTemplate(error.to_string())
}

/// Returns the template, or the default one of a list of named templates.
fn template_text(value: &serde_json::Value) -> Option<String> {
    if let Some(text) = value.as_str() {
        return Some(text.to_owned());
    }
    let named = value.as_array()?;
    let default = named.iter().find(|entry| entry["name"] == "default")?;
    default["template"].as_str().map(str::to_owned)
}

/// The text of a token, which is either a string or an object with a `content` field.
fn token_text(value: &serde_json::Value) -> String {
    value.as_str().or_else(|| value["content"].as_str()).unwrap_or_default().to_owned()
}

/// Implements the methods of Python strings and dictionaries that chat templates call, because templates are written
/// for Python's Jinja2.
fn python_method(
    _state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        let word = |at: usize| args.get(at).and_then(Value::as_str);
        let chars: Vec<char> = word(0).unwrap_or(" \t\n\r").chars().collect();
        let needed = |at: usize| {
            word(at).ok_or_else(|| {
                Error::new(ErrorKind::MissingArgument, format!("{method}: expected a string"))
            })
        };
        return Ok(match method {
            "strip" => Value::from(text.trim_matches(&chars[..])),
            "lstrip" => Value::from(text.trim_start_matches(&chars[..])),
            "rstrip" => Value::from(text.trim_end_matches(&chars[..])),
            "upper" => Value::from(text.to_uppercase()),
            "lower" => Value::from(text.to_lowercase()),
            "title" => Value::from(title(text)),
            "startswith" => Value::from(text.starts_with(needed(0)?)),
            "endswith" => Value::from(text.ends_with(needed(0)?)),
            "replace" => Value::from(text.replace(needed(0)?, needed(1)?)),
            "split" => match word(0) {
                Some(separator) => text.split(separator).collect(),
                None => text.split_whitespace().collect(),
            },
            _ => return Err(unknown(method)),
        });
    }
    match method {
        "get" => {
            let (args, _) = minijinja::value::from_args::<(&[Value], Kwargs)>(args)?;
            let found = value.get_item(args.first().unwrap_or(&Value::UNDEFINED))?;
            let default = args.get(1).cloned().unwrap_or_else(|| Value::from(()));
            Ok(if found.is_undefined() { default } else { found })
        }
        "keys" => Ok(value.try_iter()?.collect()),
        "values" => value.try_iter()?.map(|key| value.get_item(&key)).collect(),
        "items" => value
            .try_iter()?
            .map(|key| Ok(Value::from(vec![key.clone(), value.get_item(&key)?])))
            .collect(),
        _ => Err(unknown(method)),
    }
}

fn unknown(method: &str) -> Error {
    Error::new(ErrorKind::UnknownMethod, format!("no method named {method}"))
}

fn title(text: &str) -> String {
    let mut start = true;
    let mut letter = |c: char| {
        let first = std::mem::replace(&mut start, !c.is_alphabetic());
        if first { c.to_uppercase().collect::<String>() } else { c.to_lowercase().collect() }
    };
    text.chars().map(&mut letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, LoadError> {
        let template = ChatTemplate::new(source, "<s>", "</s>")?;
        template.render(&[ChatMessage::system(" Be brief. "), ChatMessage::user("Hi")])
    }

    #[test]
    fn the_shapes_of_common_templates() {
        let llama3 = "{{- bos_token }}\n{%- for message in messages %}\n    {{- '<|start_header_id|>' + message['role'] + \
            '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}\n{%- endfor %}\n\
            {%- if add_generation_prompt %}\n    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}\n{%- endif %}\n";
        assert_eq!(
            render(llama3).unwrap(),
            "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n\
             Hi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        );
        let zephyr = "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + \
            eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% endif %}\n\
            {% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}";
        assert_eq!(
            render(zephyr).unwrap(),
            "<|system|>\n Be brief. </s>\n<|user|>\nHi</s>\n<|assistant|>\n"
        );
        let qwen = "{%- set ns = namespace(n=0) %}{%- for message in messages[::-1] %}{%- set ns.n = ns.n + 1 %}{%- endfor %}\
            {{- ns.n }}{%- if tools %}no{%- endif %}{{- messages[0].content.strip().split(' ')[-1].upper() }}\
            {{- messages[1].get('name', 'nobody') }}{{- messages | tojson }}";
        assert_eq!(
            render(qwen).unwrap(),
            "2BRIEF.nobody[{\"role\": \"system\", \"content\": \" Be brief. \"}, {\"role\": \"user\", \"content\": \"Hi\"}]"
        );
    }

    #[test]
    fn an_exception_or_a_mistake_in_a_template_is_an_error() {
        let message = render("{{ raise_exception('only one system message') }}").unwrap_err();
        assert!(message.to_string().contains("only one system message"), "{message}");
        assert!(render("{% for %}").is_err());
        assert!(render("{{ messages[0].content.frobnicate() }}").is_err());
    }
}
