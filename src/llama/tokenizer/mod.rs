//! Tokenizer.

mod guard;
mod vocabulary;

use std::path::Path;

use crate::{
    id::TokenId,
    llama::error::LoadError,
    llama::load::{Gguf, read_json},
    text::{Detokenize, TextError},
};

/// The tokenizer of a model: byte-level BPE or SentencePiece BPE, loaded from `tokenizer.json` or a GGUF file.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The BOS token to prepend to a prompt, if the GGUF file asks for it. A `tokenizer.json` has its own rules for
    /// this.
    begin: Option<TokenId>,
    stop_tokens: Vec<TokenId>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` from a Hugging Face folder, and the stop tokens from its `generation_config.json` or,
    /// if that has none, from its `config.json`. Truncation and padding settings in `tokenizer.json` are ignored, so
    /// a prompt is never truncated.
    ///
    /// # Errors
    ///
    /// [`LoadError`] with the name of the file or key.
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

    /// Reads the vocabulary from the metadata of a GGUF file.
    ///
    /// # Errors
    ///
    /// [`LoadError`] with the name of the key.
    pub fn from_gguf(path: impl AsRef<Path>) -> Result<Self, LoadError> {
        let file = Gguf::open(path.as_ref())?;
        let token = |key: &str| {
            if file.has_key(key) { file.size(key).map(|id| Some(id as TokenId)) } else { Ok(None) }
        };
        let ends = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"];
        let mut stop_tokens = Vec::new();
        for id in ends.into_iter().map(token).filter_map(Result::transpose) {
            stop_tokens.push(id?);
        }
        stop_tokens.dedup();
        let adds_begin = if file.has_key("tokenizer.ggml.add_bos_token") {
            file.flag("tokenizer.ggml.add_bos_token")?
        } else {
            vocabulary::begins_by_default(&file)?
        };
        let begin = token("tokenizer.ggml.bos_token_id")?.filter(|_| adds_begin);
        Ok(Self { inner: parse(vocabulary::tokenizer_json(&file)?)?, begin, stop_tokens })
    }

    /// Encodes a plain text, including the special tokens that the model expects before it.
    ///
    /// # Errors
    ///
    /// [`LoadError::Tokenizer`] if the tokenizer fails on the text.
    pub fn encode(&self, text: &str) -> Result<Vec<TokenId>, LoadError> {
        let mut tokens: Vec<TokenId> = self.begin.into_iter().collect();
        tokens.extend(self.ids(text, true)?);
        Ok(tokens)
    }

    /// Encodes a text rendered by a [`ChatTemplate`](super::ChatTemplate). Adds no BOS token, because the template
    /// writes it; if the template does not, the prompt has none.
    ///
    /// # Errors
    ///
    /// [`LoadError::Tokenizer`] if the tokenizer fails on the text.
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<TokenId>, LoadError> {
        self.ids(text, false)
    }

    /// The EOS tokens: those that end a completion.
    pub fn stop_tokens(&self) -> &[TokenId] {
        &self.stop_tokens
    }

    /// The id of a token, given its text. Finds special tokens too.
    pub fn token_id(&self, token: &str) -> Option<TokenId> {
        self.inner.token_to_id(token)
    }

    /// Number of tokens, including special tokens.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    fn ids(&self, text: &str, add_special: bool) -> Result<Vec<TokenId>, LoadError> {
        let encoding = guard::caught(|| self.inner.encode(text, add_special))?;
        Ok(encoding.get_ids().to_vec())
    }
}

impl Detokenize for Tokenizer {
    /// Decodes tokens to text and skips special tokens.
    fn decode(&self, tokens: &[TokenId]) -> Result<String, TextError> {
        guard::caught(|| self.inner.decode(tokens, true)).map_err(TextError::new)
    }
}

fn parse(json: serde_json::Value) -> Result<tokenizers::Tokenizer, LoadError> {
    guard::check_growth(&json)?;
    let mut tokenizer: tokenizers::Tokenizer = guard::caught(|| serde_json::from_value(json))?;
    guard::caught(|| tokenizer.with_truncation(None).map(|_| ()))?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}
