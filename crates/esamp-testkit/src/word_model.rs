//! A Hugging Face folder with a small random model, for programs that load one.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::golden;

/// Fills an existing folder with the weights of a golden Llama and a tokenizer for the words w0 to w95.
pub fn fill(folder: &Path) {
    for entry in fs::read_dir(golden::path("llama/llama")).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    let vocab: serde_json::Map<String, Value> =
        (0..96).map(|id| (format!("w{id}"), id.into())).collect();
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}
