//! Detokenisation of tokens that arrive one at a time.

use thiserror::Error;

use crate::id::TokenId;

/// Turns tokens into text.
///
/// Implemented for closures, and for [`Tokenizer`](crate::llama::Tokenizer) if the feature `llama` is enabled.
///
/// ```
/// use esamp::{Detokenize, TokenId, errors::TextError};
///
/// struct Words(Vec<String>);
///
/// impl Detokenize for Words {
///     fn decode(&self, tokens: &[TokenId]) -> Result<String, TextError> {
///         let word = |&token: &TokenId| {
///             let word = self.0.get(token as usize).map(String::as_str);
///             word.ok_or_else(|| TextError::new(format!("expected a token below {}, got {token}", self.0.len())))
///         };
///         tokens.iter().map(word).collect()
///     }
/// }
///
/// let words = Words(["to", " be", " or", " not"].map(String::from).to_vec());
/// assert_eq!(words.decode(&[0, 1, 2, 3])?, "to be or not");
/// assert!(words.decode(&[4]).is_err());
/// # Ok::<(), TextError>(())
/// ```
pub trait Detokenize: Send + Sync {
    /// Decodes a sequence of tokens. Bytes that are not (yet) valid UTF-8 become U+FFFD.
    ///
    /// # Errors
    ///
    /// [`TextError`] with the tokenizer's message.
    fn decode(&self, tokens: &[TokenId]) -> Result<String, TextError>;

    /// The special token with this text, such as `<|im_end|>`. [`decode`](Self::decode) skips special tokens, so that
    /// a stop string with the text of one could not be found in the text of a completion. By default there are none.
    fn special_token(&self, _text: &str) -> Option<TokenId> {
        None
    }
}

impl<F: Fn(&[TokenId]) -> Result<String, TextError> + Send + Sync> Detokenize for F {
    fn decode(&self, tokens: &[TokenId]) -> Result<String, TextError> {
        self(tokens)
    }
}

impl<T: Detokenize + ?Sized> Detokenize for std::sync::Arc<T> {
    fn decode(&self, tokens: &[TokenId]) -> Result<String, TextError> {
        (**self).decode(tokens)
    }

    fn special_token(&self, text: &str) -> Option<TokenId> {
        (**self).special_token(text)
    }
}

/// The text of a growing token sequence, in pieces.
///
/// A character may be spread over several tokens; its piece is returned with the last of them. The pieces together
/// are the text of all tokens, unless the detokenizer changes text that has already been shown: `ByteFallback`
/// decodes a run of bytes as a whole, and one invalid byte turns the whole run into U+FFFD. Text that has been shown
/// then stays, and only the bytes after it become U+FFFD.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    tokens: Vec<TokenId>,
    /// Index of the first token that is still decoded as context.
    context: usize,
    /// Index of the first token that has not been shown.
    shown: usize,
}

impl TextStream {
    /// Adds the next token and returns the text that can be shown now.
    ///
    /// Each call decodes only a few tokens: the ones shown last, because tokenizers depend on the preceding context
    /// (a space is dropped at the beginning of a text), and those that have not been shown yet.
    ///
    /// # Errors
    ///
    /// Any error of the detokenizer.
    pub fn push(
        &mut self,
        token: TokenId,
        detokenizer: &dyn Detokenize,
    ) -> Result<String, TextError> {
        self.tokens.push(token);
        let (piece, ends_inside_a_character) = self.unseen(detokenizer)?;
        if piece.is_empty() || ends_inside_a_character {
            return Ok(String::new());
        }
        self.context = self.shown;
        self.shown = self.tokens.len();
        Ok(piece)
    }

    /// Returns the text that was held back, including an incomplete character.
    ///
    /// # Errors
    ///
    /// Any error of the detokenizer.
    pub fn finish(&mut self, detokenizer: &dyn Detokenize) -> Result<String, TextError> {
        let (piece, _) = self.unseen(detokenizer)?;
        self.context = self.shown;
        self.shown = self.tokens.len();
        Ok(piece)
    }

    /// The text of the tokens that have not been shown, and whether it may end inside a character.
    fn unseen(&self, detokenizer: &dyn Detokenize) -> Result<(String, bool), TextError> {
        let before = detokenizer.decode(&self.tokens[self.context..self.shown])?;
        let after = detokenizer.decode(&self.tokens[self.context..])?;
        let piece = match after.strip_prefix(&before) {
            Some(piece) => piece.to_owned(),
            // The new tokens changed the text of the old ones, so only their own text can be shown.
            None => detokenizer.decode(&self.tokens[self.shown..])?,
        };
        let inside = piece.ends_with(char::REPLACEMENT_CHARACTER);
        Ok((piece, inside))
    }
}

