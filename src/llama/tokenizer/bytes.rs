//! The bytes of tokens that may end inside of a character.

use serde_json::Value;

/// How a decoder makes text from the bytes of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bytes {
    /// Every character of a token stands for a byte (GPT-2 and most later models).
    Level,
    /// Tokens such as `<0xE4>` are bytes, and the others are text (SentencePiece).
    Fallback,
}

impl Bytes {
    /// Reads the decoder of a `tokenizer.json`. `None` if none of its parts works on bytes, or if several do.
    pub(super) fn of_decoder(decoder: &Value) -> Option<Self> {
        let kind = |part: &Value| match part["type"].as_str() {
            Some("ByteLevel") => Some(Self::Level),
            Some("ByteFallback") => Some(Self::Fallback),
            _ => None,
        };
        let parts = decoder["decoders"].as_array();
        let mut kinds = parts.into_iter().flatten().chain([decoder]).filter_map(kind);
        kinds.next().filter(|_| kinds.next().is_none())
    }

    /// The bytes of a token with this text in the vocabulary.
    pub(super) fn of_token(self, token: &str) -> Vec<u8> {
        let bytes = match self {
            Self::Level => token.chars().map(byte_of).collect(),
            Self::Fallback => {
                let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                let digits = digits.filter(|digits| digits.len() == 2);
                digits.and_then(|digits| Some(vec![u8::from_str_radix(digits, 16).ok()?]))
            }
        };
        bytes.unwrap_or_else(|| token.as_bytes().to_vec())
    }
}

/// The byte that a character stands for. Bytes that can be printed stand for themselves in Latin-1; the others follow
/// one after the other from U+0100.
fn byte_of(c: char) -> Option<u8> {
    let printed = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    match u32::from(c) {
        code @ 0..256 => u8::try_from(code).ok().filter(|&byte| printed(byte)),
        code => (0..=255).filter(|&byte| !printed(byte)).nth(code as usize - 256),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn characters_stand_for_bytes_as_in_the_library() {
        let decoder = tokenizers::decoders::byte_level::ByteLevel::default();
        let alphabet = tokenizers::decoders::byte_level::ByteLevel::alphabet();
        assert_eq!(alphabet.len(), 256);
        for c in alphabet {
            use tokenizers::Decoder;
            let byte = byte_of(c).unwrap();
            let text = decoder.decode(vec![c.to_string()]).unwrap();
            assert_eq!(text, String::from_utf8_lossy(&[byte]), "{c}");
        }
        for c in [' ', '\u{ad}', '\u{144}', '中'] {
            assert_eq!(byte_of(c), None, "{c:?}");
        }
        assert_eq!(Bytes::Level.of_token("ĠäĊ"), [b' ', 0xe4, b'\n']);
        assert_eq!(Bytes::Level.of_token("中"), "中".as_bytes());
        assert_eq!(Bytes::Fallback.of_token("<0xE4>"), [0xe4]);
        for token in ["<0xE4", "<0xE>", "<0xXY>", "▁a", "<0x+1>"] {
            let bytes = if token == "<0x+1>" { vec![1] } else { token.as_bytes().to_vec() };
            assert_eq!(Bytes::Fallback.of_token(token), bytes); // the library takes a sign too
        }
    }

    #[test]
    fn the_kind_is_that_of_the_only_part_that_works_on_bytes() {
        let [level, fallback] = ["ByteLevel", "ByteFallback"].map(|kind| json!({"type": kind}));
        let sequence = |parts: &[&Value]| json!({"type": "Sequence", "decoders": parts});
        assert_eq!(Bytes::of_decoder(&level), Some(Bytes::Level));
        assert_eq!(Bytes::of_decoder(&sequence(&[&fallback])), Some(Bytes::Fallback));
        assert_eq!(Bytes::of_decoder(&sequence(&[&level, &fallback])), None);
        assert_eq!(Bytes::of_decoder(&Value::Null), None);
    }
}
