//! What tokens are on their own: their bytes, and where they are in the text of their completion.

use esamp::{Detokenize, TextStream, TokenId};

/// The tokens of a completion so far.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    /// Whether a token had bytes.
    has_begun: bool,
    /// Characters that are complete.
    characters: usize,
    /// The bytes of a character that is not.
    incomplete: Vec<u8>,
}

impl Tokens {
    /// The bytes of a token at this place of the completion. The bytes of all tokens, one after the other, are those of
    /// the text; a part of a character has its own.
    pub(crate) fn bytes(&self, token: TokenId, tokenizer: &impl Detokenize) -> Vec<u8> {
        let mut bytes = bytes_within(token, tokenizer);
        // Some tokenizers drop a space at the beginning of a text.
        if !self.has_begun && bytes.first() == Some(&b' ') {
            let text = tokenizer.decode(&[token]);
            if text.is_ok_and(|text| !text.starts_with(' ')) {
                bytes.remove(0);
            }
        }
        bytes
    }

    /// Adds the next token. Returns its bytes, and the characters that are complete before it.
    pub(crate) fn push(&mut self, token: TokenId, tokenizer: &impl Detokenize) -> (Vec<u8>, usize) {
        let bytes = self.bytes(token, tokenizer);
        let before = self.characters;
        self.has_begun |= !bytes_within(token, tokenizer).is_empty();
        self.incomplete.extend(&bytes);
        self.complete();
        (bytes, before)
    }

    /// Counts complete characters. As in the text, bytes that no character can have count as one or more U+FFFD.
    fn complete(&mut self) {
        loop {
            let (characters, end) = match std::str::from_utf8(&self.incomplete) {
                Ok(text) => (text.chars().count(), self.incomplete.len()),
                Err(error) => {
                    let valid = &self.incomplete[..error.valid_up_to()];
                    let valid = String::from_utf8_lossy(valid).chars().count();
                    match error.error_len() {
                        Some(length) => (valid + 1, error.valid_up_to() + length),
                        None => (valid, error.valid_up_to()),
                    }
                }
            };
            self.characters += characters;
            self.incomplete.drain(..end);
            if end == 0 || self.incomplete.is_empty() {
                return;
            }
        }
    }
}

/// The bytes of a token that is not the first of a text.
fn bytes_within(token: TokenId, tokenizer: &impl Detokenize) -> Vec<u8> {
    if let Some(bytes) = tokenizer.token_bytes(token) {
        return bytes;
    }
    // A tokenizer without bytes: the text of the token after itself.
    let mut stream = TextStream::default();
    let [_, text] = [(); 2].map(|()| stream.push(token, tokenizer).unwrap_or_default());
    if text.is_empty() { tokenizer.decode(&[token]).unwrap_or_default() } else { text }.into_bytes()
}

/// A token as OpenAI's API prints it: its text, or if its bytes are a part of a character, these, after `sign`, with
/// `\x` and two digits for each that is no visible character of ASCII.
pub(crate) fn shown(bytes: &[u8], sign: &str) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            let shown = bytes.iter().map(|&byte| match byte {
                b' '..=b'~' => char::from(byte).to_string(),
                _ => format!("\\x{byte:02x}"),
            });
            format!("{sign}{}", shown.collect::<String>())
        }
    }
}

#[cfg(test)]
mod tests {
    use esamp::{errors::TextError, llama::Tokenizer};
    use esamp_programs::model_source::{Cache, ModelSource};
    use esamp_testkit::golden;

    use super::*;

    /// Bytes, offsets and text of a completion.
    fn completion(
        tokenizer: &impl Detokenize,
        tokens: &[TokenId],
    ) -> (Vec<Vec<u8>>, Vec<usize>, String) {
        let (mut seen, mut stream) = (Tokens::default(), TextStream::default());
        let (bytes, offsets) = tokens.iter().map(|&token| seen.push(token, tokenizer)).unzip();
        let pieces = tokens.iter().map(|&token| stream.push(token, tokenizer).unwrap());
        let text: String = pieces.collect();
        (bytes, offsets, text + &stream.finish())
    }

    /// Byte-level BPE, and SentencePiece with single bytes.
    fn tokenizers() -> [Tokenizer; 2] {
        let smollm2 = ModelSource::SmolLm2.fetch(&Cache::from_env().unwrap()).unwrap();
        let pieces = golden::path("tokenizer/sentencepiece.gguf");
        [smollm2, pieces].map(|path| Tokenizer::from_gguf(path).unwrap())
    }

    #[test]
    fn the_bytes_of_tokens_are_those_of_the_text_with_a_character_over_several_tokens() {
        for tokenizer in tokenizers() {
            for text in ["the 🦀 and 灯台", "🦀", "灯台は the", " the keeper"] {
                let tokens = tokenizer.encode_rendered(text).unwrap();
                let (bytes, offsets, said) = completion(&tokenizer, &tokens);
                assert_eq!(said, text);
                assert_eq!(bytes.concat(), text.as_bytes());
                let is_split = bytes.iter().any(|bytes| std::str::from_utf8(bytes).is_err());
                assert!(is_split || text.is_ascii(), "{text}");
                // Every token begins in the character at its offset.
                let mut at = 0;
                for (bytes, offset) in bytes.iter().zip(offsets) {
                    let complete = text.char_indices().take_while(|(i, c)| i + c.len_utf8() <= at);
                    assert_eq!(offset, complete.count(), "{text} {bytes:?}");
                    at += bytes.len();
                }
            }
        }
    }

    #[test]
    fn bytes_that_are_no_character_count_as_in_the_text() {
        let bytes = |tokens: &[TokenId]| -> Result<String, TextError> {
            let bytes: Vec<u8> = tokens.iter().map(|&token| token as u8).collect();
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        struct Level<F>(F);
        impl<F: Fn(&[TokenId]) -> Result<String, TextError> + Send + Sync> Detokenize for Level<F> {
            fn decode(&self, tokens: &[TokenId]) -> Result<String, TextError> {
                self.0(tokens)
            }
            fn token_bytes(&self, token: TokenId) -> Option<Vec<u8>> {
                Some(vec![token as u8])
            }
        }
        let (_, offsets, text) = completion(&Level(bytes), &[0xe4, 0xe4, 0xb8, 0xad, 0xff, 0x41]);
        assert_eq!(text, "\u{fffd}中\u{fffd}A");
        assert_eq!(offsets, [0, 0, 1, 1, 2, 3]);
    }

    #[test]
    fn without_bytes_a_token_has_the_text_that_it_has_after_another() {
        let words = |tokens: &[TokenId]| -> Result<String, TextError> {
            let words = tokens.iter().filter(|&&token| token > 0).map(|token| format!("w{token}"));
            Ok(words.collect::<Vec<_>>().join(" "))
        };
        let (bytes, offsets, text) = completion(&words, &[0, 5, 6, 7]);
        assert_eq!(bytes, [&b""[..], b"w5", b" w6", b" w7"]);
        assert_eq!((offsets, &text[..]), (vec![0, 0, 2, 5], "w5 w6 w7"));
    }

    #[test]
    fn parts_of_characters_are_shown_as_bytes() {
        assert_eq!(shown("é\n".as_bytes(), "bytes:"), "é\n");
        assert_eq!(shown(b" \xe2\x80", "bytes:"), "bytes: \\xe2\\x80");
        assert_eq!(shown(b"\x99", ""), "\\x99");
    }
}