/// Tokens that could not be turned into text.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("detokenizer: {0}")]
pub struct TextError(String);

impl TextError {
    /// Creates an error from a tokenizer's message.
    pub fn new(message: impl std::fmt::Display) -> Self {
        Self(message.to_string())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A token is a byte.
    fn bytes(tokens: &[TokenId]) -> Result<String, TextError> {
        let bytes: Vec<u8> = tokens.iter().map(|&token| token as u8).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn pieces(tokens: &[TokenId]) -> Vec<String> {
        let mut stream = TextStream::default();
        let mut pieces: Vec<String> =
            tokens.iter().map(|&token| stream.push(token, &bytes).unwrap()).collect();
        pieces.push(stream.finish(&bytes).unwrap());
        pieces
    }

    fn tokens(text: &str) -> Vec<TokenId> {
        text.bytes().map(TokenId::from).collect()
    }

    #[test]
    fn a_character_comes_with_its_last_byte() {
        assert_eq!(pieces(&tokens("aé🦀")), ["a", "", "é", "", "", "", "🦀", ""]);
    }

    #[test]
    fn an_incomplete_character_comes_at_the_end() {
        assert_eq!(pieces(&[97, 0xf0, 0x9f]).concat(), "a\u{fffd}");
    }

    #[test]
    fn words_keep_the_space_that_a_tokenizer_drops_at_the_start() {
        // Like SentencePiece: every word begins with a space, and the first space of a text is dropped.
        let words = |tokens: &[TokenId]| -> Result<String, TextError> {
            let text: String = tokens.iter().map(|token| format!(" w{token}")).collect();
            Ok(text.strip_prefix(' ').unwrap_or(&text).to_owned())
        };
        let mut stream = TextStream::default();
        let all: Vec<String> = (0..4).map(|token| stream.push(token, &words).unwrap()).collect();
        assert_eq!(all, ["w0", " w1", " w2", " w3"]);
    }

    /// Like `ByteFallback`: a token below 256 is a byte, and a run of bytes is decoded as a whole. Larger tokens are
    /// words, and the first space of a text is dropped.
    fn byte_fallback(tokens: &[TokenId]) -> Result<String, TextError> {
        let mut text = String::new();
        for run in tokens.chunk_by(|a, b| *a < 256 && *b < 256) {
            if run[0] >= 256 {
                text.push_str(&format!(" w{}", run[0]));
                continue;
            }
            let bytes: Vec<u8> = run.iter().map(|&token| token as u8).collect();
            let invalid = "\u{fffd}".repeat(run.len());
            text.push_str(&String::from_utf8(bytes).unwrap_or(invalid));
        }
        Ok(text.strip_prefix(' ').unwrap_or(&text).to_owned())
    }

    #[test]
    fn an_invalid_byte_after_a_character_does_not_stop_the_text() {
        let mut stream = TextStream::default();
        let tokens = [tokens("😀"), vec![0xf0, 300, 301]].concat();
        let pieces: Vec<String> =
            tokens.iter().map(|&token| stream.push(token, &byte_fallback).unwrap()).collect();
        assert_eq!(pieces, ["", "", "", "😀", "", "\u{fffd} w300", " w301"]);
        assert_eq!(stream.finish(&byte_fallback).unwrap(), "");
    }

    proptest! {
        #[test]
        fn words_come_at_once_after_any_bytes(
            tokens in prop::collection::vec(prop_oneof![3 => 0u32..256, 1 => 256u32..300], 0..60)
        ) {
            let mut stream = TextStream::default();
            for (at, &token) in tokens.iter().enumerate() {
                let piece = stream.push(token, &byte_fallback).unwrap();
                if token >= 256 {
                    let word = if at == 0 { format!("w{token}") } else { format!(" w{token}") };
                    prop_assert!(piece.ends_with(&word), "{piece:?} for {word:?}");
                }
            }
        }

        #[test]
        fn the_pieces_of_valid_bytes_are_their_text(text in "\\PC{0,40}", word in 256u32..300) {
            let mut stream = TextStream::default();
            let tokens = [tokens(&text), vec![word]].concat();
            let pieces: Result<String, TextError> =
                tokens.iter().map(|&token| stream.push(token, &byte_fallback)).collect();
            prop_assert_eq!(pieces.unwrap(), byte_fallback(&tokens).unwrap());
        }

        #[test]
        fn the_pieces_of_valid_text_are_the_text(text in "\\PC{0,40}") {
            prop_assert_eq!(pieces(&tokens(&text)).concat(), text);
        }

        #[test]
        fn the_pieces_of_any_bytes_are_their_text(bytes_in in prop::collection::vec(0u32..256, 0..60)) {
            prop_assert_eq!(pieces(&bytes_in).concat(), bytes(&bytes_in).unwrap());
        }
    }
}
