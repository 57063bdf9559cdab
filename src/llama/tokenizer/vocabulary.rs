//! Conversion of a GGUF vocabulary to a `tokenizer.json`.

use std::iter::successors;

use serde_json::{Map, Value, json};

use super::ends::id_of_key;
use crate::{
    id::TokenId,
    llama::error::LoadError,
    llama::{config::unusable, load::Gguf},
};

/// Names of the Llama 3 pre-tokenizer in GGUF files.
const LLAMA_3: [&str; 3] = ["llama-bpe", "llama3", "llama-v3"];

/// How a byte-level vocabulary splits a text into words, under one name for each way. `None` for a SentencePiece
/// vocabulary, which does not split it.
///
/// Files from before the format had the key are split as the architecture's models are.
pub(super) fn splitting(
    file: &Gguf,
    warnings: &mut Vec<String>,
) -> Result<Option<&'static str>, LoadError> {
    let key = "tokenizer.ggml.model";
    match file.string(key)? {
        "llama" => return Ok(None),
        "gpt2" => {}
        other => return Err(unusable(key, "gpt2 or llama", other)),
    }
    let key = "tokenizer.ggml.pre";
    let pre = if file.has_key(key) { file.string(key)? } else { "none" };
    Ok(Some(match pre {
        "gpt-2" => "gpt-2",
        "smollm" => "smollm",
        "qwen2" | "deepseek-r1-qwen" => "qwen2",
        "gpt-4o" => "gpt-4o",
        pre if LLAMA_3.contains(&pre) => LLAMA_3[0],
        "none" | "default" => {
            let tokens = file.strings("tokenizer.ggml.tokens")?;
            let has = |text: &str| tokens.iter().any(|token| token == text);
            let architecture = "general.architecture";
            let is_qwen =
                file.has_key(architecture) && file.string(architecture)?.starts_with("qwen");
            let guess = match (is_qwen, has("<|begin_of_text|>")) {
                (true, _) => "qwen2",
                (false, true) => LLAMA_3[0],
                (false, false) => "gpt-2",
            };
            warnings.push(format!(
                "key {key}: expected the way to split a text, got {pre}: split as {guess} does; if the output is poor, \
                 convert the model again"
            ));
            guess
        }
        other => {
            let expected = "gpt-2, smollm, llama-bpe, qwen2, deepseek-r1-qwen or gpt-4o";
            return Err(unusable(key, expected, other));
        }
    }))
}

/// Whether prompts get a BOS token if the file does not say. As in llama.cpp, SentencePiece and Llama 3 tokenizers
/// add one.
pub(super) fn begins_by_default(splitting: Option<&str>) -> bool {
    splitting.is_none_or(|pre| pre == LLAMA_3[0])
}

/// Token types of the GGUF format.
const CONTROL: usize = 3;
const USER_DEFINED: usize = 4;

/// Maximum length of a token, in bytes. Real ones have a few hundred at most, and a token can have as many merges as it
/// has bytes.
const MAX_TOKEN: usize = 1024;

