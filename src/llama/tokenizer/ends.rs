//! Tokens that end a completion.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{
    id::TokenId,
    llama::error::LoadError,
    llama::{config::unusable, load::Gguf},
};

/// Texts that end a generation in every vocabulary. The lists here are those of llama.cpp (src/llama-vocab.cpp,
/// November 2026): files name one or two end tokens, and models use others too.
const NAMES: [&str; 22] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "</s>",
    "<eos>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<end_of_utterance>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Keys of end tokens, and the texts that stand for them in files without the key. The last three separate files of
/// source code.
const KEYS: [(&str, &[&str]); 6] = [
    ("tokenizer.ggml.eos_token_id", &[]),
    ("tokenizer.ggml.eot_token_id", &[]),
    ("tokenizer.ggml.eom_token_id", &[]),
    (
        "tokenizer.ggml.fim_pad_token_id",
        &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
    ),
    (
        "tokenizer.ggml.fim_rep_token_id",
        &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
    ),
    ("tokenizer.ggml.fim_sep_token_id", &["<|file_sep|>"]),
];

/// Every end-of-generation token of a GGUF vocabulary, in ascending order.
pub(super) fn of_gguf(file: &Gguf, warnings: &mut Vec<String>) -> Result<Vec<TokenId>, LoadError> {
    let tokens = file.strings("tokenizer.ggml.tokens")?;
    let mut names = BTreeSet::from(NAMES);
    let mut ends = BTreeSet::new();
    for (key, stand_ins) in KEYS {
        match id_of_key(file, key, tokens.len(), warnings)? {
            Some(id) => ends.extend([id]),
            None => names.extend(stand_ins),
        }
    }
    let named = (0..).zip(tokens).filter(|(_, token)| names.contains(token.as_str()));
    ends.extend(named.map(|(id, _)| id));
    let text = |id: TokenId| tokens.get(id as usize).map_or("", String::as_str);
    let has = |name: &str| ends.iter().any(|&id| text(id) == name);
    // In these vocabularies, a message of the conversation ends here and not the generation.
    let has_call = has("<|call|>") || has("<|calls|>");
    let continues_after_end = has_call && (has("<|return|>") || has("<|flush|>"));
    let continues_after_s = has("<|tool_response>");
    ends.retain(|&id| match text(id) {
        "<|end|>" => !continues_after_end,
        "</s>" => !continues_after_s,
        _ => true,
    });
    Ok(ends.into_iter().collect())
}

/// The token id under a key of a GGUF file. An id outside of the vocabulary can never be drawn, so it is left out, with
/// a warning.
pub(super) fn id_of_key(
    file: &Gguf,
    key: &str,
    vocab_size: usize,
    warnings: &mut Vec<String>,
) -> Result<Option<TokenId>, LoadError> {
    Ok(file.integer(key)?.and_then(|id| known(id, key, vocab_size, warnings)))
}

/// Reads `eos_token_id` of a `generation_config.json` or `config.json`: one id, a list, or none. Leaves out ids outside
/// of the vocabulary, with a warning.
pub(super) fn of_hf(
    json: &Value,
    vocab_size: usize,
    warnings: &mut Vec<String>,
) -> Result<Vec<TokenId>, LoadError> {
    let key = "eos_token_id";
    let ids = match json.get(key) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(ids)) => ids.iter().collect(),
        Some(one) => vec![one],
    };
    let mut ends = Vec::new();
    for value in ids {
        let id = value.as_i64().map(i128::from).or(value.as_u64().map(i128::from));
        let Some(id) = id else {
            return Err(unusable(key, "a token id or a list of them", value));
        };
        ends.extend(known(id, key, vocab_size, warnings).filter(|id| !ends.contains(id)));
    }
    Ok(ends)
}

fn known(id: i128, key: &str, vocab_size: usize, warnings: &mut Vec<String>) -> Option<TokenId> {
    let known = TokenId::try_from(id).ok().filter(|&id| (id as usize) < vocab_size);
    if known.is_none() {
        warnings.push(format!(
            "key {key}: expected an id below {vocab_size}, got {id}: left out, because no model draws it"
        ));
    }
    known
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ends(json: Value) -> (Result<Vec<TokenId>, String>, Vec<String>) {
        let mut warnings = Vec::new();
        let ends = of_hf(&json, 260, &mut warnings).map_err(|error| error.to_string());
        (ends, warnings)
    }

    #[test]
    fn end_tokens_are_one_or_many_or_none() {
        for (json, expected) in [
            (json!({"eos_token_id": 2}), vec![2]),
            (json!({"eos_token_id": [2, 5, 2]}), vec![2, 5]),
            (json!({"eos_token_id": null}), vec![]),
            (json!({}), vec![]),
        ] {
            assert_eq!(ends(json), (Ok(expected), vec![]));
        }
        for (wrong, got) in
            [(json!("</s>"), "\"</s>\""), (json!(1.5), "1.5"), (json!([[2]]), "[2]")]
        {
            let message =
                format!("key eos_token_id: expected a token id or a list of them, got {got}");
            assert_eq!(ends(json!({"eos_token_id": wrong})).0, Err(message));
        }
    }

    #[test]
    fn ids_that_no_model_draws_are_left_out_with_a_warning() {
        for wrong in [-1, 260, 4_294_967_298_i64] {
            let (ends, warnings) = ends(json!({"eos_token_id": [258, wrong]}));
            assert_eq!(ends, Ok(vec![258]));
            let warning = format!(
                "key eos_token_id: expected an id below 260, got {wrong}: left out, because no model draws it"
            );
            assert_eq!(warnings, [warning]);
        }
        assert_eq!(ends(json!({"eos_token_id": u64::MAX})).0, Ok(vec![]));
    }
}
