//! Text to tokens and back.

mod vocabulary;

use std::path::Path;

use crate::{
    id::TokenId,
    llama::error::LoadError,
    llama::load::{Gguf, read_json},
    text::{Detokenize, TextError},
};

/// The tokenizer of a model: byte-level BPE or SentencePiece BPE, from `tokenizer.json` or from a GGUF file.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// What the GGUF file asks to be put in front of a prompt; a `tokenizer.json` has its own rules for that.
    begin: Option<TokenId>,
    stop_tokens: Vec<TokenId>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a Hugging Face folder, and the stop tokens of its `generation_config.json` or, where
    /// that has none, of its `config.json`. Truncation and padding that `tokenizer.json` asks for are left out: a prompt
    /// is never cut.
    ///
    /// # Errors
    ///
    /// [`LoadError`] that names the file or key.
    pub fn from_hf_folder(folder: impl AsRef<Path>) -> Result<Self, LoadError> {
        let folder = folder.as_ref();
        let json = read_json(&folder.join("tokenizer.json"))?;
        let mut stop_tokens = Vec::new();
        for settings in ["generation_config.json", "config.json"] {
            let settings = folder.join(settings);
            if stop_tokens.is_empty() && settings.exists() {
                stop_tokens = vocabulary::stop_tokens(&read_json(&settings)?)?;
            }
        }
        Ok(Self { inner: parse(json)?, begin: None, stop_tokens })
    }

    /// Reads the vocabulary in the metadata of a GGUF file.
    ///
    /// # Errors
    ///
    /// [`LoadError`] that names the key.
    pub fn from_gguf(path: impl AsRef<Path>) -> Result<Self, LoadError> {
        let file = Gguf::open(path.as_ref())?;
        let token = |key: &str| match file.has_key(key) {
            true => file.size(key).map(|id| Some(id as TokenId)),
            false => Ok(None),
        };
        let ends = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"];
        let mut stop_tokens = Vec::new();
        for id in ends.into_iter().map(token).filter_map(Result::transpose) {
            stop_tokens.push(id?);
        }
        stop_tokens.dedup();
        let adds_begin = match file.has_key("tokenizer.ggml.add_bos_token") {
            true => file.flag("tokenizer.ggml.add_bos_token")?,
            false => vocabulary::begins_by_default(&file)?,
        };
        let begin = token("tokenizer.ggml.bos_token_id")?.filter(|_| adds_begin);
        Ok(Self { inner: parse(vocabulary::tokenizer_json(&file)?)?, begin, stop_tokens })
    }

    /// The tokens of a plain text, with what the model wants in front of it.
    ///
    /// # Errors
    ///
    /// [`LoadError::Tokenizer`] when the tokenizer fails on the text.
    pub fn encode(&self, text: &str) -> Result<Vec<TokenId>, LoadError> {
        let mut tokens: Vec<TokenId> = self.begin.into_iter().collect();
        tokens.extend(self.ids(text, true)?);
        Ok(tokens)
    }

    /// The tokens of a text that a [`ChatTemplate`](super::ChatTemplate) has rendered: nothing is put in front, for that is
    /// the template's part. A prompt whose template writes no first token has none.
    ///
    /// # Errors
    ///
    /// [`LoadError::Tokenizer`] when the tokenizer fails on the text.
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<TokenId>, LoadError> {
        self.ids(text, false)
    }

    /// The tokens that end a completion.
    pub fn stop_tokens(&self) -> &[TokenId] {
        &self.stop_tokens
    }

    /// The id of a token by its text, special ones included.
    pub fn token_id(&self, token: &str) -> Option<TokenId> {
        self.inner.token_to_id(token)
    }

    /// Number of tokens, special ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    fn ids(&self, text: &str, add_special: bool) -> Result<Vec<TokenId>, LoadError> {
        let encoding = self.inner.encode(text, add_special);
        let encoding = encoding.map_err(|error| LoadError::Tokenizer(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }
}

impl Detokenize for Tokenizer {
    /// The text of some tokens; special tokens have none.
    fn decode(&self, tokens: &[TokenId]) -> Result<String, TextError> {
        self.inner.decode(tokens, true).map_err(TextError::new)
    }
}

fn parse(json: serde_json::Value) -> Result<tokenizers::Tokenizer, LoadError> {
    let wrong = |error: &dyn std::fmt::Display| LoadError::Tokenizer(error.to_string());
    let mut tokenizer: tokenizers::Tokenizer =
        serde_json::from_value(json).map_err(|error| wrong(&error))?;
    tokenizer.with_truncation(None).map_err(|error| wrong(&error))?.with_padding(None);
    Ok(tokenizer)
}
