//! Conversion of a GGUF vocabulary to a `tokenizer.json`.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::{
    id::TokenId,
    llama::error::LoadError,
    llama::{config::unusable, load::Gguf},
};

/// Names of the Llama 3 pre-tokenizer in GGUF files.
const LLAMA_3: [&str; 3] = ["llama-bpe", "llama3", "llama-v3"];

/// Whether prompts get a BOS token if the file does not say. As in llama.cpp, SentencePiece and Llama 3 tokenizers
/// add one.
pub(super) fn begins_by_default(file: &Gguf) -> Result<bool, LoadError> {
    if file.string("tokenizer.ggml.model")? == "llama" {
        return Ok(true);
    }
    Ok(LLAMA_3.contains(&file.string("tokenizer.ggml.pre")?))
}

/// Token types of the GGUF format.
const CONTROL: usize = 3;
const USER_DEFINED: usize = 4;

/// Builds the `tokenizer.json` equivalent to a GGUF file's vocabulary.
pub(super) fn tokenizer_json(file: &Gguf) -> Result<Value, LoadError> {
    let tokens = file.strings("tokenizer.ggml.tokens")?;
    let types = if file.has_key("tokenizer.ggml.token_type") {
        file.sizes("tokenizer.ggml.token_type")?
    } else {
        vec![1; tokens.len()]
    };
    if types.len() != tokens.len() {
        let expected = format!("{} types, one for each token", tokens.len());
        return Err(unusable("tokenizer.ggml.token_type", expected, types.len()));
    }
    let added: Vec<Value> = tokens
        .iter()
        .zip(types)
        .enumerate()
        .filter(|(_, (_, kind))| [CONTROL, USER_DEFINED].contains(kind))
        .map(|(id, (token, kind))| {
            json!({
                "id": id, "content": token, "special": kind == CONTROL,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    let vocab: Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let mut json = match file.string("tokenizer.ggml.model")? {
        "gpt2" => byte_level(file, vocab)?,
        "llama" => sentence_piece(file, &tokens, vocab)?,
        other => return Err(unusable("tokenizer.ggml.model", "gpt2 or llama", other)),
    };
    json["version"] = json!("1.0");
    json["added_tokens"] = json!(added);
    Ok(json)
}

/// Byte-level BPE, used by GPT-2 and most later models.
fn byte_level(file: &Gguf, vocab: Map<String, Value>) -> Result<Value, LoadError> {
    let mut merges = Vec::new();
    for merge in file.strings("tokenizer.ggml.merges")? {
        let Some((left, right)) = merge.split_once(' ') else {
            return Err(unusable("tokenizer.ggml.merges", "two parts in every merge", merge));
        };
        merges.push(json!([left, right]));
    }
    let key = "tokenizer.ggml.pre";
    let pre = match file.string(key)? {
        pre if LLAMA_3.contains(&pre) => LLAMA_3[0],
        pre => pre,
    };
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
        "qwen2" => vec![split(&words(r"\p{N}")), byte_level(false)],
        other => return Err(unusable(key, "gpt-2, smollm, llama-bpe or qwen2", other)),
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

/// SentencePiece BPE: spaces become `▁` and unknown characters become bytes.
fn sentence_piece(
    file: &Gguf,
    tokens: &[String],
    vocab: Map<String, Value>,
) -> Result<Value, LoadError> {
    let scores = file.numbers("tokenizer.ggml.scores")?;
    if scores.len() != tokens.len() {
        let expected = format!("{} scores, one for each token", tokens.len());
        return Err(unusable("tokenizer.ggml.scores", expected, scores.len()));
    }
    let key = "tokenizer.ggml.unknown_token_id";
    let unknown = if file.has_key(key) { file.size(key)? } else { 0 };
    let Some(unknown) = tokens.get(unknown) else {
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
            "type": "BPE", "vocab": vocab, "merges": merges_of(tokens, &scores),
            "unk_token": unknown, "fuse_unk": true, "byte_fallback": true,
        },
    }))
}

/// The merges implied by a SentencePiece vocabulary: every split of a piece into two other pieces, best score first.
fn merges_of(tokens: &[String], scores: &[f32]) -> Vec<Value> {
    let ids: HashMap<&str, usize> =
        tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let mut merges = Vec::new();
    for (piece, &score) in tokens.iter().zip(scores) {
        let splits = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
        let mut known: Vec<(usize, usize)> =
            splits.filter_map(|(left, right)| Some((*ids.get(left)?, *ids.get(right)?))).collect();
        known.sort_unstable();
        merges.extend(known.into_iter().map(|pair| (score, pair)));
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0));
    merges.into_iter().map(|(_, (left, right))| json!([tokens[left], tokens[right]])).collect()
}

/// Reads `eos_token_id` of a `generation_config.json` or `config.json`: one id, a list, or none.
pub(super) fn stop_tokens(json: &Value) -> Result<Vec<TokenId>, LoadError> {
    let wrong = |got: &Value| unusable("eos_token_id", "a token id or a list of them", got);
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| TokenId::try_from(id).ok());
        id.ok_or_else(|| wrong(value))
    };
    match json.get("eos_token_id") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(ids)) => ids.iter().map(id).collect(),
        Some(one) => Ok(vec![id(one)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_tokens_are_one_or_many_or_none() {
        assert_eq!(stop_tokens(&json!({"eos_token_id": 2})).unwrap(), [2]);
        assert_eq!(stop_tokens(&json!({"eos_token_id": [2, 5]})).unwrap(), [2, 5]);
        assert!(stop_tokens(&json!({"eos_token_id": null})).unwrap().is_empty());
        assert!(stop_tokens(&json!({})).unwrap().is_empty());
        assert_eq!(
            stop_tokens(&json!({"eos_token_id": "</s>"})).unwrap_err().to_string(),
            "key eos_token_id: expected a token id or a list of them, got \"</s>\""
        );
    }

    #[test]
    fn merges_are_the_splits_into_known_pieces_by_score() {
        let tokens = ["a", "b", "c", "ab", "bc", "abc"].map(str::to_owned);
        let scores = [0.0, 0.0, 0.0, -2.0, -1.0, -3.0];
        let merges = merges_of(&tokens, &scores);
        let expected = [["b", "c"], ["a", "b"], ["a", "bc"], ["ab", "c"]];
        assert_eq!(merges, expected.map(|pair| json!(pair)));
    }
}