/// Builds the `tokenizer.json` equivalent to a GGUF file's vocabulary. `ends` are its end tokens, which are special
/// regardless of their type.
pub(super) fn tokenizer_json(
    file: &Gguf,
    splitting: Option<&str>,
    ends: &[TokenId],
    warnings: &mut Vec<String>,
) -> Result<Value, LoadError> {
    let tokens = file.strings("tokenizer.ggml.tokens")?;
    if let Some(long) = tokens.iter().find(|token| token.len() > MAX_TOKEN) {
        let expected = format!("tokens of at most {MAX_TOKEN} bytes");
        return Err(unusable("tokenizer.ggml.tokens", expected, format!("{} bytes", long.len())));
    }
    let types = if file.has_key("tokenizer.ggml.token_type") {
        file.sizes("tokenizer.ggml.token_type")?
    } else {
        vec![1; tokens.len()]
    };
    if types.len() != tokens.len() {
        let expected = format!("{} types, one for each token", tokens.len());
        return Err(unusable("tokenizer.ggml.token_type", expected, types.len()));
    }
    let is_end = |id: usize| TokenId::try_from(id).is_ok_and(|id| ends.binary_search(&id).is_ok());
    for (id, (token, kind)) in tokens.iter().zip(&types).enumerate() {
        if is_end(id) && *kind != CONTROL && file.has_key("tokenizer.ggml.token_type") {
            warnings.push(format!(
                "key tokenizer.ggml.token_type: expected {CONTROL}, a control token, for the end token {token:?}, got \
                 {kind}: used as an end token"
            ));
        }
    }
    let added: Vec<Value> = tokens
        .iter()
        .zip(types)
        .enumerate()
        .filter(|&(id, (_, kind))| [CONTROL, USER_DEFINED].contains(&kind) || is_end(id))
        .map(|(id, (token, kind))| {
            json!({
                "id": id, "content": token, "special": kind == CONTROL || is_end(id),
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    let vocab: Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let mut json = match splitting {
        Some(pre) => byte_level(file, pre, vocab)?,
        None => sentence_piece(file, tokens, vocab, warnings)?,
    };
    json["version"] = json!("1.0");
    json["added_tokens"] = json!(added);
    Ok(json)
}

/// Byte-level BPE, used by GPT-2 and most later models.
fn byte_level(file: &Gguf, pre: &str, vocab: Map<String, Value>) -> Result<Value, LoadError> {
    let mut merges = Vec::new();
    for merge in file.strings("tokenizer.ggml.merges")? {
        let Some((left, right)) = merge.split_once(' ') else {
            return Err(unusable("tokenizer.ggml.merges", "two parts in every merge", merge));
        };
        merges.push(json!([left, right]));
    }
    let byte_level = |use_regex: bool| {
        json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": use_regex,
        })
    };
    let split = |pattern: &str| {
        json!({
            "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
            "invert": false,
        })
    };
    let parts = match pre {
        "gpt-2" => vec![byte_level(true)],
        "smollm" => vec![json!({"type": "Digits", "individual_digits": true}), byte_level(true)],
        "llama-bpe" => vec![split(&words(r"\p{N}{1,3}")), byte_level(false)],
        "gpt-4o" => vec![split(&cased_words()), byte_level(false)],
        _ => vec![split(&words(r"\p{N}")), byte_level(false)], // qwen2
    };
    Ok(json!({
        "normalizer": if pre == "qwen2" { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts},
        "post_processor": null,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": pre == "llama-bpe",
        },
    }))
}

/// The pre-tokenizer pattern of Llama 3 and Qwen. They differ only in how many digits form a number.
fn words(number: &str) -> String {
    let contractions = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)";
    let letters = r"[^\r\n\p{L}\p{N}]?\p{L}+";
    let signs = r" ?[^\s\p{L}\p{N}]+[\r\n]*";
    let space = r"\s*[\r\n]+|\s+(?!\S)|\s+";
    format!("{contractions}|{letters}|{number}|{signs}|{space}")
}

/// The pre-tokenizer pattern of GPT-4o and GPT-OSS (o200k in OpenAI's tiktoken). A word ends where a capital letter
/// follows a small one, and a contraction belongs to its word.
fn cased_words() -> String {
    let (large, small) = (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]");
    let (before, contraction) = (r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?");
    let letters =
        format!("{before}{large}*{small}+{contraction}|{before}{large}+{small}*{contraction}");
    let signs = r" ?[^\s\p{L}\p{N}]+[\r\n/]*";
    let space = r"\s*[\r\n]+|\s+(?!\S)|\s+";
    let number = r"\p{N}{1,3}";
    format!("{letters}|{number}|{signs}|{space}")
}

/// SentencePiece BPE: spaces become `▁` and unknown characters become bytes.
fn sentence_piece(
    file: &Gguf,
    tokens: &[String],
    vocab: Map<String, Value>,
    warnings: &mut Vec<String>,
) -> Result<Value, LoadError> {
    let scores = file.numbers("tokenizer.ggml.scores")?;
    if scores.len() != tokens.len() {
        let expected = format!("{} scores, one for each token", tokens.len());
        return Err(unusable("tokenizer.ggml.scores", expected, scores.len()));
    }
    let key = "tokenizer.ggml.unknown_token_id";
    let unknown = id_of_key(file, key, tokens.len(), warnings)?.unwrap_or(0);
    let Some(unknown) = tokens.get(unknown as usize) else {
        return Err(unusable(key, format!("an id below {}", tokens.len()), unknown));
    };
    let key = "tokenizer.ggml.add_space_prefix";
    let prefix = if file.has_key(key) { file.flag(key)? } else { true };
    let mut normalizers =
        vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(json!({
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "vocab": vocab, "merges": merges_of(tokens, &scores)?,
            "unk_token": unknown, "fuse_unk": true, "byte_fallback": true,
        },
    }))
}

/// Maximum size of the merges of a SentencePiece vocabulary, relative to that of its tokens. Real vocabularies have
/// about two merges a token.
const MAX_MERGES: usize = 16;

