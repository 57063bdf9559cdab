//! Chat templates.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{
    llama::error::LoadError,
    llama::jinja::{Fault, Template, Variable},
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

    fn fields(&self) -> Vec<(&str, &str)> {
        vec![("role", &self.role), ("content", &self.content)]
    }
}

/// A model's chat template: a program in Jinja that is shipped with the model.
///
/// It is rendered as transformers renders it, with the same tags, filters, tests and functions, and the methods of
/// Python's strings, lists and dictionaries that change nothing. `tools` and `documents` are `none`. `strftime_now`
/// gives the time in UTC: a template that writes today's date makes prompts that depend on the day.
///
/// The template is not trusted. It may cost 32 MB of text and work, and 256 bytes more for every byte of the
/// conversation; that is about a second at most. Its depth is bounded too, so that it fits on the stack of a thread.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    template: Template,
    begin: String,
    end: String,
}

impl ChatTemplate {
    /// Parses a template. `begin` and `end` are the texts of the BOS and EOS tokens, which templates write
    /// themselves.
    ///
    /// # Errors
    ///
    /// [`LoadError::ChatTemplate`] with the line if `source` is longer than 512 KB or is not a template.
    pub fn new(
        source: impl Into<String>,
        begin: impl Into<String>,
        end: impl Into<String>,
    ) -> Result<Self, LoadError> {
        let template = Template::parse(&source.into()).map_err(|fault| wrong(&fault))?;
        Ok(Self { template, begin: begin.into(), end: end.into() })
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
    /// [`LoadError::ChatTemplate`] with the line and the template's own message if it rejects the conversation, or if
    /// it fails or costs too much.
    pub fn render(&self, messages: &[ChatMessage]) -> Result<String, LoadError> {
        let variables = [
            ("messages", Variable::Records(messages.iter().map(ChatMessage::fields).collect())),
            ("tools", Variable::None),
            ("documents", Variable::None),
            ("add_generation_prompt", Variable::True),
            ("bos_token", Variable::Text(&self.begin)),
            ("eos_token", Variable::Text(&self.end)),
        ];
        self.template.render(&variables).map_err(|fault| wrong(&fault))
    }
}

fn wrong(fault: &Fault) -> LoadError {
    LoadError::ChatTemplate(fault.to_string())
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
