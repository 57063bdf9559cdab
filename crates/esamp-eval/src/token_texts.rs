//! The texts of a vocabulary's tokens, and masks of tokens by their texts.

use std::{fmt, sync::Arc};

use esamp::{CompletionId, Detokenize, TokenId, TokenMask, TokenMasker, errors::RowError};
use esamp_programs::failure::Failure;

/// The text of every token of a vocabulary.
pub struct TokenTexts {
    texts: Vec<String>,
    is_stop: Vec<bool>,
}

impl fmt::Debug for TokenTexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenTexts").field("tokens", &self.texts.len()).finish_non_exhaustive()
    }
}

impl TokenTexts {
    /// Those of a detokenizer, with U+FFFD for what is not a whole character.
    ///
    /// # Errors
    ///
    /// Tokens that cannot be decoded.
    pub fn of(
        detokenizer: &dyn Detokenize,
        vocab: usize,
        stop_tokens: &[TokenId],
    ) -> Result<Self, Failure> {
        let text = |token| match detokenizer.token_bytes(token) {
            Some(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            None => detokenizer.decode(&[token]).map_err(|error| {
                Failure::runtime(error, "check the tokenizer: a token has no text")
            }),
        };
        let texts: Vec<String> = (0..vocab as TokenId).map(text).collect::<Result<_, _>>()?;
        Ok(Self::of_texts(texts, stop_tokens))
    }

    /// Tokens with these texts.
    pub fn of_texts(texts: impl IntoIterator<Item = String>, stop_tokens: &[TokenId]) -> Self {
        let texts: Vec<String> = texts.into_iter().collect();
        let is_stop = (0..texts.len()).map(|token| stop_tokens.contains(&(token as TokenId)));
        Self { is_stop: is_stop.collect(), texts }
    }

    /// The texts, by token.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.texts.iter().map(String::as_str)
    }

    /// The text of some tokens, without stop tokens.
    pub fn text(&self, tokens: &[TokenId]) -> String {
        let known = tokens.iter().map(|&token| token as usize);
        let said = known.filter(|&token| self.is_stop.get(token) == Some(&false));
        said.map(|token| self.texts[token].as_str()).collect()
    }

    /// The tokens that `allows` allows, given their text and whether they end a completion.
    ///
    /// # Errors
    ///
    /// No such token.
    pub fn mask(&self, allows: impl Fn(&str, bool) -> bool) -> Result<TokenMask, RowError> {
        let tokens = self.texts.iter().zip(&self.is_stop).enumerate();
        let allowed = tokens.filter(|(_, (text, is_stop))| allows(text, **is_stop));
        let allowed: Vec<TokenId> = allowed.map(|(token, _)| token as TokenId).collect();
        if allowed.is_empty() {
            return Err(RowError::masker(
                "expected a vocabulary with all letters, got one without",
            ));
        }
        Ok(TokenMask::allowing(self.texts.len(), allowed))
    }

    /// The longest token that continues `opening` after `text`; `None` if `text` already has it.
    ///
    /// # Errors
    ///
    /// A vocabulary without the characters of the opening.
    pub fn opening(&self, opening: &str, text: &str) -> Result<Option<TokenMask>, RowError> {
        match opening.strip_prefix(text).filter(|left| !left.is_empty()) {
            Some(left) => {
                let fits = |token: &str, is_stop: bool| !is_stop && left.starts_with(token);
                // The longest, as a tokenizer would: the model has rarely seen a word in pieces.
                let tokens = self.iter().zip(&self.is_stop);
                let fitting = tokens.filter(|&(token, &is_stop)| fits(token, is_stop));
                let longest = fitting.map(|(token, _)| token.len()).max().unwrap_or(0).max(1);
                let fits = |token: &str, is_stop| token.len() == longest && fits(token, is_stop);
                self.mask(fits).map(Some)
            }
            None => Ok(None),
        }
    }
}

/// Forces completions to begin with a text.
#[derive(Clone, Debug)]
pub struct OpeningMasker {
    pub texts: Arc<TokenTexts>,
    pub opening: &'static str,
}

impl TokenMasker for OpeningMasker {
    fn mask(
        &self,
        _row: CompletionId,
        generated: &[TokenId],
    ) -> Result<Option<TokenMask>, RowError> {
        // Afterwards the text need not be put together again.
        if generated.len() > self.opening.len() {
            return Ok(None);
        }
        self.texts.opening(self.opening, &self.texts.text(generated))
    }
}
