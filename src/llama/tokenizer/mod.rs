//! Tokenizer.

mod bytes;
mod ends;
mod guard;
mod vocabulary;

use std::path::Path;

use bytes::Bytes;

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
    /// How tokens make up characters, if they are made of bytes.
    bytes: Option<Bytes>,
    /// The BOS token to prepend to a prompt, if the GGUF file asks for it. A `tokenizer.json` has its own rules for
    /// this.
    begin: Option<TokenId>,
    stop_tokens: Vec<TokenId>,
    warnings: Vec<String>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` from a Hugging Face folder, and the stop tokens from its `generation_config.json` or,
    /// if that has none, from its `config.json`. Ids that the model never draws are left out, with a
    /// [warning](Self::warnings). Truncation and padding settings in `tokenizer.json` are ignored, so
    /// a prompt is never truncated.
    ///
    /// # Errors
    ///
    /// [`LoadError`] with the name of the file or key.
    pub fn from_hf_folder(folder: impl AsRef<Path>) -> Result<Self, LoadError> {
        let folder = folder.as_ref();
        let json = read_json(&folder.join("tokenizer.json"))?;
        let (inner, bytes) = parse(json)?;
        let mut settings = Vec::new();
        for name in ["generation_config.json", "config.json"] {
            let path = folder.join(name);
            settings.extend(path.exists().then(|| read_json(&path)).transpose()?);
        }
        // The model may have more tokens than the tokenizer knows.
        let mut sizes = settings.iter().filter_map(|json| json.get("vocab_size")?.as_u64());
        let vocab_size = match sizes.next_back().and_then(|size| usize::try_from(size).ok()) {
            Some(size) => size,
            None => inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1),
        };
        let (mut stop_tokens, mut warnings) = (Vec::new(), Vec::new());
        for json in settings {
            if stop_tokens.is_empty() {
                stop_tokens = ends::of_hf(&json, vocab_size, &mut warnings)?;
            }
        }
        Ok(Self { inner, bytes, begin: None, stop_tokens, warnings })
    }

    /// Reads the vocabulary from the metadata of a GGUF file. Of a split file, give the first part.
    ///
    /// The stop tokens are all end-of-generation tokens of the vocabulary, found as llama.cpp finds them: by the keys
    /// of the file (EOS, EOT, EOM and the separators of source files) and by their texts, such as `<|im_end|>`,
    /// `<|endoftext|>` and `<|eot_id|>`. A file that does not say how a text is split into words gets the way of its
    /// architecture, and a [warning](Self::warnings).
    ///
    /// Tokens may have at most 1024 bytes, and the merges of a SentencePiece vocabulary 16 times the size of its
    /// tokens, so that a small file cannot ask for much memory or time.
    ///
    /// # Errors
    ///
    /// [`LoadError`] with the name of the key.
    pub fn from_gguf(path: impl AsRef<Path>) -> Result<Self, LoadError> {
        let file = Gguf::open(path.as_ref())?;
        let mut warnings = Vec::new();
        let splitting = vocabulary::splitting(&file, &mut warnings)?;
        let stop_tokens = ends::of_gguf(&file, &mut warnings)?;
        let json = vocabulary::tokenizer_json(&file, splitting, &stop_tokens, &mut warnings)?;
        let adds_begin = if file.has_key("tokenizer.ggml.add_bos_token") {
            file.flag("tokenizer.ggml.add_bos_token")?
        } else {
            vocabulary::begins_by_default(splitting)
        };
        let vocab_size = file.strings("tokenizer.ggml.tokens")?.len();
        let begin = "tokenizer.ggml.bos_token_id";
        let begin = ends::id_of_key(&file, begin, vocab_size, &mut warnings)?;
        let (inner, bytes) = parse(json)?;
        let begin = begin.filter(|_| adds_begin);
        Ok(Self { inner, bytes, begin, stop_tokens, warnings })
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

    /// The end-of-generation tokens: those that end a completion.
    pub fn stop_tokens(&self) -> &[TokenId] {
        &self.stop_tokens
    }

    /// What is unusual about the files that the tokenizer was loaded from, and what was done about it, one text each.
    /// Programs should show them.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
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

    fn special_token(&self, text: &str) -> Option<TokenId> {
        let id = self.inner.token_to_id(text)?;
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        added.get(&id).is_some_and(|token| token.special).then_some(id)
    }

    fn token_bytes(&self, token: TokenId) -> Option<Vec<u8>> {
        let bytes = self.bytes.as_ref()?;
        let text = self.inner.id_to_token(token);
        let text = text.filter(|text| !self.inner.get_added_vocabulary().is_special_token(text));
        Some(text.map_or_else(Vec::new, |text| bytes.of_token(&text)))
    }
}

fn parse(json: serde_json::Value) -> Result<(tokenizers::Tokenizer, Option<Bytes>), LoadError> {
    guard::check_growth(&json)?;
    let bytes = Bytes::of_decoder(&json["decoder"]);
    let mut tokenizer: tokenizers::Tokenizer = guard::caught(|| serde_json::from_value(json))?;
    guard::caught(|| tokenizer.with_truncation(None).map(|_| ()))?;
    tokenizer.with_padding(None);
    Ok((tokenizer, bytes))
}