/// The merges implied by a SentencePiece vocabulary: every split of a piece into two other pieces, best score first.
///
/// The time grows with the size of the vocabulary, and not with the number of places at which its pieces could be
/// split: a piece of a kilobyte has a thousand, and to look up both parts of each would read a megabyte.
///
/// # Errors
///
/// [`LoadError::Key`] if they would take more than [`MAX_MERGES`] times the memory of the vocabulary.
fn merges_of(tokens: &[String], scores: &[f32]) -> Result<Vec<Value>, LoadError> {
    let prefixes = longest_prefixes(tokens.iter().map(|token| token.as_bytes().to_vec()));
    let reversed = |token: &String| token.bytes().rev().collect();
    let suffixes = longest_prefixes(tokens.iter().map(reversed));
    let size = |piece: &str| piece.len() + size_of::<String>();
    let mut room = tokens.iter().map(|token| MAX_MERGES * size(token)).sum::<usize>();
    let mut merges = Vec::new();
    // The suffix of each length of the current piece.
    let mut ending = vec![None; longest(tokens)];
    for (id, (piece, &score)) in tokens.iter().zip(scores).enumerate() {
        let ends = || successors(suffixes[id], |&shorter| suffixes[shorter]);
        ends().for_each(|end| ending[tokens[end].len()] = Some(end));
        let starts = successors(prefixes[id], |&shorter| prefixes[shorter]);
        let mut known: Vec<(usize, usize)> = starts
            .filter_map(|start| Some((start, ending[piece.len() - tokens[start].len()]?)))
            .collect();
        ends().for_each(|end| ending[tokens[end].len()] = None);
        let Some(left) = room.checked_sub(known.len() * size(piece)) else {
            let expected = format!("about two merges a token, at most {MAX_MERGES}");
            return Err(unusable("tokenizer.ggml.tokens", expected, "more"));
        };
        room = left;
        known.sort_unstable();
        merges.extend(known.into_iter().map(|pair| (score, pair)));
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0));
    let texts = |(_, (left, right)): (f32, (usize, usize))| json!([tokens[left], tokens[right]]);
    Ok(merges.into_iter().map(texts).collect())
}

fn longest(tokens: &[String]) -> usize {
    tokens.iter().map(String::len).max().unwrap_or(0)
}

/// For every text, the longest other text that it begins with, as an index; of equal texts, the last. Empty texts count
/// as none.
fn longest_prefixes(texts: impl Iterator<Item = Vec<u8>>) -> Vec<Option<usize>> {
    let mut sorted: Vec<(Vec<u8>, usize)> = texts.zip(0..).collect();
    sorted.sort_unstable();
    let mut prefixes = vec![None; sorted.len()];
    // What the last text begins with, from short to long. The beginnings of a text come before it in this order, and
    // nothing between a beginning and the text begins with anything else.
    let mut open: Vec<&(Vec<u8>, usize)> = Vec::new();
    for entry in &sorted {
        let (text, id) = entry;
        while open.last().is_some_and(|(start, _)| !text.starts_with(start) || start == text) {
            open.pop();
        }
        prefixes[*id] = open.last().map(|(_, id)| *id);
        if !text.is_empty() {
            open.push(entry);
        }
    }
    prefixes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against every split of every piece, looked up.
        #[test]
        fn merges_are_those_of_looking_every_part_up(
            tokens in prop::collection::vec("[ab\u{e9}]{0,5}", 1..40)
        ) {
            let of = |text: &str| tokens.iter().rposition(|token| token == text);
            let mut expected = Vec::new();
            for piece in &tokens {
                let splits = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
                let mut known: Vec<_> =
                    splits.filter_map(|(left, right)| Some((of(left)?, of(right)?))).collect();
                known.sort_unstable();
                expected.extend(known.into_iter().map(|(l, r)| json!([tokens[l], tokens[r]])));
            }
            prop_assert_eq!(merges_of(&tokens, &vec![0.0; tokens.len()]).unwrap(), expected);
        }
    }

    #[test]
    fn merges_are_the_splits_into_known_pieces_by_score() {
        let tokens = ["a", "b", "c", "ab", "bc", "abc"].map(str::to_owned);
        let scores = [0.0, 0.0, 0.0, -2.0, -1.0, -3.0];
        let merges = merges_of(&tokens, &scores).unwrap();
        let expected = [["b", "c"], ["a", "b"], ["a", "bc"], ["ab", "c"]];
        assert_eq!(merges, expected.map(|pair| json!(pair)));
    }

    #[test]
    fn a_vocabulary_of_more_merges_than_tokens_is_refused() {
        let tokens: Vec<String> = (1..1000).map(|length| "a".repeat(length)).collect();
        let message = merges_of(&tokens, &vec![0.0; tokens.len()]).unwrap_err().to_string();
        let expected =
            "key tokenizer.ggml.tokens: expected about two merges a token, at most 16, got more";
        assert_eq!(message, expected);
    }
}
