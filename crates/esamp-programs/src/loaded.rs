//! A model with its tokenizer and its chat template.

use std::path::Path;

use burn::tensor::Device;
use esamp::{
    TokenId,
    llama::{ChatMessage, ChatTemplate, Llama, LoadError, Tokenizer},
};

use crate::failure::{Failure, note};

/// A model with its tokenizer and chat template.
pub struct Loaded {
    pub model: Llama,
    pub tokenizer: Tokenizer,
    /// An error in the template is reported when it is needed: a raw prompt needs none.
    pub template: Result<Option<ChatTemplate>, LoadError>,
}

impl Loaded {
    /// Opens a GGUF file or a Hugging Face folder.
    pub fn open(path: &Path, device: &Device) -> Result<Self, Failure> {
        let loaded = if path.is_dir() {
            Tokenizer::from_hf_folder(path).and_then(|tokenizer| {
                let template = ChatTemplate::from_hf_folder(path);
                Ok(Self { model: Llama::from_hf_folder(path, device)?, tokenizer, template })
            })
        } else {
            Tokenizer::from_gguf(path).and_then(|tokenizer| {
                let template = ChatTemplate::from_gguf(path);
                Ok(Self { model: Llama::from_gguf(path, device)?, tokenizer, template })
            })
        };
        let loaded: Self = loaded.map_err(Failure::loading)?;
        for warning in loaded.tokenizer.warnings().iter().chain(loaded.model.warnings()) {
            note(warning);
        }
        Ok(loaded)
    }

    /// Encodes the prompt; as a chat message if the model has a template and `raw` is false.
    pub fn prompt(&self, text: &str, raw: bool) -> Result<Vec<TokenId>, Failure> {
        const NEXT: &str = "try --raw, which uses no chat template";
        let tokens = match &self.template {
            _ if raw => self.tokenizer.encode(text),
            Ok(Some(template)) => template
                .render(&[ChatMessage::user(text)])
                .and_then(|text| self.tokenizer.encode_rendered(&text)),
            Ok(None) => {
                note("the model has no chat template; the prompt is completed as it is (--raw)");
                self.tokenizer.encode(text)
            }
            Err(error) => return Err(Failure::runtime(error, NEXT)),
        };
        tokens.map_err(|error| Failure::runtime(error, NEXT))
    }
}
