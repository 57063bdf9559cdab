//! Keeps an untrusted `tokenizer.json` from making a text too long, and the library's panics from leaving this crate.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::Value;

use crate::{
    error::panic_text,
    llama::{config::unusable, error::LoadError},
};

/// How many times as long the parts of a tokenizer may make a text, in total. SentencePiece's own rules reach about 30.
const MAX_GROWTH: usize = 1024;

/// The parts that change texts, or repeat their tokens.
const PARTS: [&str; 4] = ["normalizer", "pre_tokenizer", "post_processor", "decoder"];

/// Checks that no part of a tokenizer makes a text more than [`MAX_GROWTH`] times as long. Without the check, forty
/// rules that each double a text ask for a terabyte.
pub(super) fn check_growth(json: &Value) -> Result<(), LoadError> {
    for part in PARTS {
        let growth = growth(&json[part]);
        if growth > MAX_GROWTH {
            let expected = format!("rules that make a text at most {MAX_GROWTH} times as long");
            return Err(unusable(part, expected, format!("{growth} times or more")));
        }
    }
    Ok(())
}

/// An upper bound of a part's growth. Decided by the fields and not by `type`, which old files leave out.
fn growth(part: &Value) -> usize {
    let members = ["normalizers", "pretokenizers", "processors", "decoders"].into_iter();
    let members = members.filter_map(|list| part[list].as_array()).flatten();
    let product = members.fold(1usize, |product, member| product.saturating_mul(growth(member)));
    let text = |field: &str| part[field].as_str().map_or(0, str::len);
    let replacement = match part["pattern"]["String"].as_str() {
        Some(pattern) if !pattern.is_empty() => text("content").div_ceil(pattern.len()).max(1),
        // A regular expression can match everywhere and nothing.
        _ => text("content") + 1,
    };
    let own = match part["type"].as_str() {
        Some("NFKC" | "NFKD") => 12, // U+FDFA
        Some("NFC" | "NFD" | "BertNormalizer" | "ByteFallback") => 6,
        Some("ByteLevel" | "Lowercase") => 2,
        Some("Metaspace") => 1 + text("replacement").max(4) * 2,
        _ => 1,
    };
    let charsmap = part["precompiled_charsmap"].as_str().map_or(1, longest_rule);
    let template = part["single"].as_array().map_or(1, |pieces| {
        let ids = part["special_tokens"].as_object().into_iter().flatten();
        let ids = ids.filter_map(|(_, token)| token["ids"].as_array()).map(Vec::len).max();
        pieces.len().saturating_mul(ids.unwrap_or(1).max(1))
    });
    [replacement, text("prepend") + 1, own, charsmap, template]
        .into_iter()
        .fold(product, usize::saturating_mul)
}

/// The length of the longest text that SentencePiece's rules write for a character. The rules are a size in four bytes,
/// a table of that size, and texts that zeros end. A size that does not fit counts as unbounded, because the library
/// reserves memory for it.
fn longest_rule(base64: &str) -> usize {
    let mut bytes = Vec::new();
    let (mut bits, mut held) = (0u32, 0);
    for c in base64.bytes().take_while(|&c| c != b'=') {
        let six = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return 1, // the library refuses it
        };
        bits = bits << 6 | u32::from(six);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held & 0xff) as u8);
        }
    }
    let Some((size, rest)) = bytes.split_first_chunk() else { return 1 };
    let size = u32::from_le_bytes(*size) as usize;
    let Some(texts) = rest.get(size..) else { return usize::MAX };
    texts.split(|&byte| byte == 0).map(<[u8]>::len).max().unwrap_or(0).max(1)
}

/// Runs a part of the library `tokenizers`, which panics on some damaged files where it could return an error: on
/// merges that are shorter than the prefix they are cut by, pieces of length 0, and templates with unknown tokens. Such
/// a panic becomes an error of the tokenizer. The program's panic hook still runs and reports the panic, because the
/// hook belongs to the program and is shared by its threads.
///
/// Nothing is in an inconsistent state after a panic: a tokenizer that is being built is dropped, and one that is being
/// used is not changed, except for a cache with a lock that the library gives up when it is poisoned.
pub(super) fn caught<T, E: std::fmt::Display>(
    run: impl FnOnce() -> Result<T, E>,
) -> Result<T, LoadError> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(done) => done.map_err(|error| LoadError::Tokenizer(error.to_string())),
        Err(panic) => {
            let message = panic_text(&*panic);
            Err(LoadError::Tokenizer(format!("expected one that works, got a panic: {message}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn growth_multiplies_along_a_sequence() {
        let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
        let sequence =
            |n: usize| json!({"type": "Sequence", "normalizers": vec![double.clone(); n]});
        assert_eq!(growth(&sequence(10)), 1024);
        assert!(check_growth(&json!({"normalizer": sequence(10)})).is_ok());
        let error = check_growth(&json!({"normalizer": sequence(11)})).unwrap_err().to_string();
        let expected = "key normalizer: expected rules that make a text at most 1024 times as long, got 2048 times or more";
        assert_eq!(error, expected);
        assert!(
            check_growth(&json!({"decoder": {"type": "Sequence", "decoders": vec![double; 11]}}))
                .is_err()
        );
    }

    #[test]
    fn rules_of_real_tokenizers_grow_little() {
        let llama = json!({"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]});
        assert_eq!(growth(&llama), 12);
        let split =
            json!({"type": "Split", "pattern": {"Regex": "\\p{N}"}, "behavior": "Isolated"});
        let qwen = json!({"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel"}]});
        assert_eq!(growth(&qwen), 2);
        assert_eq!(growth(&Value::Null), 1);
    }

    #[test]
    fn rules_of_sentencepiece_are_as_long_as_their_longest_text() {
        // A table of 4 bytes, and the texts "ab" and "abcde".
        assert_eq!(longest_rule("BAAAAAAAAABhYgBhYmNkZQA="), 5);
        assert_eq!(longest_rule("////fwAAAAA="), usize::MAX);
        assert_eq!(longest_rule("!"), 1);
    }

    #[test]
    fn a_panic_is_an_error() {
        let error =
            caught(|| -> Result<(), String> { panic!("at {}", 7) }).unwrap_err().to_string();
        assert_eq!(error, "tokenizer: expected one that works, got a panic: at 7");
        assert_eq!(caught(|| Err::<(), _>("wrong")).unwrap_err().to_string(), "tokenizer: wrong");
    }
}
