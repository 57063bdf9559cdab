//! The bytes of tokens that may end inside of a character.

use serde_json::Value;

/// How a decoder makes text from the bytes of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Bytes {
    /// Every character of a token stands for a byte (GPT-2 and most later models).
    Level,
    /// Tokens such as `<0xE4>` are bytes, and the others are text (SentencePiece), in which each of these texts is
    /// replaced by the one after it: `▁` by a space.
    Fallback(Vec<(String, String)>),
}

impl Bytes {
    /// Reads the decoder of a `tokenizer.json`. `None` if none of its parts works on bytes, if several do, or if the
    /// text of a token cannot be told.
    pub(super) fn of_decoder(decoder: &Value) -> Option<Self> {
        let parts = decoder["decoders"].as_array();
        let parts = parts.into_iter().flatten().chain([decoder]);
        let (mut kinds, mut replaced) = (Vec::new(), Vec::new());
        for part in parts {
            match part["type"].as_str() {
                Some(kind @ ("ByteLevel" | "ByteFallback")) => kinds.push(kind),
                // A regular expression has no such text.
                Some("Replace") => {
                    let text = |field: &Value| field.as_str().map(str::to_owned);
                    replaced.push((text(&part["pattern"]["String"])?, text(&part["content"])?));
                }
                Some("Metaspace") => {
                    let sign = part["replacement"].as_str().unwrap_or("▁");
                    replaced.push((sign.to_owned(), " ".to_owned()));
                }
                _ => {}
            }
        }
        match kinds[..] {
            ["ByteLevel"] if replaced.is_empty() => Some(Self::Level),
            ["ByteFallback"] => Some(Self::Fallback(replaced)),
            _ => None,
        }
    }

    /// The bytes of a token with this text in the vocabulary, where it is not the first of a text.
    pub(super) fn of_token(&self, token: &str) -> Vec<u8> {
        match self {
            Self::Level => {
                let bytes: Option<_> = token.chars().map(byte_of).collect();
                bytes.unwrap_or_else(|| token.as_bytes().to_vec())
            }
            Self::Fallback(replaced) => {
                let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                let digits = digits.filter(|digits| digits.len() == 2);
                if let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
                    return vec![byte];
                }
                let text = replaced
                    .iter()
                    .fold(token.to_owned(), |text, (from, to)| text.replace(from.as_str(), to));
                text.into_bytes()
            }
        }
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
        let fallback = Bytes::Fallback(vec![("▁".to_owned(), " ".to_owned())]);
        assert_eq!(fallback.of_token("<0xE4>"), [0xe4]);
        for (token, bytes) in [
            ("<0xE4", &b"<0xE4"[..]),
            ("<0xE>", b"<0xE>"),
            ("<0xXY>", b"<0xXY>"),
            ("▁a▁", b" a "),
            ("<0x+1>", &[1]), // the library takes a sign too
        ] {
            assert_eq!(fallback.of_token(token), bytes);
        }
    }

    #[test]
    fn the_kind_is_that_of_the_only_part_that_works_on_bytes() {
        let [level, fallback] = ["ByteLevel", "ByteFallback"].map(|kind| json!({"type": kind}));
        let sequence = |parts: &[&Value]| json!({"type": "Sequence", "decoders": parts});
        assert_eq!(Bytes::of_decoder(&level), Some(Bytes::Level));
        assert_eq!(Bytes::of_decoder(&sequence(&[&fallback])), Some(Bytes::Fallback(vec![])));
        assert_eq!(Bytes::of_decoder(&sequence(&[&level, &fallback])), None);
        assert_eq!(Bytes::of_decoder(&Value::Null), None);
        let space = Bytes::Fallback(vec![("▁".to_owned(), " ".to_owned())]);
        let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
        let metaspace = json!({"type": "Metaspace", "replacement": "▁"});
        for part in [&replace, &metaspace] {
            assert_eq!(Bytes::of_decoder(&sequence(&[part, &fallback])).as_ref(), Some(&space));
            assert_eq!(Bytes::of_decoder(&sequence(&[part, &level])), None);
        }
        let pattern = json!({"type": "Replace", "pattern": {"Regex": "▁+"}, "content": " "});
        assert_eq!(Bytes::of_decoder(&sequence(&[&pattern, &fallback])), None);
    }
}
